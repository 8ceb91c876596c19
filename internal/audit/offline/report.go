package offline

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/visible"
)

const (
	maxFindings = 1000 // are looked for
	shown       = 20   // in Text
)

// A Report is what was verified and what came of it. Fields are only added.
type Report struct {
	// Intact: everything given was compared, and nothing differs.
	Intact bool `json:"intact"`
	// Kind is "export" or "proof".
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Origin, Size and Root are the checkpoint's.
	Origin string `json:"origin,omitempty"`
	Size   uint64 `json:"size"`
	Root   string `json:"root,omitempty"`
	// Signed: a known key of the log has signed it.
	Signed       bool          `json:"signed"`
	Cosignatures []Cosignature `json:"cosignatures,omitempty"`
	// Verified entries have the leaf hash that the tree has. Pruned ones have no
	// body any more, and the leaf hash alone.
	Verified     uint64  `json:"verified"`
	Pruned       uint64  `json:"pruned"`
	PrunedRanges []Range `json:"pruned_ranges,omitempty"`
	// First and Last are the times of the first and last event that has a body.
	First time.Time   `json:"first,omitzero"`
	Last  time.Time   `json:"last,omitzero"`
	Pins  []PinResult `json:"pins,omitempty"`
	// Findings are what is not as it should be, by entry. There may be More, where
	// there are a thousand.
	Findings []Finding `json:"findings,omitempty"`
	More     bool      `json:"more_findings,omitempty"`
	// Index and Event are what a proof file proves.
	Index *uint64         `json:"index,omitempty"`
	Event json.RawMessage `json:"event,omitempty"`
}

// A Cosignature is a witness that saw a checkpoint.
type Cosignature struct {
	Witness string    `json:"witness"`
	Time    time.Time `json:"time"`
}

// A Range is entries from First to Last.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// A PinResult is what came of a pin.
type PinResult struct {
	Name         string        `json:"name"`
	Size         uint64        `json:"size"`
	Cosignatures []Cosignature `json:"cosignatures,omitempty"`
	// Consistent: the log begins with what was pinned.
	Consistent bool   `json:"consistent"`
	State      string `json:"state"`
}

// A Finding is something that is not as it should be: what, where and when.
type Finding struct {
	// Kind is one of signature, witness, entry, bundle, tile, missing, root, pin.
	Kind string `json:"kind"`
	// File is the one it shows in.
	File string `json:"file,omitempty"`
	// Entries are those concerned, where they are known.
	Entries *Range `json:"entries,omitempty"`
	// After and Before are the times of the events beside those, which are in the
	// tree: what is concerned was recorded between them.
	After  time.Time `json:"after,omitzero"`
	Before time.Time `json:"before,omitzero"`
	What   string    `json:"what"`
}

// find adds a finding, up to a bound.
func (r *Report) find(f Finding) {
	if len(r.Findings) < maxFindings {
		r.Findings = append(r.Findings, f)
		return
	}
	r.More = true
}

// pruned counts entry n, whose body is gone.
func (r *Report) pruned(n uint64) {
	r.Pruned++
	if last := len(r.PrunedRanges) - 1; last >= 0 && r.PrunedRanges[last].Last+1 == n {
		r.PrunedRanges[last].Last = n
	} else if len(r.PrunedRanges) < maxFindings {
		r.PrunedRanges = append(r.PrunedRanges, Range{n, n})
	}
}

// Text is the report for people. No byte of the log in it moves a cursor.
func (r *Report) Text() string {
	var t text
	switch r.Kind {
	case "proof":
		t.line(r.Signed && len(r.Findings) == 0, "event", fmt.Sprintf("entry %d of the %d in %s", *r.Index, r.Size, r.Origin))
	default:
		t.line(len(r.Findings) == 0, "log", fmt.Sprintf("%s, %d entries%s", r.Origin, r.Size, r.period()))
	}
	t.line(r.Signed, "checkpoint", r.signedBy())
	for _, p := range r.Pins {
		t.line(p.Consistent, "pin", p.Name+": "+p.State)
	}
	if r.Event != nil && r.Intact {
		fmt.Fprintf(&t, "\n%s\n", indented(r.Event))
	}
	if r.Intact {
		fmt.Fprintf(&t, "\nintact: %s\n", r.verdict())
		return visible.Lines(t.String())
	}
	fmt.Fprintf(&t, "\nNOT INTACT: %s, and this is wrong:\n", r.verdict())
	for i, f := range r.Findings {
		if i == shown {
			fmt.Fprintf(&t, "  and %d more, which --json lists\n", len(r.Findings)-shown)
			break
		}
		fmt.Fprintf(&t, "  NO  %s\n", f)
	}
	if r.More {
		fmt.Fprintf(&t, "  it was not looked further: at least %d are wrong\n", len(r.Findings))
	}
	return visible.Lines(t.String())
}

func (r *Report) period() string {
	if r.First.IsZero() {
		return ""
	}
	return fmt.Sprintf(", %s to %s", stamp(r.First), stamp(r.Last))
}

func (r *Report) signedBy() string {
	if !r.Signed {
		return "the log has not signed it: root " + r.Root
	}
	s := "signed by the log: root " + r.Root
	for _, c := range r.Cosignatures {
		s += fmt.Sprintf(", seen by %s at %s", c.Witness, stamp(c.Time))
	}
	return s
}

// verdict is how much was recomputed.
func (r *Report) verdict() string {
	if r.Kind == "proof" {
		return "the event's hash and the way from it to the root were recomputed"
	}
	s := fmt.Sprintf("%d of %d entries recomputed", r.Verified, r.Size)
	if r.Pruned > 0 {
		s += fmt.Sprintf(", %d pruned, of which the leaf hashes are there (%s)", r.Pruned, ranges(r.PrunedRanges))
	}
	return s
}

func ranges(all []Range) string {
	var parts []string
	for i, p := range all {
		if i == 3 {
			parts = append(parts, fmt.Sprintf("%d more ranges", len(all)-i))
			break
		}
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ", ")
}

// String is the range in words.
func (p Range) String() string {
	if p.First == p.Last {
		return fmt.Sprintf("entry %d", p.First)
	}
	return fmt.Sprintf("entries %d to %d", p.First, p.Last)
}

// String is the finding in one line.
func (f Finding) String() string {
	var parts []string
	if f.Entries != nil {
		parts = append(parts, f.Entries.String())
	}
	switch {
	case !f.After.IsZero() && !f.Before.IsZero():
		parts = append(parts, fmt.Sprintf("between %s and %s", stamp(f.After), stamp(f.Before)))
	case !f.After.IsZero():
		parts = append(parts, "after "+stamp(f.After))
	case !f.Before.IsZero():
		parts = append(parts, "before "+stamp(f.Before))
	}
	s := f.What
	if len(parts) > 0 {
		s = strings.Join(parts, ", ") + ": " + s
	}
	if f.File != "" {
		s += " (" + f.File + ")"
	}
	return s
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// text is lines with a mark, a word and what there is to say.
type text struct{ strings.Builder }

func (t *text) line(ok bool, word, what string) {
	mark := "NO"
	if ok {
		mark = "ok"
	}
	fmt.Fprintf(t, "  %s  %-10s  %s\n", mark, word, what)
}

func indented(event json.RawMessage) string {
	out, err := json.MarshalIndent(event, "", "  ")
	if err != nil {
		return fmt.Sprintf("%q", string(event))
	}
	return string(out)
}
