package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
)

// Run seals what is recorded, 50 ms after it was, keeps a segment prepared for the
// request path, and has the watchdog look after the files, until ctx ends: it then
// seals once more. What fails meanwhile is recorded, and tried again; an error says
// that it still did at the end.
func (s *Spool) Run(ctx context.Context) error { return s.run(ctx, s.watch) }

func (s *Spool) run(ctx context.Context, watch func(context.Context)) error {
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { s.prepare(ctx) })
	beside.Go(func() { watch(ctx) })
	defer beside.Wait()
	defer cancel()
	for {
		select {
		case <-s.seal:
			_ = s.cfg.Clock.Sleep(ctx, sealEvery) // ends early with ctx
		case <-ctx.Done():
			err := s.sealAll(false)
			if err != nil {
				s.look()
				err = s.sealAll(false)
			}
			return err
		}
		switch err := s.sealAll(false); {
		case errors.Is(err, ErrClosed):
			return err
		case err != nil:
			s.look()
		}
	}
}

// prepare keeps a spare segment and the reserve.
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

// stock makes a spare and the reserve where they are not there, and says whether
// they are now. The spare comes first: calls wait for it.
func (s *Spool) stock() bool {
	s.stocking.Lock()
	defer s.stocking.Unlock()
	s.mu.Lock()
	spare, reserve, before := s.spare != nil, s.reserve != nil, s.spareErr
	closed := s.closed
	s.mu.Unlock()
	if closed || spare && reserve {
		return true
	}
	if !spare {
		g, err := s.create(spareName, s.cfg.SegmentSize)
		switch {
		case err != nil && before == nil:
			s.cfg.Logger.Error("the audit log gets no space", "log", s.name, "error", err)
		case err == nil && before != nil:
			s.cfg.Logger.Info("the audit log has space again", "log", s.name)
		}
		s.mu.Lock()
		s.spare, s.spareErr = g, err
		close(s.more)
		s.more = make(chan struct{})
		s.mu.Unlock()
		spare = err == nil
	}
	if reserve {
		return spare
	}
	g, err := s.create(reserveName, reserveSize)
	if err != nil {
		return false
	}
	g.reserve = true
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserve = g
	return spare
}

// sealAll seals every published record: leaf hashes into the records, those to
// the disk, then their count into the header, which a later sync takes along, and
// the signed checkpoint.
// With last, the counts are synced too and the log is marked as closed.
func (s *Spool) sealAll(last bool) error {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	return s.sealMapped(last)
}

// sealMapped is sealAll for who holds sealing.
func (s *Spool) sealMapped(last bool) error {
	s.mu.Lock()
	work, ends := s.mapped()
	s.mu.Unlock()
	if len(work) == 0 {
		return ErrClosed
	}
	for i, g := range work {
		if err := s.sealOne(g, ends[i], i < len(work)-1); err != nil {
			return err
		}
	}
	g := work[len(work)-1]
	g.ready(ends[len(work)-1])
	err := guard(func() { s.sign(g) })
	if err == nil && last {
		err = guard(func() { clear(g.data[offBoot : offBoot+len(s.boot)]) })
		if err == nil {
			err = s.disk.sync(g.data[:headerSize])
		}
	}
	if err != nil {
		return s.failed(g, err)
	}
	s.advance(g.sealNext)
	return nil
}

// sealOne seals g as far as end. Where g is full, nothing follows, and its mapping is
// let go of.
func (s *Spool) sealOne(g *segment, end int, full bool) error {
	s.mu.Lock()
	ill := g.ill
	s.mu.Unlock()
	if ill != "" {
		return fmt.Errorf("audit log %s: %s", g.path, ill.text())
	}
	err := s.sealSegment(g, end)
	if err == nil && full {
		err = s.disk.sync(g.data[:headerSize])
	}
	if err != nil {
		return s.failed(g, err)
	}
	if full {
		s.mu.Lock()
		g.unmap()
		s.limitOpen()
		s.mu.Unlock()
	}
	return nil
}

// limitOpen closes the files of all but the newest segments. The caller holds mu.
func (s *Spool) limitOpen() {
	for _, g := range s.segments[:max(0, len(s.segments)-maxOpen)] {
		if g.data == nil {
			g.forget()
		}
	}
}

// failed has g mended. A disk that does not sync is recorded to no more until then:
// nobody can say what it has kept.
func (s *Spool) failed(g *segment, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case errors.Is(err, errFault):
		s.fall(g, truncated)
		return err
	case errors.Is(err, errChanged):
		s.fall(g, damaged)
		return err
	}
	err = fmt.Errorf("sync audit log %s: %w", g.path, err)
	g.ill, s.broken = unsynced, err
	close(s.advanced)
	s.advanced = make(chan struct{})
	close(s.more)
	s.more = make(chan struct{})
	return err
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
	var err error
	if fault := guard(func() { err = s.hash(g, end) }); fault != nil || err != nil {
		return cmp.Or(fault, err)
	}
	if err := s.disk.sync(g.data[:end]); err != nil {
		return err
	}
	if !g.durable {
		if err := syncDir(s.cfg.Dir); err != nil {
			return err
		}
		g.durable = true
	}
	return guard(func() { word(g.data, offSealed).Store(checked(uint32(g.sealNext - g.first))) })
}

// hash puts leaf hashes into records and the tree, and the edge of the tree at its
// first record into g.
func (s *Spool) hash(g *segment, end int) error {
	if !g.edged && s.tree != nil && s.tree.Size() == g.first {
		g.edge, g.edged = s.tree.Edge(), true
	}
	if g.sealOff == headerSize && g.sealOff < end {
		g.writeEdge()
	}
	for g.sealOff < end {
		if word(g.data, g.sealOff).Load()>>48 != published || order.Uint64(g.data[g.sealOff+offIndex:]) != g.sealNext {
			return errChanged
		}
		body := bodyAt(g.data, g.sealOff)
		text, err := canonical(s.text[:0], body)
		if err != nil {
			return errChanged
		}
		leaf := audit.LeafHash(text)
		s.text = text
		copy(g.data[g.sealOff+offLeaf:], leaf[:])
		g.sealOff += recordSize(len(body))
		if s.tree != nil && s.tree.Size() == g.sealNext {
			s.nodes = s.tree.AppendNodes(s.nodes[:0], leaf) // Append would make room for them each time
		}
		g.sealNext++
	}
	return nil
}

// sign puts a checkpoint of all that is sealed into the header of g, which has the
// newest records, if there is anything new.
func (s *Spool) sign(g *segment) {
	if s.signer == nil || s.tree == nil || s.tree.Size() != g.sealNext || g.sealNext == 0 || s.signed != nil && s.signed.size == g.sealNext {
		return
	}
	st := &stand{size: s.tree.Size(), edge: s.tree.Edge(), note: s.signer.Sign(nil, s.tree.Size(), s.tree.Root())}
	st.write(g.data[:headerSize], s.slot)
	s.slot = 1 - s.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signed = st
}

// Key is the public key by which checkpoints of the log are verified, nil where none
// are signed.
func (s *Spool) Key() *checkpoint.Verifier { return s.verifier() }

// Checkpoint is the newest signed checkpoint and how many entries it is of; a nil
// note where there is none.
func (s *Spool) Checkpoint() (size uint64, note []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signed == nil {
		return 0, nil
	}
	return s.signed.size, s.signed.note
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
