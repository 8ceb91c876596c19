package agent

import (
	"context"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
)

// watched is a sink that remembers whether it took what it was last given.
type watched struct {
	collect.Sink
	mu  sync.Mutex // guards err
	err error
}

// Collect implements collect.Sink.
func (w *watched) Collect(ctx context.Context, log string, entries []audit.Entry) error {
	err := w.Sink.Collect(ctx, log, entries)
	if ctx.Err() != nil {
		return err // it was interrupted: that says nothing of the sink
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	return err
}

// Delivery is why the newest events are not collected but wait in the agent's
// log, nil where they are on their way.
func (a *Agent) Delivery() error {
	a.sink.mu.Lock()
	defer a.sink.mu.Unlock()
	return a.sink.err
}

// settleTime bounds Settle: a log that cannot be delivered keeps nobody waiting.
const settleTime = time.Second

// Settle waits, for at most a second, until every event recorded so far is
// collected, so that a question asked right after a call finds it, and shows each
// other's logs, so that one about them is answered by what they are now.
func (a *Agent) Settle(ctx context.Context) {
	ctx, done := context.WithTimeout(ctx, settleTime)
	defer done()
	a.deliver(ctx)
	a.exchange(ctx)
	a.Tell(ctx)
}

// deliver waits until every event recorded so far is collected.
func (a *Agent) deliver(ctx context.Context) {
	for next := a.spool.Next(); a.Delivery() == nil; {
		cursor, err := a.sink.Cursor(ctx, a.spool.Log())
		if err != nil || cursor >= next || a.cfg.Clock.Sleep(ctx, 10*time.Millisecond) != nil {
			return
		}
	}
}
