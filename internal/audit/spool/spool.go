// Package spool is an agent's own log of events: preallocated, memory-mapped
// segment files that the request path copies into, and a sealer beside it that
// hashes, syncs, signs and makes readable what was copied. A watchdog compares the
// files with what is mapped, and mends what it finds. audit/collect carries the
// sealed entries to the server.
//
// It refuses to drop in silence: whatever is lost, by a full disk, a loss of
// power or a damaged file, stands in the log as a numbered audit.gap event. It
// refuses to share its directory with another process, and to delete a file that it
// did not make.
package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/sys/unix"
)

// Errors of a Spool.
var (
	ErrClosed    = errors.New("the audit log is closed")
	ErrDiscarded = errors.New("the entry was discarded")
)

const (
	// defaultSegment and minSegment bound Config.SegmentSize: a segment holds at
	// least one event of the largest size and the gap event before it.
	defaultSegment = 8 << 20
	minSegment     = 256 << 10
	maxSegment     = 1 << 30

	// sealEvery is how long a published record waits for the sealer, so that
	// with the sync itself a loss of power costs at most 100 ms of events.
	sealEvery = 50 * time.Millisecond
	// maxBlock is how long Record waits for a segment.
	maxBlock = 250 * time.Millisecond
	// retryEvery is how often a segment is asked for while the disk is full.
	retryEvery = 100 * time.Millisecond
	// reserveSize is how much of the disk is kept for what must be recorded although
	// it is full: some 1500 events.
	reserveSize = 1 << 20
	// maxOpen is of how many segments the files stay open, so that what was in them
	// can be had after they were deleted.
	maxOpen = 64
)

// Config is what a Spool needs. Dir, Log, Clock and Logger are required.
type Config struct {
	// Dir is the log's own directory, made with mode 0700 where it is absent.
	Dir string
	// Log is the beginning of the log's name, commonly the host's name. The
	// name is made of it and eight random digits when Dir is first used, and
	// then kept whatever Log says: see Spool.Log. In events of the spool's own
	// it is the host.
	Log string
	// SegmentSize is the size of a segment file in bytes, 256 KiB to 1 GiB;
	// 0 is 8 MiB.
	SegmentSize int64
	// Key is the log's own key, by the name of the log. Without it no checkpoint is
	// signed.
	Key    func(log string) (*checkpoint.Signer, error)
	Clock  clock.Clock
	Logger *slog.Logger
}

// A Spool is an open log. It is safe for concurrent use.
type Spool struct {
	cfg  Config
	name string
	boot [16]byte // this start of the machine, zero where that is unknown
	lock *os.File
	// repaired is set by Open alone.
	repaired []Problem
	disk     disk
	signer   *checkpoint.Signer // nil where nothing is signed
	scratch  sync.Pool          // *[]byte for encodings
	seal     chan struct{}
	need     chan struct{}
	stocking sync.Mutex // held while segments are prepared

	// sealing is held by the one sealer or watchdog at work; it guards what
	// follows up to dir, and lock.
	sealing sync.Mutex
	text    []byte       // scratch
	nodes   []audit.Hash // scratch
	tree    *audit.Tree  // of all sealed entries; nil where that is not known
	slot    int          // where the next checkpoint goes
	// helpless is why the last attempt to mend something failed.
	helpless string
	dir      *os.File // the directory as it was opened
	// reading guards reader and wiped, and keeps files from being removed under a reader.
	reading sync.Mutex
	reader  reader
	wiped   wiper

	// mu guards all below. It is never held over a system call but the rename
	// that puts a prepared segment into use.
	mu       sync.Mutex
	segments []*segment // all, oldest first; the last is active
	next     uint64
	spare    *segment      // prepared, or nil
	reserve  *segment      // for a full disk, or nil
	spareErr error         // why there is no spare
	more     chan struct{} // closed when spare or spareErr changes
	lost     lost
	sealed   uint64
	signed   *stand        // the newest checkpoint, or nil
	advanced chan struct{} // closed when sealed grows
	broken   error         // the disk fails; nothing is recorded meanwhile
	troubles map[defect]*trouble
	closed   bool
}

// disk is what is asked of the system; tests make it fail.
type disk struct {
	// allocate reserves the blocks of a new segment.
	allocate func(f *os.File, size int64) error
	sync     func(data []byte) error
}

func system() disk {
	return disk{allocate, func(data []byte) error { return unix.Msync(data, unix.MS_SYNC) }}
}

// lost counts events that could not be recorded since the last gap event.
type lost struct {
	count uint32
	since time.Time
}

// Open opens or makes the log in cfg.Dir and recovers what a killed process left
// there: records that it published are sealed, records that it had half written
// do not count, and what is missing or damaged is replaced by gap events, the
// damaged file being kept beside its successor. Where no file has a whole header
// they are all kept, and a new log begins. Another process's log is
// fault.LogBusy, no space fault.LogFull, files that may not be read or written
// fault.LogUnusable, and files of another log or version fault.LogBroken.
func Open(cfg Config) (*Spool, error) { return open(cfg, system()) }

func open(cfg Config, disk disk) (*Spool, error) {
	if cfg.SegmentSize == 0 {
		cfg.SegmentSize = defaultSegment
	}
	if cfg.SegmentSize < minSegment || cfg.SegmentSize > maxSegment {
		return nil, fmt.Errorf("audit log %s: a segment of %d bytes is not between %d and %d", cfg.Dir, cfg.SegmentSize, minSegment, maxSegment)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, unusable(err, cfg.Dir)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{
		cfg: cfg, lock: lock, disk: disk, boot: bootID(), troubles: map[defect]*trouble{},
		scratch: sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }},
		seal:    make(chan struct{}, 1), need: make(chan struct{}, 1),
		more: make(chan struct{}), advanced: make(chan struct{}),
	}
	if s.dir, err = os.Open(cfg.Dir); err == nil {
		err = s.recover()
	}
	if err != nil {
		s.unmap()
		return nil, errors.Join(unusable(err, cfg.Dir), unlockDir(lock))
	}
	return s, nil
}

// Log is the log's name, unique to its directory.
func (s *Spool) Log() string { return s.name }

// Next is the index of the next entry.
func (s *Spool) Next() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// Close seals what is recorded and lets go of the directory. Run must have
// returned. A second Close does nothing.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	broken := s.broken
	s.mu.Unlock()
	var err error
	if broken == nil {
		err = s.sealAll(true)
	}
	s.mu.Lock()
	close(s.advanced) // waiters see closed; nobody replaces the channel any more
	s.mu.Unlock()
	s.unmap()
	return errors.Join(err, unlockDir(s.lock))
}

// unmap drops every mapping and the spare file. Nobody records any more.
func (s *Spool) unmap() {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reader.drop()
	for _, g := range s.segments {
		g.drop()
	}
	for _, g := range []*segment{s.spare, s.reserve} {
		if g != nil {
			g.drop()
			os.Remove(g.path) // Open removes what stays
		}
	}
	s.spare, s.reserve = nil, nil
	if s.dir != nil {
		s.dir.Close()
	}
}

// gapEvent is a numbered loss as an event: count events at or before index.
func (s *Spool) gapEvent(reason, message string, index, count uint64) *audit.Event {
	e := s.event(audit.Gap, audit.Failure, reason, message)
	e.Gap = &audit.Range{From: index, To: index, Count: count}
	return e
}

// event is one of the log about itself.
func (s *Spool) event(action audit.Action, outcome audit.Outcome, reason, message string) *audit.Event {
	now := s.cfg.Clock.Now()
	return &audit.Event{
		ID: audit.NewID(now), Time: now, Class: audit.Security, Action: action, Outcome: outcome,
		Reason: reason, Message: message, Host: s.cfg.Log, Reporter: "agent",
	}
}

// unusable makes an error of the file system one that an operator can act on;
// others stay what they are.
func unusable(err error, dir string) error {
	var known *fault.Fault
	var at *fs.PathError
	if errors.As(err, &known) || !errors.As(err, &at) {
		return err
	}
	return fault.Wrap(at.Err, fault.LogUnusable, "ls -l "+dir+": the agent's user must be able to read and write all of it",
		"the audit log file %s cannot be used", at.Path)
}

// broke says that the files are not what this program wrote.
func broke(dir, format string, args ...any) error {
	return fault.New(fault.LogBroken, "keep "+dir+" for inspection and move it away: a new log is begun at the next start", format, args...)
}
