package offline

import (
	"encoding/json"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

// neighbours bounds how far from a finding an event is looked for that tells when.
const neighbours = 4 * tiles.Width

// when adds to the findings the times of the events beside them, and to the report
// those of the first and the last.
func (w *walk) when() {
	w.r.First, _ = timeOf(w.first)
	w.r.Last, _ = timeOf(w.last)
	for i := range w.r.Findings {
		f := &w.r.Findings[i]
		if f.Entries == nil || w.ctx.Err() != nil {
			continue
		}
		if first := min(f.Entries.First, w.size); first > 0 {
			f.After = w.near(first-1, false)
		}
		if f.Entries.Last+1 < w.size {
			f.Before = w.near(f.Entries.Last+1, true)
		}
	}
}

// near is the time of the event at n, or else of the nearest one in a direction
// that is in the tree.
func (w *walk) near(n uint64, up bool) time.Time {
	for range neighbours {
		if body := w.body(n); body != nil {
			if at, ok := timeOf(body); ok {
				return at
			}
		}
		if up && n+1 >= w.size || !up && n == 0 {
			break
		}
		if n++; !up {
			n -= 2
		}
	}
	return time.Time{}
}

// body is the entry at n where its hash is that of its tile.
func (w *walk) body(n uint64) []byte {
	if id := tiles.At(w.size, 0, n/tiles.Width); w.beside == nil || w.beside.n != id.N {
		w.beside = &bundle{n: id.N}
		w.beside.entries, _ = w.dir.Bundle(id.N, id.Width)
		w.beside.hashes, _ = w.dir.Tile(id)
	}
	i := int(n % tiles.Width)
	if i >= len(w.beside.entries) || len(w.beside.hashes) < 32*i+32 {
		return nil
	}
	if body := w.beside.entries[i]; leafHash(body) == audit.Hash(w.beside.hashes[32*i:32*i+32]) {
		return body
	}
	return nil
}

// A bundle is the entries and hashes of tile n of level 0.
type bundle struct {
	n       uint64
	entries [][]byte
	hashes  []byte
}

// timeOf is the time of an event, of whatever schema.
func timeOf(body []byte) (at time.Time, ok bool) {
	var e struct {
		Time time.Time `json:"time"`
	}
	if json.Unmarshal(body, &e) != nil || e.Time.IsZero() {
		return time.Time{}, false
	}
	return e.Time.UTC(), true
}
