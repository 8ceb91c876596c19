package renew_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/clock"
)

// A hand is a clock that is set while timers run on.
type hand struct {
	clock.System
	offset atomic.Int64
}

func (h *hand) Now() time.Time { return h.System.Now().Add(time.Duration(h.offset.Load())).Round(0) }

func TestClocks(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		offset time.Duration // of this machine's clock, from the start
		step   time.Duration // after ten minutes: it is set, or the machine slept
		within time.Duration // of real time after the step, the leaf is renewed
	}{
		{"right", 0, 0, 21 * time.Minute},
		{"an hour behind", -time.Hour, 0, 21 * time.Minute},
		{"forty minutes ahead", 40 * time.Minute, 0, time.Second},
		{"slept through the half", 0, 40 * time.Minute, 16 * time.Second},
		{"slept through the end", 0, 5 * time.Hour, 16 * time.Second},
		{"set back", 0, -5 * time.Hour, 21 * time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAuthority(time.Hour)
				h := new(hand)
				h.offset.Store(int64(tt.offset))
				// A machine that slept wakes up to the same time as the issuer.
				a.now = func() time.Time { return time.Now().Add(time.Duration(h.offset.Load()) - tt.offset) }
				cfg := config(a)
				cfg.Clock = h
				k := start(t, cfg)
				<-k.Ready()
				time.Sleep(10*time.Minute + 100*time.Millisecond)
				h.offset.Add(int64(tt.step))
				time.Sleep(tt.within)
				synctest.Wait()
				if n := len(a.calls()); n < 2 {
					t.Errorf("not renewed %s after the step", tt.within)
				}
			})
		})
	}
}
