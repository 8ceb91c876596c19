package gate

import (
	"context"
	"log/slog"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
)

// loud says that each call is logged. It is asked for every one, and is one look at
// a number where they are not.
func (g *Gate) loud() bool { return g.log.Enabled(context.Background(), slog.LevelDebug) }

// logCall writes the one line of a call at level debug: what the event of it says,
// and why it failed, which no event has. Header fields, queries and bodies are in
// neither.
func (g *Gate) logCall(e *audit.Event, o *call.Outcome) {
	attrs := make([]slog.Attr, 0, 32)
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	c := e.Call
	add("request_id", c.RequestID)
	if t := e.Trace; t != nil {
		add("trace_id", t.TraceID)
		add("span_id", t.SpanID)
		add("parent_id", t.ParentID)
	}
	add("decision", e.ID)
	add("action", string(e.Action))
	add("outcome", string(e.Outcome))
	add("reason", e.Reason)
	if d := e.Decision; d != nil {
		add("rule", d.Rule)
		attrs = append(attrs, slog.Int64("revision", d.Revision))
	}
	add("end", c.End)
	add("protocol", c.Protocol)
	add("listener", c.Listener)
	for _, side := range []struct {
		key   string
		party *audit.Party
	}{{"caller", e.Caller}, {"callee", e.Callee}} {
		if p := side.party; p != nil {
			add(side.key, p.ID.String())
			add(side.key+"_address", p.Address)
		}
	}
	add("method", c.Method)
	add("host", c.Host)
	add("path", c.Path)
	if c.Status != 0 {
		attrs = append(attrs, slog.Int("status", c.Status))
	}
	if c.GRPCStatus != nil {
		attrs = append(attrs, slog.Int("grpc_status", *c.GRPCStatus))
	}
	add("upstream", c.Upstream)
	add("code", c.Error)
	if o.Cause != nil {
		attrs = append(attrs, slog.Any("error", o.Cause))
	}
	add("detail", e.Message)
	if !o.Answered.IsZero() {
		attrs = append(attrs, slog.Int64("answered_us", o.Answered.Sub(e.Time).Microseconds()))
	}
	attrs = append(attrs, slog.Int64("duration_us", c.Duration), slog.Int64("bytes_in", c.BytesIn), slog.Int64("bytes_out", c.BytesOut))
	g.log.LogAttrs(context.Background(), slog.LevelDebug, "call", attrs...)
}
