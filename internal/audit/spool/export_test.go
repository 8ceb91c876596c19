package spool

import (
	"context"
	"os"

	"github.com/parleymesh/parley/internal/audit"
)

// OpenAllocating is Open with another way to reserve the space of a segment.
func OpenAllocating(cfg Config, allocate func(*os.File, int64) error) (*Spool, error) {
	return open(cfg, disk{allocate, system().sync})
}

// OpenSyncing is Open with another way to sync.
func OpenSyncing(cfg Config, sync func([]byte) error) (*Spool, error) {
	return open(cfg, disk{allocate, sync})
}

// Sync is the real way.
func Sync(data []byte) error { return system().sync(data) }

// Allocate is the real way.
func Allocate(f *os.File, size int64) error { return allocate(f, size) }

// Where things stand in a file, for tests that damage it.
const (
	HeaderSize = headerSize
	RecordHead = recordHead
	OffFirst   = offFirst
	OffSum     = offSum
	OffSealed  = offSealed
	OffLost    = offLost
	OffBoot    = offBoot
	OffLeaf    = offLeaf
)

// RecordSize is how much of a segment a body takes.
func RecordSize(body int) int { return recordSize(body) }

// Inspect is what recovery and Verify see of a segment: how many records, how
// many entries lost, and whether all is well.
func Inspect(data []byte, first, end uint64) (records int, lost uint64, ok bool) {
	if end == 0 {
		end = unended
	}
	c := inspect(data, first, end)
	for _, l := range c.losses {
		lost += l.to - l.from + 1
	}
	return len(c.records), lost, c.header == nil && len(c.losses) == 0
}

// OffNotes is where the first checkpoint stands.
const OffNotes = offNotes

// ReadStand reads a page of a checkpoint.
func ReadStand(page []byte) (size uint64, ok bool) {
	st := readStand(page)
	if st == nil || st.check("", nil) != nil {
		return 0, false
	}
	return st.size, true
}

// WriteCheckpoint signs the tree of the newest checkpoint of a segment anew, into both
// places.
func WriteCheckpoint(data []byte, sign func(dst []byte, size uint64, root audit.Hash) []byte) []byte {
	all := readStands(data)
	st := all[len(all)-1]
	st.note = sign(nil, st.size, st.tree().Root())
	st.write(data, 0)
	st.write(data, 1)
	return data
}

// Seal seals what is recorded now.
func Seal(s *Spool) error { return s.sealAll(false) }

// RunUnwatched is Run without the watchdog, whose events come when it looks.
func RunUnwatched(ctx context.Context, s *Spool) error { return s.run(ctx, func(context.Context) {}) }
