package spool

import "os"

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
