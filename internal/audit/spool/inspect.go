package spool

import (
	"fmt"

	"github.com/parleymesh/parley/internal/audit"
)

// A record as it stands in a mapping; a nil body is one that is missing.
type record struct {
	index uint64
	leaf  audit.Hash
	body  []byte // in the mapping, but for one that is torn
	off   int
	word  uint64
	torn  bool // a process was killed while it wiped the body, or is at it
}

// parse reads the record at off, whatever its index. Nothing that it returns
// was trusted before its sum was checked. What is wiped meanwhile is read again.
func parse(data []byte, off int) (r record, size int, ok bool) {
	if off < 0 || len(data)-off < recordHead {
		return r, 0, false
	}
	for {
		w := word(data, off).Load()
		if r, size, ok = parseAs(data, off, w); ok || word(data, off).Load() == w {
			return r, size, ok
		}
	}
}

// parseAs reads the record at off, whose word is w.
func parseAs(data []byte, off int, w uint64) (r record, size int, ok bool) {
	n := int(w >> 32 & 0xffff)
	if w>>48 != published || n == 0 || n > len(data)-off-recordHead {
		return r, 0, false
	}
	r = record{
		off: off, word: w,
		index: order.Uint64(data[off+offIndex:]),
		leaf:  audit.Hash(data[off+offLeaf : off+recordHead]),
		body:  data[off+recordHead : off+recordHead+n],
	}
	size = min(recordSize(n), len(data)-off)
	for _, pad := range data[off+recordHead+n : off+size] {
		if pad != 0 {
			return r, 0, false
		}
	}
	whole := func(body []byte) bool {
		return bodySum(body, data[off+offIndex:off+offLeaf]) == uint32(w)
	}
	if !whole(r.body) {
		r.body = audit.Untear(r.body, whole)
		r.torn = true
	}
	return r, size, r.body != nil
}

// A loss is a run of entries that a segment should hold and does not.
type loss struct {
	from, to uint64 // both included
	why      string
}

func (l loss) String() string {
	if l.from == l.to {
		return fmt.Sprintf("entry %d %s", l.from, l.why)
	}
	return fmt.Sprintf("entries %d to %d: each %s", l.from, l.to, l.why)
}

// contents are what a segment holds.
type contents struct {
	log     string // empty where the header is damaged
	header  error  // what is wrong with the header
	records []record
	losses  []loss
	tail    int  // offset behind the last record
	sealed  bool // every record is marked as sealed
	// fresh is the first entry that was not sealed: unended where that is not
	// known, as of a segment with another behind it.
	fresh  uint64
	owed   uint32
	boot   [16]byte
	edge   []audit.Hash // of the tree at the first record, if edged
	edged  bool
	stands []*stand // the whole checkpoints, older first
	text   []byte   // scratch
}

// unended is the end of a segment that may still grow: no index reaches it.
const unended = 1 << 63

// inspect goes through a segment whose first entry is first. end is the first
// entry of the segment behind it, or unended for the last segment. It never
// panics, whatever data holds.
func inspect(data []byte, first, end uint64) *contents {
	c := &contents{tail: headerSize, fresh: unended}
	marked := c.readHeader(data, first)
	if c.header == nil && end == unended {
		c.fresh = first + uint64(marked)
		for _, st := range c.stands {
			c.fresh = max(c.fresh, st.size)
		}
	}
	next := first
	for {
		r, size, ok := parse(data, c.tail)
		if ok && r.index == next && next == end && c.header == nil {
			c.header = fmt.Errorf("the file goes on behind entry %d, with which the next one begins", end)
		}
		if ok && r.index == next && next < end {
			if why := c.add(r, next < first+uint64(marked)); why != "" {
				if word(data, c.tail).Load() != r.word {
					continue // wiped while we looked
				}
				c.lose(next, next+1, why)
			}
			c.tail += size
			next++
			continue
		}
		off, index, found := resume(data, c.tail, next, end)
		if !found {
			break
		}
		if r, _, ok := parse(data, c.tail); ok && r.index == next {
			continue // published while we searched
		}
		c.lose(next, index, "is damaged")
		c.tail, next = off, index
	}
	if end == unended {
		end = max(next, first+uint64(marked))
		for _, st := range c.stands {
			end = max(end, st.size) // what was signed was there
		}
	}
	if next < end {
		c.lose(next, end, "is missing")
	}
	c.sealed = c.header == nil && len(c.losses) == 0 && int(marked) == len(c.records)
	return c
}

// readHeader returns the number of records that are marked as sealed.
func (c *contents) readHeader(data []byte, first uint64) uint32 {
	h, err := readHeader(data)
	if err != nil {
		c.header = err
		return 0
	}
	c.log = h.log
	if h.first != first {
		c.header = fmt.Errorf("the header says that the file begins with entry %d", h.first)
		return 0
	}
	marked, ok1 := unchecked(word(data, offSealed).Load())
	owed, ok2 := unchecked(word(data, offLost).Load())
	if !ok1 || !ok2 {
		c.header = errHeader
		return 0
	}
	c.owed = owed
	copy(c.boot[:], data[offBoot:])
	c.edge, c.edged = readEdge(data, first)
	c.stands = readStands(data)
	return marked
}

// add takes a whole record, or says what is wrong with it. One that is not marked as
// sealed may have no leaf hash yet, or one that a loss of power cut in two: it is
// computed again.
func (c *contents) add(r record, sealed bool) (why string) {
	text, err := canonical(c.text[:0], r.body)
	if err != nil {
		return "is no event"
	}
	c.text = text
	if want := audit.LeafHash(text); r.leaf != want {
		if sealed {
			return "does not have the leaf hash of its body"
		}
		r.leaf = want
	}
	c.records = append(c.records, r)
	return ""
}

// lose notes that the entries from..to-1 are not there.
func (c *contents) lose(from, to uint64, why string) {
	c.losses = append(c.losses, loss{from, to - 1, why})
}

// resume finds the next whole record behind off, whose index must be above next
// and below end. Indexes grow by one a record, so none can be
// further away than the file has room for.
func resume(data []byte, off int, next, end uint64) (at int, index uint64, found bool) {
	limit := min(next+uint64(len(data)/recordHead), end)
	for at = off + 8; at+recordHead <= len(data); at += 8 {
		if word(data, at).Load()>>48 != published {
			continue
		}
		if r, _, ok := parse(data, at); ok && r.index > next && r.index < limit {
			return at, r.index, true
		}
	}
	return 0, 0, false
}
