package audit_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
)

func TestThrottle(t *testing.T) {
	t.Parallel()
	var th audit.Throttle[string]
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		kind string
		at   time.Duration
		more int
		due  bool
	}{
		{"a", 0, 0, true},
		{"a", 0, 0, false},
		{"b", time.Second, 0, true}, // each kind for itself
		{"a", 9*time.Second + 999*time.Millisecond, 0, false},
		{"a", 10 * time.Second, 2, true},
		{"a", 10 * time.Second, 0, false},
		{"a", 40 * time.Second, 1, true},
		{"a", 50 * time.Second, 0, true},
		{"a", 10 * time.Second, 0, true}, // the clock was set back
		{"a", 11 * time.Second, 0, false},
	} {
		if more, due := th.Count(step.kind, start.Add(step.at)); more != step.more || due != step.due {
			t.Errorf("%s at %s: %d, %v, want %d, %v", step.kind, step.at, more, due, step.more, step.due)
		}
	}
}

// However many kinds there are, it stays small, and none is left out for ever.
func TestThrottleOfManyKinds(t *testing.T) {
	t.Parallel()
	var th audit.Throttle[int]
	now := time.Now()
	due := 0
	for i := range 10_000 {
		if _, ok := th.Count(i, now); ok {
			due++
		}
	}
	if due != 10_000 {
		t.Errorf("%d of 10000 first ones were due", due)
	}
	if n := audit.Known(&th); n > 1024 {
		t.Errorf("it knows %d kinds", n)
	}
	// What has something to tell stays while there is room.
	var second audit.Throttle[int]
	second.Count(-1, now)
	second.Count(-1, now)
	for i := range 1023 {
		second.Count(i, now)
	}
	now = now.Add(time.Minute)
	second.Count(2000, now) // makes room: of what has nothing left to tell
	if more, due := second.Count(-1, now); more != 1 || !due {
		t.Errorf("forgotten: %d, %v", more, due)
	}
}

func TestThrottleAtOnce(t *testing.T) {
	t.Parallel()
	var th audit.Throttle[string]
	var due atomic.Int64
	var wg sync.WaitGroup
	now := time.Now()
	for range 50 {
		wg.Go(func() {
			for range 100 {
				if _, ok := th.Count("a", now); ok {
					due.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if due.Load() != 1 {
		t.Errorf("%d were due", due.Load())
	}
	if more, _ := th.Count("a", now.Add(time.Minute)); more != 4999 {
		t.Errorf("%d more", more)
	}
}
