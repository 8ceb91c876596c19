package collect_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/clock"
)

// log is a source in memory.
type log struct {
	mu        sync.Mutex
	entries   []audit.Entry
	discarded uint64
	grown     chan struct{}
	largest   int // batch that was read
}

func newLog() *log { return &log{grown: make(chan struct{})} }

func (l *log) add(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range n {
		body := fmt.Appendf(nil, "entry %d", len(l.entries))
		l.entries = append(l.entries, audit.Entry{Log: "log", Index: uint64(len(l.entries)), Leaf: audit.LeafHash(body), Body: body})
	}
	close(l.grown)
	l.grown = make(chan struct{})
}

func (l *log) Read(from uint64, max int) ([]audit.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from < l.discarded {
		return nil, errors.New("discarded")
	}
	batch := l.entries[from:min(uint64(len(l.entries)), from+uint64(max))]
	l.largest = max
	return batch, nil
}

func (l *log) Wait(ctx context.Context, from uint64) error {
	for {
		l.mu.Lock()
		n, grown := uint64(len(l.entries)), l.grown
		l.mu.Unlock()
		if from < n {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *log) Discard(before uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.discarded = max(l.discarded, before)
	return nil
}

// sink keeps one log, and fails as it is told to.
type sink struct {
	mu      sync.Mutex
	kept    []audit.Entry
	down    error
	lie     error // returned although the batch was kept: a reply that got lost
	batches []time.Time
}

func (s *sink) Cursor(context.Context, string) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(len(s.kept)), s.down
}

func (s *sink) Collect(_ context.Context, name string, entries []audit.Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches = append(s.batches, time.Now())
	if s.down != nil {
		return s.down
	}
	if name != "log" || len(entries) == 0 || entries[0].Index != uint64(len(s.kept)) {
		return fmt.Errorf("%s from %d on, %d are kept: %w", name, entries[0].Index, len(s.kept), collect.ErrHole)
	}
	s.kept = append(s.kept, entries...)
	err := s.lie
	s.lie = nil
	return err
}

func (s *sink) set(f func()) { s.mu.Lock(); defer s.mu.Unlock(); f() }

func (s *sink) len() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.kept) }

// start runs collect until stop; both are within a bubble.
func start(t *testing.T, l *log, s *sink) (output *bytes.Buffer, stop func()) {
	t.Helper()
	output = new(bytes.Buffer)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- collect.Run(ctx, "log", l, s, clock.System{}, slog.New(slog.NewTextHandler(output, nil)))
	}()
	return output, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func TestRunDeliversInBatchesAndDiscards(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, s := newLog(), &sink{}
		l.add(1000)
		out, stop := start(t, l, s)
		synctest.Wait()
		if s.len() != 1000 || l.discarded != 1000 || len(s.batches) < 2 {
			t.Errorf("%d kept in %d batches, discarded below %d", s.len(), len(s.batches), l.discarded)
		}
		l.add(3)
		synctest.Wait()
		if s.len() != 1003 || l.discarded != 1003 {
			t.Errorf("%d kept, discarded below %d", s.len(), l.discarded)
		}
		stop()
		if out.Len() > 0 {
			t.Errorf("logged: %s", out)
		}
	})
}

func TestRunResumesAtTheSinksCursor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, s := newLog(), &sink{}
		l.add(10)
		s.kept, _ = l.Read(0, 7)
		_, stop := start(t, l, s)
		synctest.Wait()
		if s.len() != 10 {
			t.Errorf("%d kept", s.len())
		}
		stop()
	})
}

// A reply that is lost: the batch was kept, and is not delivered twice.
func TestRunAsksAgainAfterALostReply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, s := newLog(), &sink{lie: errors.New("connection reset")}
		l.add(10)
		_, stop := start(t, l, s)
		time.Sleep(time.Second)
		synctest.Wait()
		if s.len() != 10 || len(s.batches) != 1 {
			t.Errorf("%d kept in %d batches", s.len(), len(s.batches))
		}
		stop()
	})
}

func TestRunBacksOffAndLogsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, s := newLog(), &sink{}
		out, stop := start(t, l, s)
		synctest.Wait()
		s.set(func() { s.down = errors.New("out of order") })
		l.add(5)
		time.Sleep(time.Minute)
		synctest.Wait()
		tries := len(s.batches)
		s.set(func() { s.down = nil })
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s.len() != 5 || l.discarded != 5 {
			t.Errorf("%d kept after it works again", s.len())
		}
		stop()
		if tries != 1 { // then the cursor cannot be had
			t.Errorf("%d batches while the sink is down", tries)
		}
		if n := strings.Count(out.String(), "level=ERROR"); n != 2 { // one for Collect, one for Cursor
			t.Errorf("%d errors logged: %s", n, out)
		}
		if n := strings.Count(out.String(), "delivered again"); n != 1 {
			t.Errorf("%d times delivered again: %s", n, out)
		}
	})
}

func TestRunNeverSkips(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, s := newLog(), &sink{}
		l.add(10)
		l.entries[4].Index = 99 // the sink will find a hole for ever
		s.kept = append(s.kept, l.entries[:4]...)
		_, stop := start(t, l, s)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if s.len() != 4 || l.discarded > 4 {
			t.Errorf("%d kept, discarded below %d", s.len(), l.discarded)
		}
		if n := len(s.batches); n < 100 || n > 130 { // every 5 s after the first few
			t.Errorf("%d tries in 10 minutes", n)
		}
		stop()
	})
}
