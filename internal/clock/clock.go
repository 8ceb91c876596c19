// Package clock is the one source of time. Every room that needs the time or
// waits for it takes a Clock; layout_test.go refuses time.Now, time.After and
// their relatives everywhere else, so that a test, and the check for a clock
// that runs wrong, has a single place to stand on.
//
// Limits of a wait for somebody else are not of it: context.WithTimeout, the limits of
// net/http and grpc, and socket deadlines run by the runtime's monotonic clock, which
// nobody sets. No decision depends on them but to give up.
//
// It refuses to be a scheduler: there is reading, sleeping and nothing else.
package clock

import (
	"context"
	"time"
)

// A Clock tells the time and waits. Implementations are safe for concurrent use.
type Clock interface {
	// Now is the current time with a monotonic reading where there is one.
	Now() time.Time
	// Sleep waits for d, or until ctx ends, and then returns ctx's error.
	// A d of zero or less returns at once.
	Sleep(ctx context.Context, d time.Duration) error
}

// System is the clock of this machine. Inside a testing/synctest bubble it is
// the bubble's.
type System struct{}

// Now implements Clock.
func (System) Now() time.Time { return time.Now() }

// Sleep implements Clock.
func (System) Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Shifted is base moved by Offset: a clock that runs wrong, for tests of what
// notices it.
type Shifted struct {
	Base   Clock
	Offset time.Duration
}

// Now implements Clock.
func (s Shifted) Now() time.Time { return s.Base.Now().Add(s.Offset) }

// Sleep implements Clock.
func (s Shifted) Sleep(ctx context.Context, d time.Duration) error { return s.Base.Sleep(ctx, d) }
