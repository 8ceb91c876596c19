package gate_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/identity"
)

func TestRefuse(t *testing.T) {
	t.Parallel()
	handshake := func(t *testing.T) *call.Request {
		r := inbound(t)
		r.Method, r.Host, r.Path, r.RequestID, r.Header, r.Trace = "", "", "", "", nil, call.Trace{}
		return r
	}
	tests := []struct {
		name   string
		req    func(*testing.T) *call.Request
		code   string
		err    error
		action audit.Action
		status int
		reason string
	}{
		{"banned", handshake, "handshake_refused", fmt.Errorf("x: %w", identity.ErrBanned), audit.HandshakeRefused, 403, "banned"},
		{"not a member", handshake, "handshake_refused", fmt.Errorf("x: %w", identity.ErrNotMember), audit.HandshakeRefused, 403, "not_member"},
		{"expired", handshake, "handshake_refused", identity.ErrExpired, audit.HandshakeRefused, 403, "credential_expired"},
		{"too early", handshake, "handshake_refused", identity.ErrNotYetValid, audit.HandshakeRefused, 403, "credential_not_yet_valid"},
		{"other domain", handshake, "handshake_refused", identity.ErrUntrustedDomain, audit.HandshakeRefused, 403, "untrusted_domain"},
		{"other root", handshake, "handshake_refused", fmt.Errorf("%w: %w", identity.ErrChain, x509.UnknownAuthorityError{}), audit.HandshakeRefused, 403, "chain_untrusted"},
		{"long chain", handshake, "handshake_refused", identity.ErrChainTooLong, audit.HandshakeRefused, 403, "chain_too_long"},
		{"no certificate", handshake, "handshake_refused", identity.ErrNoCredential, audit.HandshakeRefused, 403, "identity_missing"},
		{"garbage", handshake, "handshake_refused", errors.New("tls: first record does not look like a TLS handshake"), audit.HandshakeRefused, 403, "handshake_refused"},
		{"process", func(t *testing.T) *call.Request { return outbound(t) }, "process_not_service", errors.New("uid 7"), audit.ProcessRefused, 403, "process_not_service"},
		{"too many", handshake, "connections_exceeded", nil, audit.ConnectionRefused, 403, "connections_exceeded"},
		{"path", func(t *testing.T) *call.Request { return inbound(t) }, "path_refused", nil, audit.Call, 400, "path_refused"},
		{"method", func(t *testing.T) *call.Request { return inbound(t) }, "method_refused", nil, audit.Call, 405, "method_refused"},
		{"upgrade", func(t *testing.T) *call.Request { return inbound(t) }, "upgrade_refused", nil, audit.Call, 501, "upgrade_refused"},
		{"outside bytes", func(t *testing.T) *call.Request { return inbound(t) }, "a\nb", nil, audit.Call, 400, "refused"},
		{"no code", func(t *testing.T) *call.Request { return inbound(t) }, "", nil, audit.Call, 400, "refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			r := tt.req(t)
			v := f.Refuse(r, tt.code, tt.err)
			if v.Allow || v.Status != tt.status || v.Reason != tt.reason || v.Code == "" || v.Challenge != "" || v != r.Verdict {
				t.Errorf("%+v", v)
			}
			checkID(t, v.ID, start)
			events := f.log.take()
			if len(events) != 1 {
				t.Fatalf("%d events", len(events))
			}
			e := events[0]
			if e.ID != v.ID || e.Action != tt.action || e.Outcome != audit.Denied || e.Reason != tt.reason || e.Class != audit.Access {
				t.Errorf("%+v", e)
			}
			if (e.Message == "") != (tt.err == nil) {
				t.Errorf("message %q", e.Message)
			}
			if wantStatus := tt.action != audit.HandshakeRefused && tt.action != audit.ConnectionRefused; (e.Call.Status == tt.status) != wantStatus {
				t.Errorf("status %d", e.Call.Status)
			}
		})
	}
}

// A client of gRPC is answered 200 and a status of gRPC, and that is on record.
func TestRefusedGRPC(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]int{"header_refused": 13, "process_not_service": 7, "upgrade_refused": 12, "method_refused": 2} {
		f := newFixture(t)
		r := inbound(t)
		r.GRPC = true
		f.Refuse(r, code, nil)
		if c := f.log.take()[0].Call; c.Status != 200 || c.GRPCStatus == nil || *c.GRPCStatus != want {
			t.Errorf("%s: recorded %+v", code, c)
		}
	}
}

// What strangers repeat at will is recorded once in ten seconds, by listener, reason
// and address, with how often it happened beside; none is left out of the count, whether
// it goes on, ends, or the gate does.
func TestRefuseFlood(t *testing.T) {
	t.Parallel()
	from := func(listener, address string) *call.Request {
		return &call.Request{End: call.Edge, Protocol: call.HTTP, Listener: listener, Remote: netip.MustParseAddrPort(address)}
	}
	slow := errors.New("slow")
	for name, tt := range map[string]struct {
		code string
		req  func(listener string, other bool) *call.Request
	}{
		"handshakes at an edge": {gate.CodeHandshakeRefused, func(l string, other bool) *call.Request {
			if other {
				return from(l, "192.0.2.8:1")
			}
			return from(l, "192.0.2.7:1")
		}},
		"connections": {gate.CodeConnections, func(l string, other bool) *call.Request {
			if other {
				return from(l, "[2001:db8::8]:1")
			}
			return from(l, "192.0.2.7:1")
		}},
		"handshakes inside": {gate.CodeHandshakeRefused, func(l string, other bool) *call.Request {
			r := inbound(t)
			if r.Listener = l; other {
				r.Remote = netip.MustParseAddrPort("10.0.0.10:40000")
			}
			return r
		}},
		"processes": {gate.CodeProcessRefused, func(l string, other bool) *call.Request {
			r := outbound(t)
			if r.Listener = l; other {
				r.Process.UID = 7
			}
			return r
		}},
	} {
		f := newFixture(t)
		var ids []string
		for range 5 {
			v := f.Refuse(tt.req("a", false), tt.code, slow)
			if v.Allow || v.ID == "" {
				t.Errorf("%s: %+v", name, v)
			}
			ids = append(ids, v.ID)
			f.clock.move(time.Second)
		}
		f.Refuse(tt.req("b", false), tt.code, slow)
		f.Refuse(tt.req("a", true), tt.code, slow)
		events := f.log.take()
		if len(events) != 3 || events[0].Call.Listener != "a" || events[1].Call.Listener != "b" || events[2].Call.Listener != "a" || events[0].Repeated != nil {
			t.Fatalf("%s: %d events", name, len(events))
		}
		for _, id := range ids {
			if id != events[0].ID {
				t.Errorf("%s: %s was told of a refusal that is recorded as %s", name, id, events[0].ID)
			}
		}
		f.Told(false) // it is not over
		f.clock.move(5 * time.Second)
		f.Refuse(tt.req("a", false), tt.code, slow) // it goes on
		events = f.log.take()
		if len(events) != 1 || events[0].Repeated == nil || *events[0].Repeated != (audit.Repeated{Count: 4, First: start.Add(time.Second), Last: start.Add(4 * time.Second)}) {
			t.Fatalf("%s: later %d events, %+v", name, len(events), events[0].Repeated)
		}
		for range 3 {
			f.Refuse(tt.req("a", false), tt.code, slow)
		}
		f.clock.move(10 * time.Second)
		f.Told(false) // it has an end
		again := f.log.take()
		if len(again) != 1 || again[0].Repeated == nil || again[0].Repeated.Count != 2 || again[0].ID == events[0].ID {
			t.Fatalf("%s: at its end %d events", name, len(again))
		}
		again[0].ID, again[0].Time, again[0].Repeated = events[0].ID, events[0].Time, events[0].Repeated
		again[0].Call.Duration = events[0].Call.Duration
		if d := cmp.Diff(events[0], again[0], sameID); d != "" {
			t.Errorf("%s: the last one is another: %s", name, d)
		}
		f.Refuse(tt.req("a", false), tt.code, slow)
		f.Refuse(tt.req("a", false), tt.code, slow)
		f.Told(true) // the gate has one
		if events = f.log.take(); len(events) != 2 || events[1].Repeated != nil {
			t.Errorf("%s: when it stops %d events", name, len(events))
		}
	}
}

// However many addresses there are, few are told apart, and none is left out.
func TestRefuseFloodFromEverywhere(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 5000
	for i := range n {
		r := inbound(t)
		r.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 1)
		f.Refuse(r, gate.CodeHandshakeRefused, nil)
	}
	f.Told(true)
	events := f.log.take()
	count := uint64(len(events))
	for _, e := range events {
		if e.Repeated != nil {
			count += e.Repeated.Count
		}
	}
	if count != n || len(events) > 1100 {
		t.Errorf("%d of %d are accounted for, in %d events", count, n, len(events))
	}
}

func TestRefusedPartiesAreNotTakenAtTheirWord(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Refuse(inbound(t), "handshake_refused", identity.ErrNotMember)
	f.Refuse(outbound(t), "process_not_service", errors.New("no"))
	events := f.log.take()
	root := 0
	for i, want := range []*audit.Party{
		{ID: id(t, "web"), Serial: "0a", Fingerprint: "0b", Address: "10.0.0.9:40000"},
		{Address: "127.0.0.1:41000", PID: 42, UID: &root, Exe: "/opt/web"},
	} {
		if diff := cmp.Diff(want, events[i].Caller, sameID); diff != "" {
			t.Error(diff)
		}
		if events[i].Callee.Service != "orders" {
			t.Errorf("callee %+v", events[i].Callee)
		}
	}
}

func TestMessageQuotesOutsideBytes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Refuse(inbound(t), "handshake_refused", errors.New("issuer \x1b[2J\nforged line \xff"))
	if m := f.log.take()[0].Message; m != `"issuer \x1b[2J\nforged line \xff"` {
		t.Errorf("%s", m)
	}
	f.clock.move(10 * time.Second) // or it would be counted with the first
	f.Refuse(inbound(t), "handshake_refused", errors.New("plain: text"))
	if m := f.log.take()[0].Message; m != "plain: text" {
		t.Errorf("%s", m)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	end := func(r *call.Request, status int) {
		f.Check(r)
		f.Done(r, call.Outcome{Status: status, End: start.Add(3e6)})
	}
	end(inbound(t), 200)
	end(inbound(t), 204)
	end(outbound(t), 502)
	end(f.edge(t, "1", "reader"), 200)
	end(f.edge(t, "1", ""), 401)
	stranger, nowhere, tcp := inbound(t), f.edge(t, "0", ""), outbound(t)
	stranger.Peer.ID = id(t, "evil-"+strings.Repeat("x", 20))
	nowhere.Target, nowhere.PolicyTarget = "evil", ""
	tcp.Protocol = call.TCP
	end(stranger, 403)
	end(nowhere, 999)
	end(tcp, 0)
	f.Refuse(inbound(t), "handshake_refused", identity.ErrBanned)
	f.Refuse(inbound(t), "path_refused", nil)
	f.Refuse(outbound(t), "process_not_service", nil)
	got := string(f.metrics.Append(nil))
	want := []string{
		`parley_requests_total{source="web",destination="orders",protocol="http",code_class="2xx",decision="allowed",end="inbound"} 2`,
		`parley_requests_total{source="web",destination="orders",protocol="http",code_class="4xx",decision="denied",end="inbound"} 1`,
		`parley_requests_total{source="web",destination="orders",protocol="http",code_class="5xx",decision="allowed",end="outbound"} 1`,
		`parley_requests_total{source="web",destination="orders",protocol="http",code_class="4xx",decision="denied",end="outbound"} 1`,
		`parley_requests_total{source="web",destination="orders",protocol="tcp",code_class="none",decision="allowed",end="outbound"} 1`,
		`parley_requests_total{source="unknown",destination="orders",protocol="http",code_class="2xx",decision="allowed",end="edge"} 1`,
		`parley_requests_total{source="unknown",destination="orders",protocol="http",code_class="4xx",decision="denied",end="edge"} 1`,
		`parley_requests_total{source="unknown",destination="orders",protocol="http",code_class="4xx",decision="denied",end="inbound"} 1`,
		`parley_requests_total{source="unknown",destination="unknown",protocol="http",code_class="none",decision="denied",end="edge"} 1`,
		`parley_handshake_failures_total{reason="banned"} 1`,
		`parley_request_duration_seconds_bucket{source="web",destination="orders",protocol="http",end="outbound",le="0.0025"} 1`,
		`parley_request_duration_seconds_bucket{source="web",destination="orders",protocol="http",end="outbound",le="0.005"} 2`,
	}
	for _, line := range want {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no %s", line)
		}
	}
	if strings.Contains(got, "evil") || strings.Count(got, "parley_requests_total{") != 9 {
		t.Errorf("%s", got)
	}
}
