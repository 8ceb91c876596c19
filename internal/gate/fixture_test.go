package gate_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/xtest"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// stopped is a clock that stands until it is moved.
type stopped struct{ offset atomic.Int64 }

func (c *stopped) Now() time.Time                             { return start.Add(time.Duration(c.offset.Load())) }
func (c *stopped) Sleep(context.Context, time.Duration) error { return nil }
func (c *stopped) move(d time.Duration)                       { c.offset.Add(int64(d)) }

// log keeps events as they would be stored.
type log struct {
	mu     sync.Mutex
	events []*audit.Event
	bodies []string
	fail   bool
}

var errFull = errors.New("no space left")

func (l *log) Record(e *audit.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail {
		return errFull
	}
	body, err := audit.Encode(nil, e)
	if err != nil {
		return err
	}
	kept, err := audit.Decode(body)
	if err != nil {
		return err
	}
	if err := xtest.Check(body); err != nil && e.Reason != gate.ReasonUnknownEnd { // which no listener of ours has
		return err
	}
	l.events, l.bodies = append(l.events, kept), append(l.bodies, string(body))
	return nil
}

func (l *log) setFail(fail bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = fail
}

func (l *log) take() []*audit.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	events := l.events
	l.events = nil
	return events
}

// fixture is a gate of one host of a small shop.
type fixture struct {
	*gate.Gate
	clock   *stopped
	log     *log
	logged  *strings.Builder
	metrics *metric.Registry
	trust   atomic.Pointer[identity.Trust]
	snap    *snapshot.Snapshot
	keys    map[string]string // by name
	idp     *idp
}

func id(tb testing.TB, name string) identity.ID {
	tb.Helper()
	td, err := identity.ParseTrustDomain("shop.example")
	if err != nil {
		tb.Fatal(err)
	}
	id, err := identity.NewID(td, "/"+name)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// newFixture has services web, orders and ledger and the gateway edge, in force.
func newFixture(tb testing.TB) *fixture {
	tb.Helper()
	f := emptyFixture(tb)
	if err := f.Apply(f.snap); err != nil {
		tb.Fatal(err)
	}
	f.SetTrust(f.trust.Load)
	return f
}

// emptyFixture is newFixture before anything was applied.
func emptyFixture(tb testing.TB) *fixture {
	tb.Helper()
	f := &fixture{clock: &stopped{}, log: &log{}, logged: &strings.Builder{}, metrics: metric.NewRegistry(), keys: map[string]string{}, idp: newIDP(tb)}
	f.Gate = gate.New(gate.Config{
		Host: "host-1", Recorder: f.log, Clock: f.clock, Metrics: f.metrics,
		Logger: slog.New(slog.NewTextHandler(f.logged, nil)), Issuers: f.idp,
	})
	web, orders, ledger, edge := id(tb, "web"), id(tb, "orders"), id(tb, "ledger"), id(tb, "gateway/edge")
	members := []identity.ID{web, orders, ledger, edge, id(tb, "banned")}
	f.trust.Store(trust(members, id(tb, "banned")))
	route := func(i, to string) snapshot.Route {
		return snapshot.Route{PolicyTarget: "edge/routes[" + i + "]", To: to}
	}
	f.snap = &snapshot.Snapshot{
		Version: snapshot.Version, Revision: 7, Members: members,
		Services: []snapshot.Service{
			{Name: "ledger", ID: ledger},
			{Name: "orders", ID: orders},
			{Name: "web", ID: web, Outbound: []snapshot.Outbound{{To: "orders", ToID: orders}}},
		},
		Gateways: []snapshot.Gateway{{Name: "edge", ID: edge, Routes: []snapshot.Route{
			route("0", "orders"), route("1", "orders"), route("2", "orders"), route("3", "orders"),
			route("4", "orders"), route("5", "orders"),
		}}},
		Rules: []policy.Rule{
			{ID: "orders.allow[0]", Target: "orders", From: []identity.ID{web}, Methods: []string{"GET"}, Paths: []string{"/orders/**"}},
			{ID: "ledger.allow[0]", Target: "ledger", From: []identity.ID{orders}},
			{ID: "gateway.edge.routes[0]", Target: "edge/routes[0]", Any: []policy.Requirement{{Kind: policy.Public}}},
			{ID: "gateway.edge.routes[1]", Target: "edge/routes[1]", Any: []policy.Requirement{{Kind: policy.APIKey, Scopes: []string{"orders.read"}}}},
			{ID: "gateway.edge.routes[2]", Target: "edge/routes[2]", Any: []policy.Requirement{{Kind: policy.APIKey}, {Kind: policy.Public}}},
			{ID: "gateway.edge.routes[4]", Target: "edge/routes[4]", Any: []policy.Requirement{{Kind: policy.JWT, Issuer: issuer, Audience: "orders", Scopes: []string{"orders.read"}}}},
			{ID: "gateway.edge.routes[5]", Target: "edge/routes[5]", Any: []policy.Requirement{{Kind: policy.APIKey, Scopes: []string{"orders.read"}}, {Kind: policy.JWT, Issuer: issuer, Audience: "orders", Scopes: []string{"orders.read"}}}},
		},
	}
	f.addKey(tb, "reader", start.Add(time.Hour), "orders.read")
	f.addKey(tb, "writer", time.Time{}, "orders.write")
	f.addKey(tb, "ended", start, "orders.read")
	f.keys["unknown"], _, _ = authn.NewKey(rand.Reader)
	f.keys["malformed"] = f.keys["reader"][:len(f.keys["reader"])-1] + "-"
	f.keys["foreign"] = "hunter2"
	return f
}

func (f *fixture) addKey(tb testing.TB, name string, end time.Time, scopes ...string) {
	tb.Helper()
	key, parts, err := authn.NewKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	f.keys[name] = key
	f.snap.APIKeys = append(f.snap.APIKeys, snapshot.APIKey{ID: parts.ID, Name: name, Digest: parts.Digest, Scopes: scopes, NotAfter: end})
}

func trust(members []identity.ID, banned ...identity.ID) *identity.Trust {
	t := &identity.Trust{
		Epoch: 1, Bundles: map[identity.TrustDomain]*identity.Bundle{},
		Members: map[identity.ID]bool{}, Banned: map[identity.ID]bool{},
	}
	for _, m := range members {
		t.Members[m] = true
		t.Bundles[m.TrustDomain()] = &identity.Bundle{TrustDomain: m.TrustDomain()}
	}
	for _, b := range banned {
		t.Banned[b] = true
	}
	return t
}

// inbound is web's call of orders as orders' sidecar sees it.
func inbound(tb testing.TB) *call.Request {
	tb.Helper()
	return &call.Request{
		End: call.Inbound, Protocol: call.HTTP, Listener: "orders.inbound",
		Local: "orders", LocalID: id(tb, "orders"), Target: "orders", PolicyTarget: "orders",
		Method: "GET", Host: "orders", Path: "/orders/7", Header: http.Header{}, RequestID: "req-1",
		Trace:  call.Trace{TraceID: strings.Repeat("a", 32), ParentID: strings.Repeat("b", 16), SpanID: strings.Repeat("c", 16)},
		Remote: netip.MustParseAddrPort("[::ffff:10.0.0.9]:40000"), RemoteText: "10.0.0.9:40000",
		Peer:  call.Peer{ID: id(tb, "web"), Serial: "0a", Fingerprint: "0b", NotAfter: start.Add(time.Hour)},
		TLS:   call.TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", ALPN: "h2", Connection: "0c"},
		Start: start,
	}
}

// edge is a request at the gateway's route, with the named key if any.
func (f *fixture) edge(tb testing.TB, route, key string) *call.Request {
	tb.Helper()
	r := &call.Request{
		End: call.Edge, Protocol: call.HTTP, Listener: "edge.edge", Local: "edge", LocalID: id(tb, "gateway/edge"),
		Target: "orders", PolicyTarget: "edge/routes[" + route + "]", Revision: 7,
		Method: "GET", Host: "api.shop.example", Path: "/orders/7", Header: http.Header{}, RequestID: "req-2",
		Remote: netip.MustParseAddrPort("192.0.2.1:5000"), RemoteText: "192.0.2.1:5000", TLS: call.TLS{Version: "1.3"}, Start: start,
	}
	if key != "" {
		r.Header = http.Header{"X-Api-Key": {f.keys[key]}}
	}
	return r
}

// outbound is web's call of orders as web's sidecar sees it.
func outbound(tb testing.TB) *call.Request {
	tb.Helper()
	return &call.Request{
		End: call.Outbound, Protocol: call.HTTP, Listener: "web.calls.orders", Local: "web", LocalID: id(tb, "web"), Target: "orders",
		Method: "GET", Host: "orders", Path: "/orders/7", Header: http.Header{}, RequestID: "req-1",
		Remote: netip.MustParseAddrPort("127.0.0.1:41000"), RemoteText: "127.0.0.1:41000", Process: call.Process{PID: 42, UID: 0, Exe: "/opt/web"}, Start: start,
	}
}
