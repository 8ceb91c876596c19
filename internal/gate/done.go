package gate

import (
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
)

// Done records how a checked call ended: exactly one event for each Check. It
// does nothing for a request that was not checked, or is recorded already.
func (g *Gate) Done(r *call.Request, o call.Outcome) {
	said, ok := g.open.take(r.Verdict.ID)
	if !ok {
		return
	}
	if o.End.IsZero() {
		o.End = g.cfg.Clock.Now()
	}
	rec := g.newRecord(r, &o)
	defer rec.release()
	rec.add(&said)
	g.metrics.done(g.state.Load().meters, r, &o)
	g.record(&rec.event)
	if g.loud() {
		g.logCall(&rec.event, &o)
	}
}

// record hands e to the recorder. While that fails, calls are refused, but those of
// services that take a gap for it; the end of each call is itself an attempt to
// record, and the first that succeeds ends it.
func (g *Gate) record(e *audit.Event) {
	err := g.cfg.Recorder.Record(e)
	switch was := g.failing.Load(); {
	case err != nil && g.failing.CompareAndSwap(false, true):
		g.log.Error("audit events cannot be recorded, calls are refused where their service does not take a gap", "error", err)
	case err == nil && was && g.failing.CompareAndSwap(true, false):
		g.log.Info("audit events are recorded again")
	}
}
