package fleet_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/mtls/xtest"
)

const (
	join    = "/" + link.JoinService + "/Join"
	connect = "/" + link.FleetService + "/Connect"
	issue   = "/" + link.FleetService + "/Issue"
	issueJW = "/" + link.FleetService + "/IssueJWT"
	cursor  = "/" + link.FleetService + "/Cursor"
	collect = "/" + link.FleetService + "/Collect"
)

// stranger is a connection as a host that joins makes it: by the pin.
func (h *house) stranger() *raw {
	config := mtls.Joining(mtls.PinOf(h.ca.Root), serverID(h.ca), clock.System{}, func(*x509.Certificate) {})
	return &raw{h.t, dialed(h.t, func(ctx context.Context) (net.Conn, error) {
		return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", h.addr)
	}), ""}
}

// A connection is good for what it was opened for, and nothing else.
func TestConnectionsAreForOnePurpose(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	joining, agent := h.stranger(), h.raw("a")
	if err := joining.call(join, &link.JoinRequest{Protocol: 1, ID: "x"}, new(link.JoinReply)); err != nil {
		t.Fatal(err)
	}
	if err := agent.call(cursor, &link.CollectRequest{Log: "a-12345678"}, new(link.CollectReply)); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{issue, issueJW, cursor, collect, connect} {
		if err := joining.call(method, &link.IssueRequest{}, new(link.IssueReply)); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s by one who joins: %v", method, err)
		}
	}
	if err := agent.call(join, &link.JoinRequest{Protocol: 1, ID: "y"}, new(link.JoinReply)); status.Code(err) != codes.Unimplemented {
		t.Errorf("a join by an agent: %v", err)
	}
	if diff := cmp.Diff([]string{"join x"}, h.reg.asked()); diff != "" {
		t.Error(diff)
	}
}

// Only members' agents are served: no service, no administrator, nobody of another
// mesh, and nobody without a certificate.
func TestWhoIsServed(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	td := h.ca.Domain
	admin := must(identity.AdminID(td, "alice"))
	h.trust.Store(xtest.Trust(2, []*xtest.CA{h.ca}, agentID(h.ca, "a"), admin, h.ca.ID(t, "web")))
	to := xtest.Trust(1, []*xtest.CA{h.ca}, serverID(h.ca))
	for name, src := range map[string]*xtest.Source{
		"agent of no member": h.agentSource("b", time.Hour),
		"administrator":      xtest.NewSource(h.ca.CredentialFor(t, admin, time.Hour), to),
		"service":            xtest.NewSource(h.ca.Credential(t, "web", time.Hour), to),
		"another mesh":       xtest.NewSource(xtest.NewCA(t, "shop.example").CredentialFor(t, agentID(h.ca, "a"), time.Hour), to),
	} {
		r := h.rawBy("a", src, mtls.Fleet)
		if err := r.call(cursor, &link.CollectRequest{Log: "a-12345678"}, new(link.CollectReply)); err == nil {
			t.Errorf("%s is served", name)
		}
	}
	if err := h.raw("a").call(cursor, &link.CollectRequest{Log: "a-12345678"}, new(link.CollectReply)); err != nil {
		t.Error(err)
	}
}

// A host that leaves, or is banned, is served no longer on what it has open.
func TestTrustChangesUnderAConnection(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	r := h.raw("a")
	r.greeted(hello("a"))
	// The connection itself is cut by the door; this is what stands behind that.
	h.trust.Store(xtest.Trust(2, []*xtest.CA{h.ca}, agentID(h.ca, "b")))
	for _, method := range []string{issue, issueJW, cursor, collect} {
		if err := r.call(method, map[string]any{}, new(link.IssueReply)); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: %v", method, err)
		}
	}
	if err := r.open().RecvMsg(new(link.ServerMessage)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("another stream: %v", err)
	}
	if len(h.reg.asked()) != 0 {
		t.Errorf("the registrar was asked: %v", h.reg.asked())
	}
}

// A stream ends with the certificate of its connection, and no call is served after.
func TestCertificateEndsUnderAConnection(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	r := h.rawBy("a", h.agentSource("a", 2*time.Second), mtls.Fleet)
	s := r.greeted(hello("a"))
	s.update()
	began := time.Now()
	if err := s.RecvMsg(new(link.ServerMessage)); status.Code(err) != codes.Unauthenticated || time.Since(began) > 4*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	if err := r.call(issue, &link.IssueRequest{}, new(link.IssueReply)); err == nil || len(h.reg.asked()) != 0 {
		t.Errorf("a certificate was issued: %v", err)
	}
}

// Who asks is said by the certificate, never by the message.
func TestIssueIsInTheNameOfTheHost(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.raw("b")
	if err := r.call(issue, &link.IssueRequest{ID: h.ca.ID(t, "web")}, new(link.IssueReply)); err != nil {
		t.Error(err)
	}
	if err := r.call(issueJW, &link.IssueRequest{ID: h.ca.ID(t, "web"), Audience: []string{"x"}}, new(link.IssueReply)); err != nil {
		t.Error(err)
	}
	if err := r.call(issue, map[string]any{"id": h.ca.ID(t, "web"), "host": "a"}, new(link.IssueReply)); err == nil {
		t.Errorf("with a host of its own choice: %v", err)
	}
	if diff := cmp.Diff([]string{"certificate of web for b", "token of web for b"}, h.reg.asked()); diff != "" {
		t.Error(diff)
	}
}

// What only the server may know of an error stays there.
func TestErrorsTellNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.reg.err = errors.New("open /var/lib/parley/ca/canary.key: permission denied")
	for method, r := range map[string]*raw{issue: h.raw("a"), join: h.stranger()} {
		in := any(&link.IssueRequest{})
		if method == join {
			in = &link.JoinRequest{Protocol: 1}
		}
		err := r.call(method, in, new(link.IssueReply))
		if err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", method, err)
		}
	}
	h.reg.err = errors.Join(enrol.ErrJoin, errors.New("join_used canary"))
	if err := h.stranger().call(join, &link.JoinRequest{Protocol: 1}, new(link.JoinReply)); status.Code(err) != codes.FailedPrecondition ||
		strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), "unknown, expired or used") {
		t.Errorf("got %v", err)
	}
}

func TestJoinOfAnotherProtocol(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, m := range []any{&link.JoinRequest{Protocol: 2, Version: "v9"}, map[string]any{"protocol": 1, "as": "root"}, &link.JoinRequest{Protocol: 1, CSR: make([]byte, 1<<20)}} {
		if err := h.stranger().call(join, m, new(link.JoinReply)); err == nil {
			t.Errorf("%.40v is served", m)
		}
	}
	if len(h.reg.asked()) != 0 {
		t.Errorf("the registrar was asked: %v", h.reg.asked())
	}
}

// entry is one of log that host recorded.
func entry(t *testing.T, log, host, reporter string) audit.Entry {
	t.Helper()
	body, err := audit.Encode(nil, &audit.Event{ID: audit.NewID(time.Now()), Time: time.Now(), Class: audit.Access, Action: "call", Outcome: audit.Success, Host: host, Reporter: reporter})
	if err != nil {
		t.Fatal(err)
	}
	return audit.Entry{Log: log, Leaf: audit.LeafHash(body), Body: body}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.raw("a")
	for name, tt := range map[string]struct {
		log     string
		entries []audit.Entry
		ok      bool
	}{
		"own":              {"a-0123abcd", []audit.Entry{entry(t, "a-0123abcd", "a", "agent")}, true},
		"of another host":  {"b-0123abcd", []audit.Entry{entry(t, "b-0123abcd", "a", "agent")}, false},
		"of a longer name": {"a-b-0123abcd", []audit.Entry{entry(t, "a-b-0123abcd", "a", "agent")}, false},
		"of the server":    {"srv-0123abcd", []audit.Entry{entry(t, "srv-0123abcd", "a", "agent")}, false},
		"of nobody":        {"", []audit.Entry{entry(t, "", "a", "agent")}, false},
		"the host alone":   {"a", []audit.Entry{entry(t, "a", "a", "agent")}, false},
		"another's event":  {"a-0123abcd", []audit.Entry{entry(t, "a-0123abcd", "a", "agent"), entry(t, "a-0123abcd", "b", "agent")}, false},
		"nobody's event":   {"a-0123abcd", []audit.Entry{entry(t, "a-0123abcd", "", "agent")}, false},
		"the server's":     {"a-0123abcd", []audit.Entry{entry(t, "a-0123abcd", "a", "server")}, false},
		"no event":         {"a-0123abcd", []audit.Entry{{Log: "a-0123abcd", Body: []byte("{}")}}, false},
		"too many":         {"a-0123abcd", bunch(entry(t, "a-0123abcd", "a", "agent"), 1025), false},
	} {
		err := r.call(collect, &link.CollectRequest{Log: tt.log, Entries: tt.entries}, new(link.CollectReply))
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
		if name != "own" && !strings.HasPrefix(tt.log, "a-0") {
			if err := r.call(cursor, &link.CollectRequest{Log: tt.log}, new(link.CollectReply)); err == nil {
				t.Errorf("%s: its length is told", name)
			}
		}
	}
	if diff := cmp.Diff(map[string]uint64{"a-0123abcd": 1}, h.sink.next); diff != "" {
		t.Error(diff)
	}
}

func bunch(e audit.Entry, n int) []audit.Entry {
	all := make([]audit.Entry, n)
	for i := range all {
		all[i] = e
	}
	return all
}

// A message that is longer than allowed ends its call, not the server.
func TestHugeMessage(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.raw("a")
	huge := &link.CollectRequest{Log: "a-0123abcd", Entries: []audit.Entry{{Body: bytes.Repeat([]byte("x"), link.MaxMessage)}}}
	if err := r.conn.Invoke(t.Context(), collect, huge, new(link.CollectReply)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
	if err := r.call(cursor, &link.CollectRequest{Log: "a-12345678"}, new(link.CollectReply)); err != nil {
		t.Error(err)
	}
}
