package dev

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// A Line is one call that was tried: what was expected, and what was seen by the
// client itself and in the event that the admin API told of it.
type Line struct {
	OK       bool   `json:"ok"`
	Call     string `json:"call"`
	Expected string `json:"expected"` // pass or refuse
	Seen     string `json:"seen"`
	// Decision is the id of a refusal.
	Decision string `json:"decision,omitempty"`
	// Detail is what else was seen, in whole lines.
	Detail []string `json:"detail,omitempty"`
	// Wrong lists what did not agree.
	Wrong []string `json:"wrong,omitempty"`
}

// Try makes every call of the tour in order and reports each as it ends.
// It returns whether all were as expected. A call that ctx interrupted shows
// nothing, and is not reported.
func (m *Mesh) Try(ctx context.Context, report func(Line)) (bool, error) {
	return m.try(ctx, tour, report)
}

func (m *Mesh) try(ctx context.Context, checks []check, report func(Line)) (bool, error) {
	all := true
	for _, c := range checks {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		s := &seen{}
		c.run(ctx, m, s)
		if err := ctx.Err(); err != nil {
			return false, err
		}
		l := Line{OK: len(s.wrong) == 0, Call: c.call, Expected: c.expect, Seen: s.text, Decision: s.decision, Detail: s.detail, Wrong: s.wrong}
		all = all && l.OK
		report(l)
	}
	return all, nil
}

// Tour is the calls that Try makes, before they are made.
func Tour() (lines []Line) {
	for _, c := range tour {
		lines = append(lines, Line{Call: c.call, Expected: c.expect})
	}
	return lines
}

// Calls is how many calls Try makes, and how many of them must be refused.
func Calls() (all, refused int) {
	for _, c := range tour {
		if c.expect == refuse {
			refused++
		}
	}
	return len(tour), refused
}

const (
	pass   = "pass"
	refuse = "refuse"
)

// A check is one call with what must be true of it.
type check struct {
	call, expect string
	run          func(context.Context, *Mesh, *seen)
}

// seen collects what a check found.
type seen struct {
	text     string
	decision string
	detail   []string
	wrong    []string
}

func (s *seen) want(ok bool, format string, args ...any) bool {
	if !ok {
		s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
	}
	return ok
}

// tour is what --try does, in order.
var tour = []check{
	{"web -> orders, GET /orders/7", pass, func(ctx context.Context, m *Mesh, s *seen) {
		m.passes(ctx, s, hop{"web", "orders"}, "GET", "/orders/7", http.StatusOK)
	}},
	{"orders -> payments, POST /charge", pass, func(ctx context.Context, m *Mesh, s *seen) {
		m.passes(ctx, s, hop{"orders", "payments"}, "POST", "/charge", http.StatusCreated)
	}},
	{"payments -> ledger, TCP", pass, by((*Mesh).tcpPasses)},
	{"web -> orders by its own certificate", pass, by((*Mesh).direct)},
	{"you -> gateway, key with shop.read", pass, func(ctx context.Context, m *Mesh, s *seen) {
		m.edge(ctx, s, "GET", "/shop/orders/7", credential{key: m.keys["reader"]}, http.StatusOK, "")
	}},
	{"you -> gateway -> all four, key with shop.buy", pass, func(ctx context.Context, m *Mesh, s *seen) {
		m.edge(ctx, s, "POST", "/shop/buy", credential{key: m.keys["buyer"]}, http.StatusCreated, "")
	}},
	{"you -> gateway, token with shop.read", pass, func(ctx context.Context, m *Mesh, s *seen) {
		m.bearer(ctx, s, "shop", "shop.read", false, http.StatusOK, "")
	}},
	{"web -> payments, no rule names web", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.refuses(ctx, s, hop{"web", "payments"}, "POST", "/charge", "caller_not_allowed")
	}},
	{"web -> orders, DELETE", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.refuses(ctx, s, hop{"web", "orders"}, "DELETE", "/orders/7", "method_not_allowed")
	}},
	{"web -> orders, GET /admin", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.refuses(ctx, s, hop{"web", "orders"}, "GET", "/admin", "path_not_allowed")
	}},
	{"web -> ledger, TCP, no rule names web", refuse, by((*Mesh).tcpRefused)},
	{"you -> gateway, no key and no token", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.edge(ctx, s, "GET", "/shop/orders/7", credential{}, http.StatusUnauthorized, "no_credential")
	}},
	{"you -> gateway, key without the scope", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.edge(ctx, s, "POST", "/shop/buy", credential{key: m.keys["reader"]}, http.StatusForbidden, "scope_missing")
	}},
	{"you -> gateway, token for another audience", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.bearer(ctx, s, "billing", "shop.read", false, http.StatusUnauthorized, "jwt_audience")
	}},
	{"you -> gateway, token without the scope", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.bearer(ctx, s, "shop", "shop.buy", false, http.StatusForbidden, "scope_missing")
	}},
	{"you -> gateway, token that is forged", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.bearer(ctx, s, "shop", "shop.read", true, http.StatusUnauthorized, "jwt_signature")
	}},
	{"you -> gateway, no such route", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.edge(ctx, s, "GET", "/ledger", credential{key: m.keys["buyer"]}, http.StatusNotFound, "route_not_found")
	}},
	{"another program -> web's way to orders", refuse, by((*Mesh).strangerCalls)},
	{"another program -> Workload API", refuse, by((*Mesh).strangerAsks)},
	{"plain HTTP -> orders, around the sidecar", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.around(ctx, s, ask{Op: "tcp", Send: "GET /orders/7 HTTP/1.1\r\nHost: orders\r\n\r\n"}, "plaintext")
	}},
	{"TLS without certificate -> orders", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.around(ctx, s, ask{Op: "tls"}, "certificate_missing")
	}},
	{"web's name from another CA -> orders", refuse, func(ctx context.Context, m *Mesh, s *seen) {
		m.around(ctx, s, ask{Op: "foreign", Service: "spiffe://shop.dev/web"}, "chain_untrusted")
	}},
	{"web -> orders, before and after renewal", pass, by((*Mesh).renewal)},
}

// by turns a method into a check's function.
func by(f func(*Mesh, context.Context, *seen)) func(context.Context, *Mesh, *seen) {
	return func(ctx context.Context, m *Mesh, s *seen) { f(m, ctx, s) }
}

// A hop is a caller and whom it calls.
type hop struct{ from, to string }

// passes makes an HTTP call through both sidecars that must be answered by the
// application itself, and be on record at both ends.
func (m *Mesh) passes(ctx context.Context, s *seen, h hop, method, path string, status int) (in *audit.Event) {
	rid := newRequestID()
	a := m.ask(ctx, h.from, ask{Op: "http", Method: method, Addr: m.way(h), Path: path, Header: map[string]string{"X-Request-Id": rid}})
	s.text = describe(a)
	ok := s.want(a.Error == "", "the client got: %s", a.Error) &&
		s.want(a.Status == status, "status %d, not %d", a.Status, status) &&
		s.want(strings.Contains(a.Body, `"from":"`+h.to+`"`), "the answer is not from %s: %s", h.to, oneLine(a.Body))
	if !ok {
		return nil
	}
	out, in := m.bothEnds(ctx, s, api.ListEventsParams{RequestID: rid, From: h.from, To: h.to})
	if out != nil && in != nil {
		s.text = fmt.Sprintf("%d, mTLS %s, both ends recorded", a.Status, in.TLS.Version)
	}
	return in
}

// bothEnds fetches the two events of a call that was allowed and holds them
// against each other.
func (m *Mesh) bothEnds(ctx context.Context, s *seen, f api.ListEventsParams) (out, in *audit.Event) {
	events := m.events(ctx, f, func(es []*audit.Event) bool { return len(es) >= 2 })
	for _, e := range events {
		switch e.Call.End {
		case "outbound", "edge":
			out = e
		case "inbound":
			in = e
		}
	}
	if !s.want(out != nil && in != nil && len(events) == 2, "%d events on record, want one at each end", len(events)) {
		return nil, nil
	}
	s.want(out.Outcome == audit.Allowed && in.Outcome == audit.Allowed, "recorded as %s and %s", out.Outcome, in.Outcome)
	s.want(in.TLS != nil && in.TLS.Version == "1.3", "the callee's end is not TLS 1.3")
	s.want(out.UpstreamTLS != nil && out.UpstreamTLS.PeerID == in.Callee.ID.String(), "the caller's end saw another identity than %s", in.Callee.ID)
	s.want(out.Caller.ID == in.Caller.ID || out.Call.End == "edge", "the ends disagree on the caller")
	if in.TLS == nil {
		return nil, nil
	}
	return out, in
}

// refuses makes an HTTP call that the callee must refuse with a decision id and
// without a byte of the application, for exactly this reason.
func (m *Mesh) refuses(ctx context.Context, s *seen, h hop, method, path, reason string) {
	a := m.ask(ctx, h.from, ask{Op: "http", Method: method, Addr: m.way(h), Path: path})
	m.refused(ctx, s, a, http.StatusForbidden, reason)
	s.want(!strings.Contains(a.Body, `"from":`), "the application answered: %s", oneLine(a.Body))
}

// refused holds a refusal that a client saw against the event of its decision id.
func (m *Mesh) refused(ctx context.Context, s *seen, a answer, status int, reason string) {
	s.text, s.decision = describe(a), a.Header["Parley-Decision"]
	if !s.want(a.Error == "", "the client got: %s", a.Error) || !s.want(a.Status == status, "status %d, not %d", a.Status, status) ||
		!s.want(s.decision != "", "no decision id in the answer") {
		return
	}
	s.want(!strings.Contains(a.Body, "allow["), "the answer tells a rule: %s", oneLine(a.Body))
	e := m.event(ctx, s.decision)
	if !s.want(e != nil, "no event with the id %s", s.decision) {
		return
	}
	s.want(e.Outcome == audit.Denied, "recorded as %s", e.Outcome)
	s.want(e.Reason == reason, "recorded reason %s, not %s", e.Reason, reason)
	s.text = fmt.Sprintf("%d, %s", a.Status, e.Reason)
}

// A credential is what a client of the gateway has.
type credential struct{ key, token string }

// bearer reads an order with a token of the shop's issuer, or with a forged one.
func (m *Mesh) bearer(ctx context.Context, s *seen, audience, scope string, forged bool, status int, reason string) {
	token, err := m.shopToken(audience, scope, forged)
	if s.want(err == nil, "no token: %v", err) {
		m.edge(ctx, s, "GET", "/shop/orders/7", credential{token: token}, status, reason)
	}
}

// edge calls the gateway as somebody outside the mesh. An empty reason means
// that it must pass.
func (m *Mesh) edge(ctx context.Context, s *seen, method, path string, c credential, status int, reason string) {
	rid := newRequestID()
	a := m.outside(ctx, method, path, c, rid)
	if reason != "" {
		m.refused(ctx, s, a, status, reason)
		return
	}
	s.text = describe(a)
	ok := s.want(a.Error == "", "the client got: %s", a.Error) &&
		s.want(a.Status == status, "status %d, not %d: %s", a.Status, status, oneLine(a.Body)) &&
		s.want(a.PeerID == "spiffe://shop.dev/gateway/edge", "the gateway's certificate names %q", a.PeerID)
	if !ok {
		return
	}
	if _, in := m.bothEnds(ctx, s, api.ListEventsParams{RequestID: rid, To: "web"}); in != nil {
		s.text = fmt.Sprintf("%d, TLS to the edge, mTLS %s behind it", a.Status, in.TLS.Version)
		// The gateway has told web who calls, and web's sidecar has verified it.
		name := "api_key:" + in.Caller.KeyID
		if c.token != "" {
			name = in.Caller.Issuer + "#" + in.Subject()
			s.text += ", for " + in.Subject()
		} else {
			s.text += ", for key " + in.Caller.KeyName
		}
		s.want(in.Caller.KeyID+in.Subject() != "", "web's sidecar does not know for whom the gateway calls")
		s.want(a.Header[callerField] == name, "web was called for %q, on record is %q", a.Header[callerField], name)
	}
}

// newRequestID is unique, so that the events of one call can be found.
func newRequestID() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return "try-" + hex.EncodeToString(b)
}

func describe(a answer) string {
	switch {
	case a.Error != "":
		return oneLine(a.Error)
	case a.Status != 0:
		return fmt.Sprint(a.Status)
	}
	return oneLine(a.Body)
}

// event fetches one event by its id, waiting for the collector.
func (m *Mesh) event(ctx context.Context, id string) *audit.Event {
	var found *audit.Event
	m.until(ctx, func() bool {
		entry, err := m.API.Event(ctx, id)
		if err != nil {
			return false
		}
		found, err = audit.Decode(entry.Event)
		return err == nil
	})
	return found
}

// events fetches the events of a filter until enough says so.
func (m *Mesh) events(ctx context.Context, f api.ListEventsParams, enough func([]*audit.Event) bool) (found []*audit.Event) {
	m.until(ctx, func() bool {
		list, err := m.API.Events(ctx, f)
		if err != nil {
			return false
		}
		found = found[:0]
		for _, entry := range list.Items {
			if e, err := audit.Decode(entry.Event); err == nil {
				found = append(found, e)
			}
		}
		return enough(found)
	})
	return slices.Clip(found)
}

// until asks again for at most two seconds: access events are collected in
// batches.
func (m *Mesh) until(ctx context.Context, done func() bool) {
	for range 80 {
		if done() || m.clock.Sleep(ctx, 25*time.Millisecond) != nil {
			return
		}
	}
}
