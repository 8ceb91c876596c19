package agent

import (
	"context"
	"sync"

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
