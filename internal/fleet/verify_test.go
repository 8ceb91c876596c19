package fleet_test

import (
	"context"
	"crypto/x509"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
)

// plane is what an agent needs of its server for a verification.
type plane interface {
	NextOrder(ctx context.Context) (assess.Order, error)
	IssueProbe(ctx context.Context, id identity.ID, flaw assess.Check, csr []byte) ([]*x509.Certificate, error)
	Assessed(ctx context.Context, r *assess.Report) error
}

// gathered are the results of a run, "host check".
type gathered struct {
	mu  sync.Mutex
	all []string
}

func (g *gathered) got(host string, results []assess.Result) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range results {
		g.all = append(g.all, host+" "+string(r.Check))
	}
}

func (g *gathered) sorted() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(slices.Values(g.all))
}

func orders(run string, phase assess.Phase, hosts ...string) map[string]*assess.Order {
	all := map[string]*assess.Order{}
	for _, h := range hosts {
		all[h] = &assess.Order{Run: run, Phase: phase, Edges: []assess.Edge{{Caller: "web", Callee: "orders"}}}
	}
	return all
}

// Orders reach the agent of each host, over the stream and within the process;
// results and what was issued come back, and the phase ends with the last host.
func TestAssess(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	remote := h.client("a", h.agentSource("a", time.Hour), h.addr)
	watch(t, remote, 0)
	local := h.fleet.Local("b")
	for host, p := range map[string]plane{"a": remote, "b": local} {
		go func() {
			for {
				o, err := p.NextOrder(t.Context())
				if err != nil {
					return
				}
				if _, err := p.IssueProbe(t.Context(), h.ca.ID(t, "web"), assess.Expired, nil); err != nil {
					t.Errorf("%s: %v", host, err)
				}
				if _, err := p.IssueProbe(t.Context(), h.ca.ID(t, "web"), "anything", nil); err == nil {
					t.Errorf("%s: a flaw that nobody knows", host)
				}
				for _, r := range []assess.Report{{Results: []assess.Result{{Check: assess.Control}}}, {Results: []assess.Result{{Check: assess.Banned}}, Done: true}} {
					r.Run, r.Phase = o.Run, o.Phase
					// The last one may be answered when the test is over.
					if err := p.Assessed(t.Context(), &r); err != nil && t.Context().Err() == nil {
						t.Errorf("%s: %v", host, err)
					}
				}
			}
		}()
	}
	for _, phase := range []assess.Phase{assess.Attack, assess.AfterBan} {
		var g gathered
		missed := h.fleet.Assess(t.Context(), orders("one", phase, "a", "b", "c"), g.got)
		if want := map[string]string{"c": "its agent is not connected"}; !maps.Equal(missed, want) {
			t.Errorf("missed %q, want %q", missed, want)
		}
		if want := []string{"a banned", "a control", "b banned", "b control"}; !slices.Equal(g.sorted(), want) {
			t.Errorf("got %q, want %q", g.sorted(), want)
		}
	}
	said := strings.Join(h.reg.asked(), "\n")
	if !strings.Contains(said, `probe "expired" of web for a`) || !strings.Contains(said, `probe "expired" of web for b`) {
		t.Errorf("issued: %s", said)
	}
}

// An agent that is too old, one that is lost in the middle, one that is not done in
// time, and one that could not begin: each is named, and none keeps the others up.
func TestAssessMissed(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	old := hello("a")
	old.Capabilities = []string{link.Settles}
	h.raw("a").greeted(old)
	lost := h.raw("b").greeted(hello("b"))
	slow := h.raw("c").greeted(hello("c"))
	eventually(t, "connected", func() bool {
		n := 0
		for _, x := range h.fleet.Hosts() {
			if x.Connected {
				n++
			}
		}
		return n == 3
	})
	order := func(s *stream) {
		for {
			if m := s.recv(); m.Assess != nil {
				return
			}
		}
	}
	go func() {
		order(lost)
		lost.cancel()
	}()
	go order(slow)
	ctx, done := context.WithTimeout(t.Context(), time.Second)
	defer done()
	missed := h.fleet.Assess(ctx, orders("one", assess.Attack, "a", "b", "c"), func(string, []assess.Result) {})
	want := map[string]string{"a": "its agent is too old to try anything", "b": "its agent was lost while it tried", "c": "it was not done in time"}
	if !maps.Equal(missed, want) {
		t.Errorf("missed %q, want %q", missed, want)
	}
}

// What nobody waits for is refused: another run or phase, a host that was not asked
// or is done, and more results than there can be.
func TestAssessedIsAskedFor(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	a, b := h.fleet.Local("a"), h.fleet.Local("b")
	tell := func(p plane, r assess.Report) error { return p.Assessed(t.Context(), &r) }
	if err := tell(a, assess.Report{Run: "one", Phase: assess.Attack, Done: true}); err == nil {
		t.Error("nothing runs, and a report was taken")
	}
	longest := 0
	over := make(chan map[string]string)
	go func() {
		over <- h.fleet.Assess(t.Context(), orders("one", assess.Attack, "a"), func(_ string, all []assess.Result) {
			for _, r := range all {
				longest = max(longest, len(r.Detail), len(r.Endpoint), len(r.Caller), len(r.Outcome))
			}
		})
	}()
	if o, err := a.NextOrder(t.Context()); err != nil || o.Run != "one" {
		t.Fatalf("got %+v, %v", o, err)
	}
	ctx, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer done()
	if o, err := a.NextOrder(ctx); err == nil {
		t.Errorf("the same order twice: %+v", o)
	}
	for name, r := range map[string]assess.Report{
		"another run":   {Run: "two", Phase: assess.Attack, Done: true},
		"another phase": {Run: "one", Phase: assess.AfterBan, Done: true},
		"too many":      {Run: "one", Phase: assess.Attack, Results: make([]assess.Result, 1001)},
	} {
		if err := tell(a, r); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := tell(b, assess.Report{Run: "one", Phase: assess.Attack, Done: true}); err == nil {
		t.Error("of a host that was not asked: taken")
	}
	long := assess.Result{Check: assess.Control, Detail: strings.Repeat("x", 10_000), Endpoint: strings.Repeat("x", 10_000)}
	if err := tell(a, assess.Report{Run: "one", Phase: assess.Attack, Results: []assess.Result{long}, Done: true, Fault: "half of it"}); err != nil {
		t.Error(err)
	}
	if missed := <-over; !maps.Equal(missed, map[string]string{"a": "half of it"}) {
		t.Errorf("missed %q", missed)
	}
	if longest == 0 || longest > 2000 {
		t.Errorf("a text of %d bytes was passed on", longest)
	}
	if err := tell(a, assess.Report{Run: "one", Phase: assess.Attack, Done: true}); err == nil {
		t.Error("after its end: taken")
	}
}

// Whoever reads the results slowly holds nobody up: neither the agent that reports
// nor a ban.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	a := h.fleet.Local("a")
	reading, read := make(chan struct{}), make(chan struct{})
	over := make(chan map[string]string)
	go func() {
		over <- h.fleet.Assess(t.Context(), orders("one", assess.Attack, "a"), func(string, []assess.Result) {
			close(reading)
			<-read
		})
	}()
	if _, err := a.NextOrder(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Assessed(t.Context(), &assess.Report{Run: "one", Phase: assess.Attack, Results: make([]assess.Result, 1)}); err != nil {
		t.Fatal(err)
	}
	<-reading
	banned := make(chan struct{})
	go func() {
		defer close(banned)
		h.fleet.Ban([]identity.ID{h.ca.ID(t, "web")})
		_ = a.Assessed(t.Context(), &assess.Report{Run: "one", Phase: assess.Attack, Done: true})
	}()
	select {
	case <-banned:
	case <-time.After(5 * time.Second):
		t.Error("a ban waits for whoever reads the results")
	}
	close(read)
	if missed := <-over; len(missed) > 0 {
		t.Errorf("missed %q", missed)
	}
}
