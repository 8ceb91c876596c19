package spool

import (
	"context"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
)

// A record begins at a multiple of 8:
//
//	 0  published word: mark (16 bits), length of the body (16), CRC-32C (32)
//	 8  index, 8 bytes
//	16  leaf hash, 32 bytes; zero until the record is sealed
//	48  body, then zeros up to a multiple of 8
//
// The sum covers the body and then the index. All but the word is written first;
// the one atomic store of the word publishes the record. A process that is killed
// in between leaves the word zero, and a zero word ends the segment. What is said of a
// person is wiped from the body once it is collected: see wipe.go.
const (
	// published marks a word. No body has its first byte in it, so that none can look
	// like a record to who searches for one behind a damaged place: see pack. A
	// commitment may have it: nobody can choose what that is.
	published  = 0xF5FA
	recordHead = 48
	offIndex   = 8
	offLeaf    = 16
)

func recordSize(body int) int { return (recordHead + body + 7) &^ 7 }

// bodySum is the sum of a record, whose index is given as it stands.
func bodySum(body, index []byte) uint32 {
	return crc32.Update(crc32.Checksum(body, castagnoli), castagnoli, index)
}

func publishedWord(length int, sum uint32) uint64 {
	return published<<48 | uint64(length)<<32 | uint64(sum)
}

// Record appends e. When it returns nil, a kill of this process cannot lose e;
// a loss of power can until Run sealed it. It waits for a new segment for at most
// 250 ms, and not at all while the disk is known to be full: fault.LogFull then,
// but for events of audit.Security, for which some room is set aside.
// After an error e is not in the log, is counted, and a gap event with the count
// is the first to be recorded once that works again.
func (s *Spool) Record(e *audit.Event) error {
	buf := s.scratch.Get().(*[]byte)
	defer s.scratch.Put(buf)
	body, err := pack((*buf)[:0], e)
	if err != nil {
		err = fmt.Errorf("record %s %s: %w", e.Action, e.ID, err)
	} else {
		*buf = body
		err = s.append(body, e.Class == audit.Security)
	}
	if err != nil {
		s.owe()
		return err
	}
	select {
	case s.seal <- struct{}{}:
	default: // the sealer knows
	}
	return nil
}

// append publishes body, behind the gap event that is owed. urgent says that it may
// take of the reserve.
func (s *Spool) append(body []byte, urgent bool) error {
	sum := crc32.Checksum(body, castagnoli)
	var wait context.Context
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.usable(); err != nil {
			return err
		}
		if g := s.active(); g.ill == "" && (urgent || !g.reserve) {
			if s.lost.count == 0 && s.put(body, sum) {
				return nil
			}
			if s.lost.count > 0 && s.settle(len(body)) {
				continue
			}
		}
		if s.spare != nil {
			_ = s.rotate(&s.spare) // where it fails there is none, and another is waited for
			continue
		}
		if s.spareErr != nil && urgent && s.reserve != nil {
			_ = s.rotate(&s.reserve)
			continue
		}
		if s.spareErr != nil {
			return s.spareErr
		}
		if wait == nil {
			ctx, cancel := context.WithTimeout(context.Background(), maxBlock)
			defer cancel()
			wait = ctx
		}
		if err := s.await(wait); err != nil {
			return err
		}
	}
}

func (s *Spool) usable() error {
	if s.closed {
		return ErrClosed
	}
	return s.broken
}

// await lets go of mu until there is news of a segment.
func (s *Spool) await(ctx context.Context) error {
	more := s.more
	s.mu.Unlock()
	defer s.mu.Lock()
	poke(s.need)
	select {
	case <-more:
		return nil
	case <-ctx.Done():
		return fault.New(fault.LogFull, "look for what keeps the disk busy; recording goes on by itself",
			"the audit log in %s got no space within %s", s.cfg.Dir, maxBlock)
	}
}

// active is the segment that is recorded to.
func (s *Spool) active() *segment { return s.segments[len(s.segments)-1] }

// put publishes body in the active segment if it fits there. A segment whose file
// was cut short is ill from then on.
func (s *Spool) put(body []byte, sum uint32) (done bool) {
	g := s.active()
	size := recordSize(len(body))
	if size > len(g.data)-g.end {
		return false
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			_ = faulted(p)
			s.fall(g, truncated)
		}
	}()
	write(g.data, g.end, s.next, body, sum)
	g.end += size
	s.next++
	return true
}

// fall notes that g is of no use. The caller holds mu.
func (s *Spool) fall(g *segment, why defect) {
	if g.ill == "" {
		g.ill = why
	}
	poke(s.seal) // the sealer meets it, and has it mended
}

// write is the one place that publishes. The leaf is cleared because a record
// that a killed process had half written may have left bytes there.
func write(data []byte, off int, index uint64, body []byte, sum uint32) {
	r := data[off:]
	order.PutUint64(r[offIndex:], index)
	clear(r[offLeaf:recordHead])
	copy(r[recordHead:], body)
	sum = crc32.Update(sum, castagnoli, r[offIndex:offLeaf])
	word(data, off).Store(publishedWord(len(body), sum))
}

// settle records the gap event that is owed, if it fits together with the event
// of length bytes that waits behind it: one gap, and not one for each event that
// a nearly full segment refuses.
func (s *Spool) settle(length int) bool {
	since := "the process before this one began to lose them"
	if !s.lost.since.IsZero() {
		since = s.lost.since.UTC().Format("2006-01-02T15:04:05.000Z")
	}
	e := s.gapEvent("not_recorded", fmt.Sprintf("%d events since %s could not be recorded", s.lost.count, since), s.next, uint64(s.lost.count))
	body, err := pack(nil, e)
	if err != nil { // the clock is outside the years of RFC 3339
		s.broken = fmt.Errorf("record a gap: %w", err)
		return false
	}
	g := s.active()
	if recordSize(len(body))+recordSize(length) > len(g.data)-g.end || !s.put(body, crc32.Checksum(body, castagnoli)) {
		return false
	}
	s.cfg.Logger.Warn("audit events were lost", "log", s.name, "count", s.lost.count, "index", s.next-1)
	s.lost = lost{}
	s.writeLost()
	return true
}

// owe counts one lost event, in the mapping too: a killed process owes it still.
func (s *Spool) owe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if s.lost == (lost{}) {
		s.lost.since = s.cfg.Clock.Now()
	}
	if s.lost.count < 1<<32-1 {
		s.lost.count++
	}
	s.writeLost()
}

func (s *Spool) writeLost() {
	g := s.active()
	if guard(func() { word(g.data, offLost).Store(checked(s.lost.count)) }) != nil {
		s.fall(g, truncated)
	}
}

// rotate puts *from, the spare or the reserve, into use; where that fails it is gone
// all the same. Its header is whole before it gets its name.
func (s *Spool) rotate(from **segment) error {
	g := *from
	*from = nil
	poke(s.need)
	path := filepath.Join(s.cfg.Dir, segmentName(s.next))
	err := guard(func() { s.begin(g, s.next) })
	if err == nil {
		err = os.Rename(g.path, path)
	}
	if err != nil {
		// It would get its name at the next start, and end the file before it too early.
		_ = guard(func() { clear(g.data[:len(magic)]) })
		g.drop()
		poke(s.seal)
		return fmt.Errorf("new segment of the audit log: %w", err)
	}
	g.path = path
	old := s.active()
	s.segments = append(s.segments, g)
	s.writeLost()
	_ = guard(func() { word(old.data, offLost).Store(0) }) // what is not there owes nothing
	return nil
}

// poke wakes the owner of c if it is not awake already.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
