package gate_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/snapshot"
)

// plain is a call of orders without TLS.
func plain(tb testing.TB) *call.Request {
	tb.Helper()
	r := inbound(tb)
	r.Peer, r.TLS, r.Plaintext = call.Peer{}, call.TLS{}, true
	r.Method, r.Path = "DELETE", "/anything" // which no rule allows to anybody
	return r
}

// observing is a fixture whose orders observes for an hour.
func observing(tb testing.TB) *fixture {
	tb.Helper()
	f := newFixture(tb)
	for i := range f.snap.Services {
		f.snap.Services[i].Inbound = &snapshot.Inbound{}
		if f.snap.Services[i].Name == "orders" {
			f.snap.Services[i].Inbound.PlaintextUntil = start.Add(time.Hour)
		}
	}
	if err := f.Apply(f.snap); err != nil {
		tb.Fatal(err)
	}
	return f
}

// Without TLS a caller is let in where its service observes, until the date, and
// recorded as nobody.
func TestObserved(t *testing.T) {
	t.Parallel()
	f := observing(t)
	check := func(what string, r *call.Request, reason string, allow bool) *audit.Event {
		t.Helper()
		v := f.Check(r)
		f.Done(r, call.Outcome{Status: 200})
		events := f.log.take()
		if v.Allow != allow || v.Reason != reason || (v.Rule != "") != (reason == "allowed") || len(events) != 1 {
			t.Fatalf("%s: %+v, events %v", what, v, events)
		}
		return events[0]
	}
	e := check("observed", plain(t), gate.ReasonObserved, true)
	if !e.Caller.ID.IsZero() || e.Caller.Service != "" || e.Caller.Address != "10.0.0.9:40000" || e.TLS != nil || e.Outcome != audit.Allowed || e.Decision.Rule != "" || e.Callee.Service != "orders" {
		t.Errorf("recorded %s", f.log.bodies[0])
	}
	for _, not := range []string{"spiffe://shop.example/web", `"tls"`, `"rule"`, "serial", "fingerprint"} {
		if strings.Contains(f.log.bodies[0], not) {
			t.Errorf("recorded %s", f.log.bodies[0])
		}
	}
	tcp := plain(t)
	tcp.Protocol, tcp.Method, tcp.Path = call.TCP, "", ""
	check("tcp", tcp, gate.ReasonObserved, true)
	other := plain(t)
	other.Local, other.PolicyTarget = "ledger", "ledger"
	check("another service", other, gate.ReasonPlaintext, false)
	// With TLS nothing is otherwise: who proves nothing is nobody, and rules decide.
	nobody := inbound(t)
	nobody.Peer = call.Peer{}
	check("TLS and nobody", nobody, gate.ReasonNoIdentity, false)
	check("meshed", inbound(t), "allowed", true)

	if got := string(f.metrics.Append(nil)); !strings.Contains(got, `parley_plaintext_observed_total{service="orders"} 2`) || strings.Contains(got, `observed_total{service="ledger"}`) {
		t.Error(got)
	}
	seen := f.Plaintext()
	if len(seen) != 1 || seen[0] != (gate.Source{Service: "orders", Address: netip.MustParseAddr("10.0.0.9"), Count: 2, First: start, Last: start}) {
		t.Errorf("seen %+v", seen)
	}
	f.clock.move(time.Hour - 1)
	check("to the end", plain(t), gate.ReasonObserved, true)
	f.clock.move(1)
	check("after the end", plain(t), gate.ReasonPlaintext, false)
	if seen := f.Plaintext(); len(seen) != 1 || seen[0].Count != 3 || seen[0].Last.Sub(seen[0].First) != time.Hour-1 {
		t.Errorf("seen %+v", seen)
	}
	// A strict service forgets them.
	f.snap.Services[1].Inbound.PlaintextUntil = time.Time{}
	if err := f.Apply(f.snap); err != nil {
		t.Fatal(err)
	}
	check("strict", plain(t), gate.ReasonPlaintext, false)
	if seen := f.Plaintext(); len(seen) > 0 {
		t.Errorf("seen %+v", seen)
	}
}

// Of each service so many addresses are kept; those seen longest ago give way, and
// no call is lost from the count.
func TestObservedSources(t *testing.T) {
	t.Parallel()
	f := observing(t)
	var wg sync.WaitGroup
	const callers, calls = 200, 3
	for i := range callers {
		f.clock.move(time.Millisecond)
		wg.Go(func() {
			for range calls {
				r := plain(t)
				r.Remote = netip.MustParseAddrPort(fmt.Sprintf("10.0.1.%d:%d", i, 1000+i))
				f.Check(r)
				f.Done(r, call.Outcome{})
			}
		})
	}
	wg.Wait()
	f.clock.move(time.Second)
	last := plain(t)
	f.Check(last)
	f.Done(last, call.Outcome{})
	seen, total := f.Plaintext(), int64(0)
	for _, s := range seen {
		total += s.Count
		if s.First.After(s.Last) || s.Service != "orders" {
			t.Errorf("%+v", s)
		}
	}
	if len(seen) != 65 || total != callers*calls+1 || seen[0].Address.IsValid() || seen[0].Count < (callers-64)*calls {
		t.Errorf("%d sources with %d calls, the first %+v", len(seen), total, seen[0])
	}
	if s := seen[1]; s.Address != netip.MustParseAddr("10.0.0.9") {
		t.Errorf("the newest is not there: %+v", s)
	}
}
