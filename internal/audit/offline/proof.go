package offline

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/visible"
)

// ErrPruned says that a proof file has no event in it.
var ErrPruned = errors.New("the proof has no event in it, as of an entry whose body was pruned")

// Proof verifies a proof file: the signature of its checkpoint, and that the event
// in it stands at its index in the tree of that. A pin must be of the same size: a
// proof cannot show how the log went on.
func Proof(data []byte, name string, given Given) (*Report, error) {
	if err := given.check(); err != nil {
		return nil, err
	}
	p, err := tiles.ParseProofFile(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if p.Event == nil {
		return nil, fmt.Errorf("%s: %w", name, ErrPruned)
	}
	r := &Report{Kind: "proof", Name: name, Index: &p.Index}
	c, err := given.checkpoint(p.Checkpoint, name, r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	pins, err := given.pins(c.Origin, r)
	if err != nil {
		return nil, err
	}
	if json.Valid(p.Event) {
		r.Event = json.RawMessage(visible.JSON(p.Event))
	}
	if err := tiles.CheckInclusion(p.Hashes, c.Size, c.Root, p.Index, leafHash(p.Event)); err != nil {
		r.find(Finding{Kind: "entry", File: name, Entries: &Range{p.Index, p.Index}, What: "the event is not in the tree there: it, its index or the hashes were changed"})
	} else {
		r.Verified = 1
	}
	r.First, _ = timeOf(p.Event)
	r.Last = r.First
	for _, pin := range pins {
		if pin.Size != c.Size {
			return nil, fmt.Errorf("%s: %w: it is of %d entries and the proof of %d; an export can be compared with both", pin.name, ErrPin, pin.Size, c.Size)
		}
		result := pin.result(fmt.Sprintf("it is of the same %d entries", pin.Size))
		if result.Consistent = pin.Root == c.Root; !result.Consistent {
			result.State = fmt.Sprintf("of %d entries it has another root", pin.Size)
			r.find(Finding{Kind: "pin", File: pin.name, What: fmt.Sprintf("of the same %d entries it has the root %x: the log was forked or rewritten", pin.Size, pin.Root)})
		}
		r.Pins = append(r.Pins, result)
	}
	r.Intact = r.Signed && len(r.Findings) == 0
	return r, nil
}
