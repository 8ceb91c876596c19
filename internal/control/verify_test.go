package control_test

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/identity"
)

// A prober plays the agents of all hosts.
type prober struct {
	runtime *runtime

	mu     sync.Mutex // guards what follows
	said   []string   // what was asked of it, in order
	probes map[string]map[identity.ID]bool
	edges  []assess.Edge
	// try is what a host says of an order; nil is that everything is well.
	try    func(ctx context.Context, o *assess.Order) ([]assess.Result, string)
	banned map[assess.Phase][]identity.ID // who was banned while a phase was tried
}

func (p *prober) Host() string { return "h1" }

func (p *prober) Endpoints(string, string) []string { return []string{place} }

func (p *prober) SetProbes(probes map[string]map[identity.ID]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probes = probes
}

func (p *prober) Assess(ctx context.Context, orders map[string]*assess.Order, got func(string, []assess.Result)) map[string]string {
	missed := map[string]string{}
	for _, host := range slices.Sorted(maps.Keys(orders)) {
		o := orders[host]
		p.mu.Lock()
		p.said = append(p.said, string(o.Phase)+" "+host)
		if p.banned == nil {
			p.banned = map[assess.Phase][]identity.ID{}
		}
		p.runtime.mu.Lock()
		p.banned[o.Phase] = slices.Clone(p.runtime.banned)
		p.runtime.mu.Unlock()
		if o.Phase == assess.Attack {
			p.edges = o.Edges
		}
		try := p.try
		p.mu.Unlock()
		results, why := p.well(o.Phase), ""
		if try != nil {
			results, why = try(ctx, o)
		}
		if o.Phase != assess.Over {
			got(host, results)
		}
		if why != "" {
			missed[host] = why
		}
	}
	return missed
}

// place is where every service can be called.
const place = "127.0.0.1:9443"

// well is what a host says of phase where everything is as it should be.
func (p *prober) well(phase assess.Phase) (results []assess.Result) {
	check := map[assess.Phase]assess.Check{assess.Attack: assess.Control, assess.AfterBan: assess.Banned}[phase]
	for _, e := range p.edges {
		results = append(results, assess.Result{Caller: e.Caller, Callee: e.Callee, Endpoint: place, Check: check, Outcome: assess.OK})
	}
	return results
}

// verify runs a verification and returns its lines.
func (h *house) verify(t *testing.T, r api.VerifyRequest) (lines []*api.VerifyLine, err error) {
	t.Helper()
	err = h.client.VerifyMesh(t.Context(), r, func(l *api.VerifyLine) error {
		lines = append(lines, l)
		return nil
	})
	return lines, err
}

// The plan first, then results, then the end; the ban is in force in the second
// phase and at no other time, certificates for probes may be had while it runs, and
// what came of it is on record.
func TestVerify(t *testing.T) {
	t.Parallel()
	h := applied(t)
	lines, err := h.verify(t, api.VerifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	plan := lines[0].Plan
	if plan.Edges != 3 || plan.Revision != 1 || plan.TrustDomain != "shop.example" || !slices.Equal(plan.Hosts, []string{"h1"}) {
		t.Errorf("plan %+v", plan)
	}
	if end := lines[len(lines)-1]; end.Done.Missed == nil || len(end.Done.Missed) > 0 {
		t.Errorf("the end is %+v", end)
	}
	if r := lines[1].Results; len(r) != 3 || r[0].Check != "control" || r[0].Line == 0 || r[0].File != "parley.yaml" || lines[1].Host != "h1" {
		t.Errorf("results %+v", lines[1])
	}
	if want := []string{"attack h1", "after_ban h1", "over h1"}; !slices.Equal(h.prober.said, want) {
		t.Errorf("asked %q, want %q", h.prober.said, want)
	}
	if len(h.prober.banned[assess.Attack]) != 0 || len(h.prober.banned[assess.AfterBan]) != 1 || h.prober.banned[assess.AfterBan][0].Path() != "/parley/verify" || len(h.runtime.banned) != 0 {
		t.Errorf("banned %v, and at the end %v", h.prober.banned, h.runtime.banned)
	}
	if h.prober.probes != nil {
		t.Errorf("certificates for probes may still be had: %v", h.prober.probes)
	}
	var callers []string
	for _, e := range h.prober.edges {
		callers = append(callers, e.Caller+" -> "+e.Callee+" "+e.Allowed.String())
		if !e.SameHost || e.HTTP != (e.Callee == "orders") || e.App == "" || len(e.Endpoints) != 1 || e.CallerID.IsZero() || e.CalleeID.IsZero() {
			t.Errorf("edge %+v", e)
		}
	}
	if diff := cmp.Diff([]string{"gateway/edge -> orders GET /orders", "orders -> db  ", "web -> orders GET /orders"}, callers); diff != "" {
		t.Error(diff)
	}
	e := h.memory.last(t)
	if e.Action != audit.MeshVerified || e.Outcome != audit.Success || !strings.Contains(e.Message, "3 edges") || e.Object.Name != plan.Run {
		t.Errorf("recorded %+v", e)
	}
	if diff := cmp.Diff([]audit.Action{audit.ConfigApplied, audit.IdentityBanned, audit.IdentityUnbanned, audit.MeshVerified}, h.actions()); diff != "" {
		t.Error(diff)
	}
}

// Of what a host says, only checks and outcomes that there are count, and edges that
// it was asked for.
func TestVerifyBelievesWhatItAskedFor(t *testing.T) {
	t.Parallel()
	h := applied(t)
	h.prober.try = func(context.Context, *assess.Order) ([]assess.Result, string) {
		return []assess.Result{
			{Caller: "web", Callee: "orders", Endpoint: place, Check: assess.Plaintext, Outcome: assess.Failed, Detail: "x"},
			{Caller: "web", Callee: "payments", Endpoint: place, Check: assess.Control, Outcome: assess.OK},
			{Caller: "web", Callee: "orders", Endpoint: "10.9.9.9:1", Check: assess.Control, Outcome: assess.OK},
			{Caller: "web", Callee: "orders", Endpoint: place, Check: "made_up", Outcome: assess.OK},
			{Caller: "web", Callee: "orders", Endpoint: place, Check: assess.Control, Outcome: "splendid"},
		}, "half of it"
	}
	lines, err := h.verify(t, api.VerifyRequest{From: "web", To: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	if r := lines[1].Results; len(r) != 1 || r[0].Check != "plaintext" {
		t.Errorf("passed on %+v", r)
	}
	if m := lines[len(lines)-1].Done.Missed; len(m) != 1 || m[0].Host != "h1" || m[0].Why != "half of it" {
		t.Errorf("missed %+v", m)
	}
	if e := h.memory.last(t); e.Outcome != audit.Failure || !strings.Contains(e.Message, "1 failed") || !strings.Contains(e.Message, `not all was tried from ["h1"]`) {
		t.Errorf("recorded %+v", e)
	}
	// A host that missed the first phase is not asked for the second.
	if want := []string{"attack h1", "over h1"}; !slices.Equal(h.prober.said, want) {
		t.Errorf("asked %q, want %q", h.prober.said, want)
	}
}

// What a host says that it is done with, and of which nothing is known, is no pass.
func TestVerifyLosesNothing(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(phase assess.Phase, r []assess.Result) []assess.Result{
		"all of the first phase": func(p assess.Phase, r []assess.Result) []assess.Result {
			if p == assess.Attack {
				return nil
			}
			return r
		},
		"one edge with the ban": func(p assess.Phase, r []assess.Result) []assess.Result {
			if p == assess.AfterBan {
				return r[1:]
			}
			return r
		},
	} {
		h := applied(t)
		h.prober.try = func(_ context.Context, o *assess.Order) ([]assess.Result, string) {
			return lose(o.Phase, h.prober.well(o.Phase)), ""
		}
		lines, err := h.verify(t, api.VerifyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if m := lines[len(lines)-1].Done.Missed; len(m) != 1 || m[0].Host != "h1" || !strings.Contains(m[0].Why, "did not tell") {
			t.Errorf("%s: missed %+v", name, m)
		}
		if e := h.memory.last(t); e.Outcome != audit.Failure {
			t.Errorf("%s: recorded %+v", name, e)
		}
	}
}

// A revision that comes in the middle was not tried, so that nothing passes for it.
func TestVerifyOvertaken(t *testing.T) {
	t.Parallel()
	h := applied(t)
	h.prober.try = func(ctx context.Context, o *assess.Order) ([]assess.Result, string) {
		if o.Phase == assess.Attack {
			text := strings.Replace(meshFile, "GET, ", "", 1)
			if _, err := h.client.Apply(ctx, api.ApplyRequest{Name: "parley.yaml", Text: text}); err != nil || text == meshFile {
				t.Error(err)
			}
		}
		return h.prober.well(o.Phase), ""
	}
	lines, err := h.verify(t, api.VerifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m := lines[len(lines)-1].Done.Missed; len(m) != 1 || !strings.Contains(m[0].Why, "revision 2 was applied meanwhile") {
		t.Errorf("missed %+v", m)
	}
}

// What one host says, however much, does not keep the client from reading the others.
func TestVerifyOfATalkativeHost(t *testing.T) {
	t.Parallel()
	h := applied(t)
	h.prober.try = func(context.Context, *assess.Order) (results []assess.Result, why string) {
		for i := range 50 * len(assess.Checks()) {
			r := h.prober.well(assess.Attack)[0]
			r.Check = assess.Checks()[i/50]
			r.Detail, r.Help, r.Decision = strings.Repeat("\x01", 1000), strings.Repeat("\x02", 1000), strings.Repeat("\x03", 1000)
			results = append(results, r)
		}
		return results, ""
	}
	lines, err := h.verify(t, api.VerifyRequest{From: "web", To: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range lines {
		n += len(l.Results)
	}
	if n != len(assess.Checks()) || lines[len(lines)-1].Done.Missed == nil {
		t.Errorf("%d results, where %d were asked for, and the end is %+v", n, len(assess.Checks()), lines[len(lines)-1])
	}
}

func TestVerifyRefusals(t *testing.T) {
	t.Parallel()
	empty := newServer(t)
	if w := try(empty, newRequest("POST", "/v1/verify", `{}`)); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "no mesh file yet") {
		t.Errorf("without a mesh file: %d %s", w.Code, w.Body)
	}
	h := applied(t)
	for body, want := range map[string]string{
		`{"from":"db"}`:                 "does not allow an edge from db",
		`{"from":"web","to":"db"}`:      "does not allow an edge from web to db",
		`{"from":"web","to":"nowhere"}`: "the mesh file has no nowhere",
		`{"from":"gateway/web"}`:        "the mesh file has no gateway/web",
		`{"timeout":-1}`:                "timeout is 1 to 600",
		`{"timeout":601}`:               "timeout is 1 to 600",
		`{"until":"now"}`:               `\"until\" is no field`,
	} {
		if w := try(h, newRequest("POST", "/v1/verify", body)); w.Code < 400 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	if len(h.prober.said) > 0 {
		t.Errorf("asked %q", h.prober.said)
	}
}

// An agent that never says that it let go, because it hangs or will not, keeps neither
// the ban in force nor the run off the record.
func TestVerifyEndsWithoutItsHosts(t *testing.T) {
	t.Parallel()
	h := applied(t)
	h.prober.try = func(_ context.Context, o *assess.Order) ([]assess.Result, string) {
		if o.Phase != assess.Over {
			return h.prober.well(o.Phase), ""
		}
		h.runtime.mu.Lock()
		defer h.runtime.mu.Unlock()
		if len(h.runtime.banned) != 0 {
			t.Errorf("%v is banned until the last host answers", h.runtime.banned)
		}
		return nil, ""
	}
	if _, err := h.verify(t, api.VerifyRequest{}); err != nil {
		t.Fatal(err)
	}
	if n := len(h.prober.banned[assess.AfterBan]); n != 1 {
		t.Errorf("%d banned in the second phase", n)
	}
}

// One at a time. One that is left in the middle takes back what it put in force.
func TestVerifyLeft(t *testing.T) {
	t.Parallel()
	h := applied(t)
	second := make(chan struct{})
	h.prober.try = func(ctx context.Context, o *assess.Order) ([]assess.Result, string) {
		if o.Phase == assess.AfterBan {
			close(second)
			<-ctx.Done()
		}
		return nil, ""
	}
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		left <- h.client.VerifyMesh(ctx, api.VerifyRequest{}, func(*api.VerifyLine) error { return nil })
	}()
	<-second
	if w := try(h, newRequest("POST", "/v1/verify", `{}`)); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "another verification is running") {
		t.Errorf("a second one: %d %s", w.Code, w.Body)
	}
	leave()
	err := <-left
	if err == nil {
		t.Error("one that was left has ended well")
	}
	h.prober.mu.Lock()
	h.prober.try = nil
	h.prober.mu.Unlock()
	for range 500 { // until the first one has ended
		if _, err = h.verify(t, api.VerifyRequest{}); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("another cannot run: %v", err)
	}
	h.runtime.mu.Lock()
	defer h.runtime.mu.Unlock()
	if len(h.runtime.banned) != 0 || h.prober.probes != nil {
		t.Errorf("left in force: %v, %v", h.runtime.banned, h.prober.probes)
	}
	said := strings.Join(h.prober.said, ", ")
	if !strings.HasPrefix(said, "attack h1, after_ban h1, over h1") {
		t.Errorf("asked %s", said)
	}
	if n := strings.Count(said, "over h1"); n < 2 {
		t.Errorf("%d ends: %s", n, said)
	}
}

// A place of the callee that callers are not told of was not tried, which is no pass.
func TestVerifyNamesWhatIsWithdrawn(t *testing.T) {
	t.Parallel()
	h := serve(t)
	const text = `trust_domain: shop.example
hosts: {h1: {}, h2: {}, h3: {}}
services:
  web:
    runs_on: [h1]
    runs_as: {user: web}
    calls: [orders]
  orders:
    runs_on: [h2, h3]
    runs_as: {user: orders}
    inbound: {listen: ":9443", app: 127.0.0.1:8080}
    allow: [{from: [web]}]
`
	if _, err := h.client.Apply(t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: text}); err != nil {
		t.Fatal(err)
	}
	h.runtime.down = api.ServiceStatus{Name: "orders", State: api.StateWaiting, Endpoints: []api.EndpointStatus{
		{Address: "10.0.0.2:9443", Host: "h2", State: api.StateOK},
		{Address: ":9443", Host: "h3", State: api.StateWaiting, Note: "on h3: the host is not connected"},
		{Address: ":9443", Host: "h4", State: api.StateFailed, Note: "on h4: unhealthy"},
		{Address: "10.0.0.9:9443"}, // listed: nobody knows
	}}
	lines, err := h.verify(t, api.VerifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range lines {
		for _, r := range l.Results {
			if r.Outcome == api.Inconclusive {
				got = append(got, l.Host+": "+r.Caller+" -> "+r.Callee+" "+r.Check+": "+r.Detail)
			}
		}
	}
	if want := []string{"h1: web -> orders control: orders was not tried, since callers are not told of it, on h3 (the host is not connected), on h4 (unhealthy)"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
