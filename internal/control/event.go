package control

import (
	"context"

	"github.com/parleymesh/parley/internal/audit"
)

// event is the record of an administrative act by the request's peer.
func (s *Server) event(ctx context.Context, action audit.Action, outcome audit.Outcome, object *audit.Object) *audit.Event {
	now := s.cfg.Clock.Now()
	e := &audit.Event{
		ID: audit.NewID(now), Time: now, Class: audit.Security, Action: action, Outcome: outcome,
		Host: s.cfg.Host, Reporter: "server", Object: object,
	}
	if p, ok := peerFrom(ctx); ok {
		e.Actor = p.actor()
		e.Actor.RequestID = requestID(ctx)
	}
	if t := requestOf(ctx).trace; t.TraceID != "" {
		e.Trace = &audit.Trace{TraceID: t.TraceID, SpanID: t.SpanID, ParentID: t.ParentID}
	}
	return e
}

// actor is the request's peer as a revision names it.
func actor(ctx context.Context) string {
	if p, ok := peerFrom(ctx); ok {
		return p.String()
	}
	return "unknown"
}
