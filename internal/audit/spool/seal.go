package spool

import (
	"context"
	"fmt"
	"sync"

	"github.com/parleymesh/parley/internal/audit"
	"golang.org/x/sys/unix"
)

// Run seals what is recorded, 50 ms after it was, and keeps a segment prepared
// for the request path, until ctx ends: it then seals once more and returns nil.
// An error is a disk that does not sync; nothing is recorded after it, since
// nobody can say what such a disk has kept.
func (s *Spool) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var preparer sync.WaitGroup
	preparer.Go(func() { s.prepare(ctx) })
	defer preparer.Wait()
	defer cancel()
	for {
		select {
		case <-s.seal:
			_ = s.cfg.Clock.Sleep(ctx, sealEvery) // ends early with ctx
		case <-ctx.Done():
			return s.sealAll(false)
		}
		if err := s.sealAll(false); err != nil {
			return err
		}
	}
}

// prepare keeps a spare segment.
func (s *Spool) prepare(ctx context.Context) {
	for ctx.Err() == nil {
		if s.stock() {
			select {
			case <-s.need:
			case <-ctx.Done():
			}
			continue
		}
		_ = s.cfg.Clock.Sleep(ctx, retryEvery)
	}
}

// stock makes a spare if there is none and says whether there is one now.
func (s *Spool) stock() bool {
	s.mu.Lock()
	done, before := s.spare != nil || s.closed || s.broken != nil, s.spareErr
	s.mu.Unlock()
	if done {
		return true
	}
	g, err := s.create(spareName, s.cfg.SegmentSize)
	switch {
	case err != nil && before == nil:
		s.cfg.Logger.Error("the audit log gets no space", "log", s.name, "error", err)
	case err == nil && before != nil:
		s.cfg.Logger.Info("the audit log has space again", "log", s.name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spare, s.spareErr = g, err
	close(s.more)
	s.more = make(chan struct{})
	return err == nil
}

// sealAll seals every published record: leaf hashes into the records, those to
// the disk, then their count into the header, which a later sync takes along.
// With last, the counts are synced too and the log is marked as closed.
func (s *Spool) sealAll(last bool) error {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	s.mu.Lock()
	work, ends := s.mapped()
	s.mu.Unlock()
	if len(work) == 0 {
		return ErrClosed
	}
	for i, g := range work {
		err := s.sealSegment(g, ends[i])
		full := i < len(work)-1
		if err == nil && (full || last) {
			if !full {
				clear(g.data[offBoot : offBoot+len(s.boot)])
			}
			err = unix.Msync(g.data[:headerSize], unix.MS_SYNC)
		}
		if err != nil {
			err = fmt.Errorf("sync audit log %s: %w", g.path, err)
			s.cfg.Logger.Error("the audit log cannot be synced", "log", s.name, "error", err)
			s.fail(err)
			return err
		}
		if full {
			s.mu.Lock()
			g.unmap()
			s.mu.Unlock()
		}
	}
	s.advance(work[len(work)-1].sealNext)
	return nil
}

// mapped are the segments that may hold unsealed records, oldest first, and
// where their records end.
func (s *Spool) mapped() (work []*segment, ends []int) {
	for _, g := range s.segments {
		if g.data != nil {
			work, ends = append(work, g), append(ends, g.end)
		}
	}
	return work, ends
}

func (s *Spool) sealSegment(g *segment, end int) error {
	if g.sealOff == end && g.durable {
		return nil
	}
	for g.sealOff < end {
		body := bodyAt(g.data, g.sealOff)
		leaf := audit.LeafHash(body)
		copy(g.data[g.sealOff+offLeaf:], leaf[:])
		g.sealOff += recordSize(len(body))
		g.sealNext++
	}
	if err := unix.Msync(g.data[:end], unix.MS_SYNC); err != nil {
		return err
	}
	if !g.durable {
		if err := syncDir(s.cfg.Dir); err != nil {
			return err
		}
		g.durable = true
	}
	word(g.data, offSealed).Store(checked(uint32(g.sealNext - g.first)))
	return nil
}

// bodyAt is the body of a record that is known to be whole.
func bodyAt(data []byte, off int) []byte {
	n := int(word(data, off).Load() >> 32 & 0xffff)
	return data[off+recordHead : off+recordHead+n]
}

// advance makes entries before sealed readable.
func (s *Spool) advance(sealed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sealed == s.sealed {
		return
	}
	s.sealed = sealed
	close(s.advanced)
	s.advanced = make(chan struct{})
}

// fail ends recording for good and wakes whoever waits.
func (s *Spool) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
	close(s.advanced)
	s.advanced = make(chan struct{})
	close(s.more)
	s.more = make(chan struct{})
}

// Wait returns when entry from is sealed, or ctx ends, or the log is closed or broken.
func (s *Spool) Wait(ctx context.Context, from uint64) error {
	for {
		s.mu.Lock()
		sealed, advanced, err := s.sealed, s.advanced, s.usable()
		s.mu.Unlock()
		if from < sealed {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
