package assess_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/assess/xtest"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// A bench is web, which calls orders, with a twin for orders' inbound.
type bench struct {
	t             *testing.T
	ca            *xtest.Authority
	web, orders   identity.ID
	verify, other identity.ID
	twin          *xtest.Twin
	edge          assess.Edge
	tools         assess.Tools
}

func newBench(t *testing.T, tcp bool, faults xtest.Faults) *bench {
	t.Helper()
	td, err := identity.ParseTrustDomain("shop.example")
	if err != nil {
		t.Fatal(err)
	}
	id := func(f func(identity.TrustDomain) (identity.ID, error)) identity.ID {
		t.Helper()
		v, err := f(td)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	named := func(name string) identity.ID {
		return id(func(td identity.TrustDomain) (identity.ID, error) { return identity.ServiceID(td, name) })
	}
	b := &bench{
		t: t, ca: xtest.NewAuthority(t, "shop.example"), web: named("web"), orders: named("orders"), other: named("payments"),
		verify: id(identity.VerifyID),
	}
	b.twin = &xtest.Twin{
		Faults: faults, Roots: []*x509.Certificate{b.ca.Root}, Members: []identity.ID{b.web, b.orders, b.other, b.verify}, TCP: tcp,
		Cert: b.ca.Certificate(t, b.orders), Other: b.ca.Certificate(t, b.other),
		Allow: func(caller, method, path string) bool {
			return caller == b.web.String() && (tcp || method == "GET" && path == "/orders")
		},
	}
	addr := b.twin.Start(t, "127.0.0.1:0")
	b.edge = assess.Edge{
		Caller: "web", CallerID: b.web, Callee: "orders", CalleeID: b.orders, HTTP: !tcp, Endpoints: []string{addr},
		App: "127.0.0.1:1", SameHost: true, Sidecar: true,
	}
	if !tcp {
		b.edge.Allowed, b.edge.Forbidden = assess.Request{Method: "GET", Path: "/orders"}, assess.Request{Method: "DELETE", Path: "/orders"}
	}
	own := b.ca.Credential(t, b.web)
	b.tools = assess.Tools{
		Issue: func(_ context.Context, id identity.ID, flaw assess.Check, csr []byte) ([]*x509.Certificate, error) {
			return b.ca.Probe(t, id, string(flaw), csr), nil
		},
		Roots: []*x509.Certificate{b.ca.Root},
		Own:   func(identity.ID) (*identity.Credential, error) { return own, nil },
		Call:  b.call(true),
		Stranger: func(ctx context.Context, network, addr string) (net.Conn, bool, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, network, addr)
			return c, false, err
		},
		Guarded: func(uint16) bool { return false },
		Clock:   clock.System{},
	}
	return b
}

// call is a caller's side that verifies whom it calls, or does not.
func (b *bench) call(strict bool) func(context.Context, identity.ID, identity.ID, string) error {
	return func(_ context.Context, caller, callee identity.ID, addr string) error {
		cfg := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{*b.ca.Certificate(b.t, caller)}}
		if strict {
			cfg.VerifyConnection = func(cs tls.ConnectionState) error {
				roots := x509.NewCertPool()
				roots.AddCert(b.ca.Root)
				if _, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots}); err != nil {
					return err
				}
				if cs.PeerCertificates[0].URIs[0].String() != callee.String() {
					return errors.New("another service")
				}
				return nil
			}
		}
		c, err := tls.Dial("tcp", addr, cfg)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// run is a whole verification.
func (b *bench) run() []assess.Result {
	b.t.Helper()
	s, err := assess.New(b.tools, assess.Order{Run: "r", Phase: assess.Attack, Edges: []assess.Edge{b.edge}})
	if err != nil {
		b.t.Fatal(err)
	}
	defer s.Close()
	var mu sync.Mutex
	var all []assess.Result
	tell := func(r []assess.Result) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, r...)
	}
	s.Attack(context.Background(), tell)
	b.twin.Ban(b.verify)
	s.AfterBan(context.Background(), tell)
	b.twin.Unban(b.verify)
	return all
}

// unlike are the checks that did not come out as they should, "check outcome".
func unlike(results []assess.Result) (out []string) {
	for _, r := range results {
		if r.Outcome != assess.OK {
			out = append(out, string(r.Check)+" "+string(r.Outcome)+": "+r.Detail)
		}
	}
	slices.Sort(out)
	return out
}

// bare is unlike without the details.
func bare(results []assess.Result) (out []string) {
	for _, line := range unlike(results) {
		line, _, _ = strings.Cut(line, ":")
		out = append(out, line)
	}
	return out
}

func checks(results []assess.Result) (out []assess.Check) {
	for _, r := range results {
		out = append(out, r.Check)
	}
	return out
}

// A strict inbound passes every check, each is made exactly once, and its application
// hears nothing.
func TestStrict(t *testing.T) {
	t.Parallel()
	for _, tcp := range []bool{false, true} {
		b := newBench(t, tcp, xtest.Faults{})
		got := b.run()
		if bad := unlike(got); bad != nil {
			t.Errorf("tcp %t: %q", tcp, bad)
		}
		var want []assess.Check
		for _, c := range assess.Checks() {
			if !tcp || c != assess.WrongRequest && c != assess.CutByBan {
				want = append(want, c)
			}
		}
		seen := checks(got)
		slices.Sort(want)
		slices.Sort(seen)
		// Whether this machine has an address that is not loopback is its own matter.
		drop := func(c assess.Check) bool { return c == assess.AppPort }
		if want, seen := slices.DeleteFunc(want, drop), slices.DeleteFunc(seen, drop); !slices.Equal(want, seen) {
			t.Errorf("tcp %t: the checks are %q, want %q", tcp, seen, want)
		}
		if n := b.twin.Reached(); n != 0 {
			t.Errorf("tcp %t: the application was called %d times", tcp, n)
		}
	}
}

// Every check has a twin on which it fails, and no other check with it but those that
// ask for the same.
func TestBadTwins(t *testing.T) {
	t.Parallel()
	const failed = " failed"
	for _, tt := range []struct {
		name   string
		faults xtest.Faults
		want   []assess.Check
		tcp    []assess.Check // where it is another than want
	}{
		{"client certificates optional", xtest.Faults{NoCertificate: true}, []assess.Check{assess.NoCertificate}, nil},
		{"signatures not checked", xtest.Faults{AnyCA: true}, []assess.Check{assess.ForeignCA, assess.LookAlikeCA, assess.Stranger}, nil},
		{"clock not asked", xtest.Faults{NoClock: true}, []assess.Check{assess.Expired, assess.NotYetValid}, nil},
		{"usage not looked at", xtest.Faults{AnyUsage: true}, []assess.Check{assess.WrongUsage}, nil},
		{"first of several names", xtest.Faults{FirstName: true}, []assess.Check{assess.TwoNames}, nil},
		{"whoever has a certificate", xtest.Faults{AnyMember: true}, []assess.Check{assess.Stranger}, nil},
		{"critical extensions passed over", xtest.Faults{AnyExtension: true}, []assess.Check{assess.ProbeMisused}, nil},
		{"any caller", xtest.Faults{AnyCaller: true}, []assess.Check{assess.WrongIdentity, assess.WrongRequest}, []assess.Check{assess.WrongIdentity}},
		{"any request", xtest.Faults{AnyRequest: true}, []assess.Check{assess.WrongRequest}, []assess.Check{}},
		{"TLS optional", xtest.Faults{Plaintext: true}, []assess.Check{assess.Plaintext}, nil},
		{"TLS 1.2", xtest.Faults{OldTLS: tls.VersionTLS12}, []assess.Check{assess.TLS12}, nil},
		{"TLS 1.1", xtest.Faults{OldTLS: tls.VersionTLS11}, []assess.Check{assess.TLS11, assess.TLS12}, nil},
		{"TLS 1.2, but not for probes", xtest.Faults{OldForCallers: tls.VersionTLS12}, []assess.Check{assess.TLS12}, nil},
		{"bans ignored", xtest.Faults{IgnoresBans: true}, []assess.Check{assess.Banned, assess.ResumeBan}, nil},
		{"tickets trusted", xtest.Faults{TrustsTickets: true}, []assess.Check{assess.ResumeBan}, nil},
		{"connections kept", xtest.Faults{KeepsOpen: true}, []assess.Check{assess.CutByBan}, []assess.Check{}},
	} {
		for _, tcp := range []bool{false, true} {
			t.Run(tt.name+map[bool]string{false: " http", true: " tcp"}[tcp], func(t *testing.T) {
				t.Parallel()
				want := tt.want
				if tcp && tt.tcp != nil {
					want = tt.tcp
				}
				var lines []string
				for _, c := range want {
					lines = append(lines, string(c)+failed)
				}
				slices.Sort(lines)
				got := newBench(t, tcp, tt.faults).run()
				if !slices.Equal(bare(got), lines) {
					t.Errorf("got %q, want %q", unlike(got), lines)
				}
			})
		}
	}
}

// A denial that no sidecar made is none: the request got to an application.
func TestDeniedByTheApplication(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, xtest.Faults{AppDenies: true})
	if bad := bare(b.run()); !slices.Equal(bad, []string{"wrong_identity inconclusive", "wrong_request inconclusive"}) {
		t.Errorf("got %q", bad)
	}
}

// An application that other machines reach, and one that only its own host does.
func TestAppPort(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b := newBench(t, false, xtest.Faults{})
	b.edge.App = l.Addr().String()
	if bad := bare(b.run()); !slices.Equal(bad, []string{"app_port_local warning"}) {
		t.Errorf("on loopback: %q", bad)
	}
	b.edge.SameHost, b.tools.Stranger = false, nil
	if bad := unlike(b.run()); bad != nil {
		t.Errorf("from another host: %q", bad)
	}
	all, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { all.Close() })
	ip, ok := xtest.HostAddress(t)
	if !ok {
		t.Skip("the rest needs an address that is not loopback, and this machine has none")
	}
	_, port, _ := net.SplitHostPort(all.Addr().String())
	far := newBench(t, false, xtest.Faults{})
	twin := far.twin
	far.twin = &xtest.Twin{Roots: twin.Roots, Members: twin.Members, Allow: twin.Allow, Cert: twin.Cert, Other: twin.Other}
	far.edge.Endpoints = []string{far.twin.Start(t, net.JoinHostPort(ip, "0"))}
	far.edge.App, far.edge.SameHost = "127.0.0.1:"+port, false
	if bad := bare(far.run()); !slices.Equal(bad, []string{"app_port failed"}) {
		t.Errorf("on all interfaces: %q", bad)
	}
}

// An agent that can try a port as its own user only says of a firewall that lets this
// user through neither that the port is open to others nor that it is closed.
func TestAppPortOfAGuardedHost(t *testing.T) {
	t.Parallel()
	all, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { all.Close() })
	if _, ok := xtest.HostAddress(t); !ok {
		t.Skip("this machine has no address but loopback")
	}
	_, port, _ := net.SplitHostPort(all.Addr().String())
	for _, tt := range []struct {
		own, guarded bool
		want         string
	}{{true, true, "warning"}, {true, false, "failed"}, {false, true, "failed"}} {
		b := newBench(t, false, xtest.Faults{})
		b.edge.App = "127.0.0.1:" + port
		stranger := b.tools.Stranger
		b.tools.Stranger = func(ctx context.Context, network, addr string) (net.Conn, bool, error) {
			c, _, err := stranger(ctx, network, addr)
			return c, tt.own, err
		}
		b.tools.Guarded = func(p uint16) bool { return strconv.Itoa(int(p)) == port && tt.guarded }
		if bad := bare(b.run()); !slices.Equal(bad, []string{"app_port " + tt.want, "app_port_local warning"}) {
			t.Errorf("%+v: got %q", tt, bad)
		}
	}
}

// A caller's side that does not verify whom it calls.
func TestImpostor(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, xtest.Faults{})
	b.tools.Call = b.call(false)
	if bad := bare(b.run()); !slices.Equal(bad, []string{"impostor_alike failed", "impostor_name failed"}) {
		t.Errorf("got %q", bad)
	}
	b.tools.Call = func(context.Context, identity.ID, identity.ID, string) error { return errors.New("nothing was tried") }
	if bad := bare(b.run()); !slices.Equal(bad, []string{"impostor_alike inconclusive", "impostor_name inconclusive"}) {
		t.Errorf("a caller that does not come: %q", bad)
	}
	b.edge.Sidecar = false
	if got := checks(b.run()); slices.Contains(got, assess.ImpostorName) {
		t.Errorf("a caller without a sidecar: %q", got)
	}
}

// Where the control does not work, nothing else is a pass.
func TestControl(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		faults  xtest.Faults
		outcome assess.Outcome
		change  func(*bench)
	}{
		"denied":       {xtest.Faults{DeniesAll: true}, assess.Failed, nil},
		"wrong server": {xtest.Faults{WrongServer: true}, assess.Failed, nil},
		"nobody": {xtest.Faults{}, assess.Inconclusive, func(b *bench) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.t.Fatal(err)
			}
			b.edge.Endpoints = []string{l.Addr().String()}
			l.Close()
		}},
		"no endpoint": {xtest.Faults{}, assess.Inconclusive, func(b *bench) { b.edge.Endpoints = nil }},
		"no certificate": {xtest.Faults{}, assess.Inconclusive, func(b *bench) {
			b.tools.Issue = func(context.Context, identity.ID, assess.Check, []byte) ([]*x509.Certificate, error) {
				return nil, errors.New("refused")
			}
		}},
	} {
		b := newBench(t, false, tt.faults)
		if tt.change != nil {
			tt.change(b)
		}
		for _, r := range b.run() {
			want := assess.Inconclusive
			if r.Check == assess.Control {
				want = tt.outcome
			}
			if r.Outcome != want {
				t.Errorf("%s: %s is %s (%s), want %s", name, r.Check, r.Outcome, r.Detail, want)
			}
			if r.Check == assess.Control && r.Help == "" {
				t.Errorf("%s: nothing helps against %q", name, r.Detail)
			}
		}
	}
}

// While the mesh file lets plaintext in, that is said, and nothing is sent that the
// application would get.
func TestObserved(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, xtest.Faults{Plaintext: true})
	b.edge.Observed = time.Now().Add(time.Hour)
	got := b.run()
	if bad := bare(got); !slices.Equal(bad, []string{"plaintext failed"}) {
		t.Errorf("got %q", bad)
	}
	for _, r := range got {
		if r.Check == assess.Plaintext && !strings.Contains(r.Detail, "the mesh file lets plaintext in until") {
			t.Errorf("got %+v", r)
		}
	}
	b.edge.Observed = time.Now().Add(-time.Hour)
	if bad := bare(b.run()); !slices.Equal(bad, []string{"plaintext failed"}) {
		t.Errorf("past its end: %q", bad)
	}
}

// A run that takes longer than certificates for probes live tries none that has ended:
// a ban that is ignored would pass for one.
func TestLongRun(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, xtest.Faults{})
	var offset atomic.Int64
	b.tools.Clock = moved{clock.System{}, &offset}
	issue, issued := b.tools.Issue, map[string]int{}
	var mu sync.Mutex
	b.tools.Issue = func(ctx context.Context, id identity.ID, flaw assess.Check, csr []byte) ([]*x509.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		issued[id.Path()+" "+string(flaw)]++
		return issue(ctx, id, flaw, csr)
	}
	s, err := assess.New(b.tools, assess.Order{Run: "r", Phase: assess.Attack, Edges: []assess.Edge{b.edge}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Attack(t.Context(), func([]assess.Result) {})
	for _, who := range []string{b.verify.Path() + " ", b.web.Path() + " ", b.web.Path() + " not_yet_valid"} {
		if issued[who] != 1 {
			t.Errorf("in the first phase %d for %q", issued[who], who)
		}
	}
	offset.Store(int64(3 * time.Minute))
	b.twin.Ban(b.verify)
	var after []assess.Result
	s.AfterBan(t.Context(), func(r []assess.Result) { after = r })
	if bad := unlike(after); bad != nil {
		t.Errorf("three minutes later: %q", bad)
	}
	if n := issued[b.verify.Path()+" "]; n != 2 {
		t.Errorf("three minutes later, %d for the one that is banned", n)
	}
	s.Attack(t.Context(), func([]assess.Result) {})
	if n := issued[b.web.Path()+" not_yet_valid"]; n != 2 {
		t.Errorf("three minutes later, %d that have not begun", n)
	}
}

// A connection that its sidecar may have closed for being idle says nothing of a ban.
func TestLateBan(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, xtest.Faults{})
	var offset atomic.Int64
	b.tools.Clock = moved{clock.System{}, &offset}
	s, err := assess.New(b.tools, assess.Order{Run: "r", Phase: assess.Attack, Edges: []assess.Edge{b.edge}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Attack(t.Context(), func([]assess.Result) {})
	offset.Store(int64(5 * time.Minute))
	b.twin.Ban(b.verify)
	var after []assess.Result
	s.AfterBan(t.Context(), func(r []assess.Result) { after = r })
	if bad := bare(after); !slices.Equal(bad, []string{"cut_by_ban inconclusive"}) {
		t.Errorf("five minutes later: %q", bad)
	}
}

// moved is a clock that was moved on.
type moved struct {
	clock.Clock
	by *atomic.Int64
}

func (m moved) Now() time.Time { return m.Clock.Now().Add(time.Duration(m.by.Load())) }
