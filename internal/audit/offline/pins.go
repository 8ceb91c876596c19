package offline

import (
	"fmt"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

// pins holds the tree against what was pinned of it. The root that it had at the
// size of a pin follows from its tiles, which were verified before.
func (w *walk) pins(c checkpoint.Checkpoint, pins []*pinned) error {
	var agreed uint64 // so many entries a pin has in common with what is here
	for _, p := range pins {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if p.Size > c.Size {
			w.r.find(Finding{
				Kind: "pin", File: p.name, Entries: &Range{First: c.Size, Last: p.Size - 1},
				What: fmt.Sprintf("the log had %d entries when it was pinned, and here it has %d: what is here is older, or its end was cut off", p.Size, c.Size),
			})
			w.r.Pins = append(w.r.Pins, p.result(fmt.Sprintf("it is of %d entries, more than there are here", p.Size)))
			continue
		}
		root, err := c.Root, error(nil)
		if p.Size < c.Size {
			root, err = tiles.Root(w.ctx, w.dir.Loader(c.Size), p.Size)
		}
		switch {
		case err != nil:
			w.r.find(Finding{Kind: "pin", File: p.name, What: fmt.Sprintf("it cannot be compared: %s", err)})
			w.r.Pins = append(w.r.Pins, p.result("not compared, since tiles are missing"))
		case root == p.Root:
			agreed = p.Size
			result := p.result(fmt.Sprintf("the log begins with its %d entries", p.Size))
			result.Consistent = true
			w.r.Pins = append(w.r.Pins, result)
		default:
			f := Finding{Kind: "pin", File: p.name, What: fmt.Sprintf(
				"some were rewritten after they were pinned, or there is a fork of the log: of its first %d entries the pin has the root %x, and here that is %x", p.Size, p.Root, root,
			)}
			if p.Size > agreed {
				f.Entries = &Range{First: agreed, Last: p.Size - 1}
			}
			w.r.find(f)
			w.r.Pins = append(w.r.Pins, p.result(fmt.Sprintf("its %d entries are not those that the log begins with", p.Size)))
		}
	}
	return nil
}
