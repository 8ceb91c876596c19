package dev

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// tcpPasses writes a line into the ledger through both sidecars.
func (m *Mesh) tcpPasses(ctx context.Context, s *seen) {
	h, since := hop{"payments", "ledger"}, m.clock.Now()
	a := m.ask(ctx, h.from, ask{Op: "tcp", Addr: m.way(h), Send: "COUNT\n"})
	s.text = describe(a)
	if !s.want(strings.HasPrefix(a.Body, "OK "), "the ledger answered %q %s", a.Body, a.Error) {
		return
	}
	out, in := m.bothEnds(ctx, s, api.ListEventsParams{From: h.from, To: h.to, Since: since})
	if out != nil && in != nil {
		s.want(in.TLS.Connection != "" && out.UpstreamTLS.Connection == in.TLS.Connection, "the ends do not name the same connection")
		s.text = fmt.Sprintf("%q, mTLS %s, both ends recorded", strings.TrimSpace(a.Body), in.TLS.Version)
	}
}

// tcpRefused is let through to its own sidecar and no byte further.
func (m *Mesh) tcpRefused(ctx context.Context, s *seen) {
	h, since := hop{"web", "ledger"}, m.clock.Now()
	a := m.ask(ctx, h.from, ask{Op: "tcp", Addr: m.way(h), Send: "COUNT\n"})
	s.text = describe(a)
	s.want(a.Body == "", "the ledger answered %q", a.Body)
	e := m.newest(ctx, api.ListEventsParams{From: h.from, To: h.to, Since: since, Outcome: "denied"}, func(e *audit.Event) bool { return e.Call != nil && e.Call.End == "inbound" })
	if s.want(e != nil, "no refusal on record at the callee's end") {
		s.want(e.Reason == "caller_not_allowed", "recorded reason %s", e.Reason)
		s.decision = e.ID
		s.text = "closed without a byte, " + e.Reason
	}
}

// direct is a program that does its own mTLS with the SVID that it gets from the
// Workload API, and reads the callee's certificate itself.
func (m *Mesh) direct(ctx context.Context, s *seen) {
	rid := newRequestID()
	a := m.ask(ctx, "web", ask{Op: "mtls", Method: "GET", Service: "orders", Addr: m.inbound("orders"), Path: "/orders/7", Header: map[string]string{"X-Request-Id": rid}})
	s.text = describe(a)
	ok := s.want(a.Error == "", "the client got: %s", a.Error) &&
		s.want(a.Status == http.StatusOK, "status %d", a.Status) &&
		s.want(a.PeerID == "spiffe://shop.dev/orders", "the peer's certificate names %q", a.PeerID) &&
		s.want(a.OwnID == "spiffe://shop.dev/web", "the process's own SVID names %q", a.OwnID)
	if !ok {
		return
	}
	e := m.newest(ctx, api.ListEventsParams{RequestID: rid}, func(*audit.Event) bool { return true })
	if s.want(e != nil, "no event on record") {
		s.want(e.Outcome == audit.Allowed && e.Caller.ID.String() == a.OwnID, "recorded as %s for %s", e.Outcome, e.Caller.ID)
		s.text = fmt.Sprintf("200, peer certificate of %s", strings.TrimPrefix(a.PeerID, "spiffe://shop.dev/"))
	}
}

// strangerCalls connects to web's outbound listener from another executable of
// the same user.
func (m *Mesh) strangerCalls(ctx context.Context, s *seen) {
	a := m.ask(ctx, "stranger", ask{Op: "http", Method: "GET", Addr: m.way(hop{"web", "orders"}), Path: "/orders/7"})
	m.refused(ctx, s, a, http.StatusForbidden, "process_not_service")
	s.want(!strings.Contains(a.Body, `"from":`), "the application answered: %s", oneLine(a.Body))
}

// strangerAsks asks the Workload API for an identity that it does not have.
func (m *Mesh) strangerAsks(ctx context.Context, s *seen) {
	since := m.clock.Now()
	a := m.ask(ctx, "stranger", ask{Op: "svid"})
	s.text = describe(a)
	s.want(a.OwnID == "", "it got %s", a.OwnID)
	s.want(strings.Contains(a.Error, "PermissionDenied"), "the client got: %s", a.Error)
	action := string(audit.WorkloadRefused)
	e := m.newest(ctx, api.ListEventsParams{Action: action, Since: since}, func(e *audit.Event) bool {
		return e.Caller != nil && strings.HasSuffix(e.Caller.Exe, "/stranger")
	})
	if s.refusal(e, "no_identity") {
		s.text = "PermissionDenied, no identity"
	}
}

// around goes past the caller's sidecar straight to the callee's listener, which
// refuses for that reason.
func (m *Mesh) around(ctx context.Context, s *seen, q ask, reason string) {
	since := m.clock.Now()
	q.Addr = m.inbound("orders")
	a := m.ask(ctx, "stranger", q)
	s.text = describe(a)
	s.want(!strings.Contains(a.Body, "200 OK") && !strings.Contains(a.Body, `"from":`), "the application answered: %s", oneLine(a.Body))
	s.want(a.Error != "" || a.Body == "" || a.Body[0] == 0x15, "the client read %q", a.Body) // 0x15 is a TLS alert
	if q.Op != "tcp" {
		s.want(a.PeerID == "spiffe://shop.dev/orders", "the listener's certificate names %q", a.PeerID)
	}
	action := string(audit.HandshakeRefused)
	e := m.newest(ctx, api.ListEventsParams{Action: action, Since: since}, func(e *audit.Event) bool {
		return e.Callee != nil && e.Callee.Service == "orders"
	})
	if s.refusal(e, reason) {
		s.text = "no byte of the application, " + e.Reason
	}
}

// refusal wants e to be a refusal for that reason.
func (s *seen) refusal(e *audit.Event, reason string) bool {
	if !s.want(e != nil, "no refusal on record") {
		return false
	}
	s.decision = e.ID
	denied := s.want(e.Outcome == audit.Denied, "recorded as %s", e.Outcome)
	return s.want(e.Reason == reason, "recorded reason %s, not %s", e.Reason, reason) && denied
}

// renewal waits for the ordinary timer and compares the certificates that the
// callee saw before and after it.
func (m *Mesh) renewal(ctx context.Context, s *seen) {
	before := m.passes(ctx, s, hop{"web", "orders"}, "GET", "/orders/7", http.StatusOK)
	if before == nil {
		return
	}
	for {
		st, err := m.API.Status(ctx)
		if !s.want(err == nil, "status: %v", err) {
			return
		}
		renewed := false
		for _, svc := range st.Services {
			renewed = renewed || svc.Name == "web" && svc.Serial != "" && svc.Serial != before.Caller.Serial
		}
		if renewed {
			break
		}
		if !s.want(m.clock.Sleep(ctx, 100*time.Millisecond) == nil, "interrupted before the certificate was renewed") {
			return
		}
	}
	after := m.passes(ctx, s, hop{"web", "orders"}, "GET", "/orders/7", http.StatusOK)
	if after == nil {
		return
	}
	s.want(after.Caller.Serial != before.Caller.Serial, "the callee saw the serial %s both times", after.Caller.Serial)
	s.text = "200 and 200, with another certificate"
	s.detail = []string{"serial " + before.Caller.Serial + " before", "serial " + after.Caller.Serial + " after"}
}

// newest is the last event of a filter that match accepts, or nil.
func (m *Mesh) newest(ctx context.Context, f api.ListEventsParams, match func(*audit.Event) bool) (found *audit.Event) {
	m.events(ctx, f, func(es []*audit.Event) bool {
		for _, e := range es {
			if match(e) {
				found = e
			}
		}
		return found != nil
	})
	return found
}
