package mesh

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/fault"
)

const (
	observe = "observe" // as a value of plaintext
	// maxObserve is how far ahead the end of observe may be: what has no end in sight
	// is how the service runs.
	maxObserve = 180 * day
	day        = 24 * time.Hour
)

// plaintextEnd is the moment at which s says that observe ends.
func plaintextEnd(s string) (time.Time, bool) {
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t.Add(day), true
	}
	t, err := time.Parse(time.RFC3339, s)
	return t.UTC(), err == nil
}

// plaintextUntil is until when callers without TLS are let in, zero for never.
func (in *Inbound) plaintextUntil() time.Time {
	if in == nil || in.Plaintext != observe {
		return time.Time{}
	}
	t, _ := plaintextEnd(in.PlaintextUntil)
	return t
}

// plaintext checks what an inbound says of callers without TLS.
func (v *validator) plaintext(at string, in *Inbound) {
	until := in.PlaintextUntil
	_, ok := plaintextEnd(until)
	switch {
	case in.Plaintext == observe && until == "":
		v.at(at+".plaintext", flaw{
			code: fault.MeshMissing, message: "missing key `plaintext_until`", label: "observe has to end",
			hint: "say when: plaintext_until: YYYY-MM-DD, at most 180 days ahead",
		})
	case in.Plaintext == "strict" && until != "":
		v.contradicts(at+".plaintext_until", "an end of observe, and plaintext is strict", "nothing ends then", "remove it, or write plaintext: observe")
	case until != "" && !ok:
		v.malformed(at+".plaintext_until", until, "neither a date nor a time", "write it like 2026-12-31, or 2026-12-31T18:00:00Z", "")
	}
}

// CheckDates holds the dates of a file that is to be applied at now against it, which
// Parse cannot: an earlier revision stays one however late it is. The error is a
// fault.List.
func CheckDates(f *File, now time.Time) error {
	v := &validator{reporter: &reporter{src: f.src}, f: f}
	for _, name := range slices.Sorted(maps.Keys(f.Services)) {
		in, at := f.Services[name].Inbound, "services."+name+".inbound.plaintext_until"
		until := in.plaintextUntil()
		switch {
		case until.IsZero():
		case !now.Before(until):
			v.contradicts(at, "plaintext of "+name+" ended on "+in.PlaintextUntil, "it is over",
				"remove plaintext and plaintext_until, since the service is strict, or write a later date")
		case until.Sub(now) > maxObserve:
			last := now.Add(maxObserve).UTC().Truncate(day).Add(-day).Format(time.DateOnly)
			v.contradicts(at, "plaintext of "+name+" is to be let in for more than 180 days", "too far ahead",
				fmt.Sprintf("write %s at the latest; it can be moved again when it comes near", last))
		}
	}
	return v.err()
}

// plaintext finds services that let in callers without TLS, or did.
func (l *finder) plaintext(name, path string, in *Inbound) {
	until := in.plaintextUntil()
	switch left := until.Sub(l.now); {
	case until.IsZero():
	case left <= 0:
		l.add("plaintext_over", path+".inbound.plaintext", "remove plaintext and plaintext_until", "plaintext of %s ended on %s: the service is strict", name, in.PlaintextUntil)
	default:
		l.add("plaintext_observed", path+".inbound.plaintext", "see who still comes so: parley status; then remove plaintext and plaintext_until",
			"whoever reaches %s of %s without TLS is let in, by no rule and without an identity, until %s: %s left", in.Listen, name, in.PlaintextUntil, daysLeft(left))
	}
}

// daysLeft is d in days, those that have begun.
func daysLeft(d time.Duration) string {
	switch n := (d + day - 1) / day; n {
	case 1:
		return "less than a day is"
	default:
		return fmt.Sprintf("%d days are", n)
	}
}

// plaintext compares who comes in without TLS.
func (d *differ) plaintext(name string, old, new *Inbound) {
	was, is := old.plaintextUntil(), new.plaintextUntil()
	if was.Equal(is) {
		return
	}
	access := Narrower
	if is.After(was) {
		access = Wider
	}
	d.add(Changed, "service", name, "plaintext: "+old.plaintextText()+" -> "+new.plaintextText(), access)
}

func (in *Inbound) plaintextText() string {
	if in.plaintextUntil().IsZero() {
		return "strict"
	}
	return observe + " until " + in.PlaintextUntil
}
