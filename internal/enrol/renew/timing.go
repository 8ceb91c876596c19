package renew

import (
	"context"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

const (
	// firstRetry is the wait after the first failure; it doubles up to maxRetry,
	// and to a quarter of what is left, or after the end of the whole life, but
	// never falls below minRetry.
	firstRetry = time.Second
	maxRetry   = time.Minute
	minRetry   = 200 * time.Millisecond
	// slice is the longest single sleep. Timers stand still while a machine
	// sleeps, and do not see a clock that is set: the wall clock is asked again
	// at least this often.
	slice = 15 * time.Second
)

// half is when to renew c: half of what is left, 10 % more or less, so that what
// started together does not renew together for ever. What is left is what this
// machine's clock says, and never more than the leaf's whole life: a clock that
// is behind must not make the leaf look longer than its issuer meant it.
func (k *Keeper) half(c *identity.Credential) time.Duration {
	left := min(c.NotAfter().Sub(k.cfg.Clock.Now()), c.NotAfter().Sub(c.NotBefore()))
	return time.Duration(float64(left) / 2 * (0.9 + 0.2*k.cfg.Jitter()))
}

// backoff is the wait after the given number of failures before this one. Half of
// it is random.
func (k *Keeper) backoff(failures int) time.Duration {
	limit := maxRetry
	if c := k.current.Load(); c != nil {
		left := c.NotAfter().Sub(k.cfg.Clock.Now())
		if left <= 0 { // it ended: whoever wants short lives wants the next one soon
			left = c.NotAfter().Sub(c.NotBefore())
		}
		limit = max(minRetry, min(maxRetry, left/4))
	}
	d := limit
	if failures < 6 { // 1 s doubled six times is above a minute
		d = min(firstRetry<<failures, limit)
	}
	return time.Duration(float64(d) * (0.5 + 0.5*k.cfg.Jitter()))
}

// schedule publishes when the next attempt is, as wall-clock time.
func (k *Keeper) schedule(wait time.Duration) time.Time {
	at := k.cfg.Clock.Now().Add(wait).Round(0) // Round drops the monotonic reading
	k.next.Store(&at)
	return at
}

// sleepUntil waits until the wall clock says at. A clock that is set back cannot
// hold it for longer than it was to wait in the first place.
func (k *Keeper) sleepUntil(ctx context.Context, at time.Time) error {
	for budget := at.Sub(k.cfg.Clock.Now()); budget > 0; {
		left := at.Sub(k.cfg.Clock.Now().Round(0))
		if left <= 0 {
			return ctx.Err()
		}
		nap := min(left, slice, budget)
		if err := k.cfg.Clock.Sleep(ctx, nap); err != nil {
			return err
		}
		budget -= nap
	}
	return ctx.Err()
}
