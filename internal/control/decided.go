package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/policy"
)

// How far the other end of a call is looked for.
const (
	maxRelated    = 100
	relatedPeriod = time.Minute
)

// A recordedEvent is a stored event that was read.
type recordedEvent struct {
	StoredEvent
	event *audit.Event
}

// whyDecided explains a decision that was recorded: what was known then, what
// the other end of the call recorded, and what the policy that runs now says.
func (s *Server) whyDecided(ctx context.Context, file *mesh.File, id string) (*api.Explanation, error) {
	stored, err := s.recorded(ctx, id)
	if err != nil {
		return nil, err
	}
	if len(stored.Body) == 0 {
		return nil, fault.New(fault.NotFound, "audit.retention in the mesh file says how long events are kept", "event %s was pruned: what it said is not there any more", clip(id))
	}
	asked, err := decodeEvent(*stored)
	if err != nil {
		return nil, err
	}
	if !isDecision(asked.event) {
		return nil, fault.New(fault.BadRequest, "it is shown by: parley audit search", "event %s is %s and decides no call", clip(id), asked.event.Action)
	}
	others, err := s.related(ctx, asked)
	if err != nil {
		return nil, err
	}
	// The caller's own end decides nothing: what is asked is what the callee's
	// end said, where that is on record.
	at := asked
	for _, o := range others {
		if isEnd(asked.event, call.Outbound) && isEnd(o.event, call.Inbound) {
			at = o
		}
	}
	why, err := s.whyEvent(ctx, file, at.event)
	if err != nil {
		return nil, err
	}
	if e := failedOf(append([]recordedEvent{asked}, others...)); e != nil && why.Decision.Allow {
		step, err := s.failedStep(ctx, e)
		if err != nil {
			return nil, err
		}
		why.Decision.Error, why.Steps = e.Call.Error, append(why.Steps, step)
	}
	for _, e := range append([]recordedEvent{asked}, others...) {
		why.Events = append(why.Events, entryOf(&e.StoredEvent))
	}
	return why, nil
}

func decodeEvent(e StoredEvent) (recordedEvent, error) {
	event, err := audit.Decode(e.Body)
	if err != nil {
		return recordedEvent{}, fmt.Errorf("event %d of log %s: %w", e.Index, e.Log, err)
	}
	return recordedEvent{e, event}, nil
}

func isDecision(e *audit.Event) bool {
	switch e.Action {
	case audit.Call:
		return e.Call != nil
	case audit.HandshakeRefused, audit.ConnectionRefused, audit.ProcessRefused, audit.WorkloadRefused, audit.IssueRefused, audit.AdminRefused:
		return true
	}
	return false
}

func isEnd(e *audit.Event, end call.End) bool {
	return e.Action == audit.Call && e.Call != nil && e.Call.End == string(end)
}

// related are the events of the same call at its other end.
func (s *Server) related(ctx context.Context, e recordedEvent) (out []recordedEvent, err error) {
	f := Filter{Limit: maxRelated}
	switch {
	case e.event.Trace != nil && e.event.Trace.TraceID != "":
		f.TraceID = e.event.Trace.TraceID
	case e.event.Call != nil && e.event.Caller != nil && e.event.Callee != nil:
		f.From, f.To = e.event.Caller.Service, e.event.Callee.Service
		f.Since, f.Until = e.event.Time.Add(-relatedPeriod), e.event.Time.Add(relatedPeriod)
	default:
		return nil, nil
	}
	found, err := s.cfg.Events.Search(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("find the other end: %w", err)
	}
	for i := range found {
		o, err := decodeEvent(found[i])
		if err != nil {
			return nil, err
		}
		if o.event.ID != e.event.ID && (follows(e.event, o.event) || follows(o.event, e.event)) {
			out = append(out, o)
		}
	}
	return out, nil
}

// follows says that b is the next end of the call that a sent on: by the span
// that a made (W3C Trace Context section 3.2), or without one by the connection,
// which has the same name at both ends.
func follows(a, b *audit.Event) bool {
	if a.Trace != nil && b.Trace != nil && a.Trace.SpanID != "" {
		return a.Trace.TraceID == b.Trace.TraceID && a.Trace.SpanID == b.Trace.ParentID
	}
	return a.UpstreamTLS != nil && b.TLS != nil && a.UpstreamTLS.Connection != "" && a.UpstreamTLS.Connection == b.TLS.Connection
}

// whyEvent is the explanation of one recorded decision.
func (s *Server) whyEvent(ctx context.Context, file *mesh.File, e *audit.Event) (*api.Explanation, error) {
	then := api.Decided{
		ID: e.ID, Time: e.Time.UTC(), Allow: e.Outcome == audit.Allowed, Action: string(e.Action), Reason: e.Reason,
	}
	if e.Decision != nil {
		then.Rule, then.Revision = e.Decision.Rule, e.Decision.Revision
	}
	why := &api.Explanation{Allow: then.Allow, Reason: e.Reason, Revision: then.Revision, Events: []api.Entry{}}
	q, replayable, err := s.replay(ctx, e)
	if err != nil {
		return nil, err
	}
	if replayable {
		why = s.explain(file, q, "")
		then.Replayed, then.Same = true, why.Allow == then.Allow && (why.Allow || why.Reason == then.Reason)
	}
	if !replayable && !why.Allow {
		why.Suggestion = suggestRefused(file, e)
	}
	why.Decision, why.Steps = then, eventSteps(e)
	why.From, why.FromID, why.To = callerName(e), partyID(e.Caller), calleeName(e)
	if e.Call != nil {
		why.Method, why.Path = e.Call.Method, e.Call.Path
	}
	return why, nil
}

// replay is the question that e answered; false where policy was never asked or
// the question is not on record.
func (s *Server) replay(ctx context.Context, e *audit.Event) (q policy.Query, ok bool, err error) {
	if e.Reason == gate.ReasonObserved {
		return q, false, nil // no rule was asked
	}
	if e.Action != audit.Call || e.Caller == nil || e.Outcome != audit.Allowed && !isPolicyReason(e.Reason) {
		return q, false, nil
	}
	q = policy.Query{Method: e.Call.Method, Path: e.Call.Path, Caller: identity.Caller{Workload: e.Caller.ID}}
	switch call.End(e.Call.End) {
	case call.Edge:
		if q.Target, ok = edgeTarget(e); !ok {
			return q, false, nil
		}
		q.Caller, err = s.keyCaller(ctx, e.Caller)
		q.Caller.Token, ok = tokenCaller(e)
		return q, err == nil && ok, err
	case call.Inbound, call.Outbound:
		if e.Callee == nil {
			return q, false, nil
		}
		q.Target = e.Callee.Service
	}
	return q, q.Target != "", nil
}

// edgeTarget is the policy target of a gateway's route, by the rule that bears
// its name: "gateway.edge.routes[0]" decides for "edge/routes[0]".
func edgeTarget(e *audit.Event) (string, bool) {
	if e.Decision == nil {
		return "", false
	}
	rest, ok := strings.CutPrefix(e.Decision.Rule, "gateway.")
	gateway, route, found := strings.Cut(rest, ".routes[")
	return gateway + "/routes[" + route, ok && found
}

// tokenCaller is the bearer of a token as it is on record, since no token says
// anything else later; false where the record of it was cut.
func tokenCaller(e *audit.Event) (*identity.Token, bool) {
	p := e.Caller
	if p.Issuer == "" {
		return nil, true
	}
	const cut = "…"
	if strings.HasSuffix(p.Audience, cut) || strings.HasSuffix(p.Scopes, cut) || strings.HasSuffix(p.Issuer, cut) {
		return nil, false
	}
	t := &identity.Token{Issuer: p.Issuer, Subject: e.Subject(), ClientID: p.ClientID, Scopes: strings.Fields(p.Scopes)}
	// Several audiences are joined by spaces, and one may hold some.
	t.Audiences = append(strings.Fields(p.Audience), p.Audience)
	return t, true
}

// keyCaller is the holder of an API key with the scopes that it has now; a key
// that has ended is none.
func (s *Server) keyCaller(ctx context.Context, p *audit.Party) (identity.Caller, error) {
	c := identity.Caller{Workload: p.ID}
	if p.KeyID == "" {
		return c, nil
	}
	keys, err := s.cfg.Keys.Keys(ctx)
	if err != nil {
		return c, fmt.Errorf("read the API keys: %w", err)
	}
	i := slices.IndexFunc(keys, func(k Key) bool { return k.ID == p.KeyID })
	if i >= 0 && keys[i].live(s.cfg.Clock.Now()) {
		c.KeyID, c.KeyName, c.Scopes = keys[i].ID, keys[i].Name, keys[i].Scopes
	}
	return c, nil
}
