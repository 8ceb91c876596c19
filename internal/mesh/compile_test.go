package mesh_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

func parse(t testing.TB, text string) *mesh.File {
	t.Helper()
	f, err := mesh.Parse("parley.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return f
}

func compile(t testing.TB, f *mesh.File) *snapshot.Snapshot {
	t.Helper()
	ports, err := mesh.AssignPorts(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := mesh.Compile(f, 7, ports, []snapshot.APIKey{{ID: "k1", Name: "ci"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// policyOf is the policy of a snapshot.
func policyOf(t testing.TB, s *snapshot.Snapshot) *policy.Set {
	t.Helper()
	var targets []string
	for _, x := range s.Services {
		if x.Inbound != nil {
			targets = append(targets, x.Name)
		}
	}
	for _, g := range s.Gateways {
		for _, r := range g.Routes {
			targets = append(targets, r.PolicyTarget)
		}
	}
	set, err := policy.Compile(s.Revision, targets, s.Rules)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestGood holds everything that follows from an accepted file.
func TestGood(t *testing.T) {
	for _, file := range files(t, "testdata/good/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := mesh.Parse(filepath.Base(file), read(t, file))
			if err != nil {
				t.Fatal(err)
			}
			s := compile(t, f)
			policyOf(t, s)
			var b strings.Builder
			enc := json.NewEncoder(&b)
			enc.SetIndent("", "  ")
			for _, v := range []any{s, mesh.Findings(f, day)} {
				if err := enc.Encode(v); err != nil {
					t.Fatal(err)
				}
			}
			b.WriteString(plan(mesh.Diff(nil, f)))
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", b.String())
		})
	}
}

func TestCompileIsDeterministic(t *testing.T) {
	t.Parallel()
	text := string(read(t, "testdata/good/everything.yaml"))
	first := compile(t, parse(t, text))
	for range 20 {
		if d := cmp.Diff(first, compile(t, parse(t, text)), cmp.Comparer(func(a, b identity.ID) bool { return a == b }),
			cmp.Comparer(func(a, b identity.TrustDomain) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Fatal(d)
		}
	}
}

func TestCompileSharesNothing(t *testing.T) {
	t.Parallel()
	f := parse(t, string(read(t, "testdata/good/everything.yaml")))
	s := compile(t, f)
	for i := range s.Rules {
		for j := range s.Rules[i].Methods {
			s.Rules[i].Methods[j] = "X"
		}
		for j := range s.Rules[i].Paths {
			s.Rules[i].Paths[j] = "/x"
		}
	}
	if got := f.Services["orders"].Allow[0]; got.Methods[0] != "GET" || got.Paths[0] != "/orders/**" {
		t.Errorf("the file changed: %+v", got)
	}
}

// calls is a mesh whose service a calls the others.
func calls(entries string, extra ...string) string {
	text := "trust_domain: shop.example\nservices:\n  a: {runs_as: {user: a}, calls: [" + entries + "]}\n"
	for i, name := range []string{"b", "c", "d"} {
		text += fmt.Sprintf("  %s: {runs_as: {user: %s}, inbound: {listen: ':%d', app: 'unix:/run/%s'}}\n", name, name, 9001+i, name)
	}
	return text + strings.Join(extra, "")
}

func TestAssignPorts(t *testing.T) {
	t.Parallel()
	ab, ac, ad := mesh.Edge{From: "a", To: "b"}, mesh.Edge{From: "a", To: "c"}, mesh.Edge{From: "a", To: "d"}
	tests := map[string]struct {
		text string
		prev mesh.Ports
		want mesh.Ports
	}{
		"fresh":            {calls("c, b"), nil, mesh.Ports{ab: 15001, ac: 15002}},
		"kept":             {calls("b, c"), mesh.Ports{ac: 15001}, mesh.Ports{ab: 15002, ac: 15001}},
		"kept_below_base":  {calls("b", "outbound_ports: 20000\n"), mesh.Ports{ab: 15007}, mesh.Ports{ab: 15007}},
		"base":             {calls("b", "outbound_ports: 20000\n"), nil, mesh.Ports{ab: 20000}},
		"gone":             {calls("b"), mesh.Ports{ac: 15001, ad: 15002}, mesh.Ports{ab: 15001}},
		"around_stated":    {calls("b, {to: c, listen: '127.0.0.1:15001'}"), nil, mesh.Ports{ab: 15002}},
		"around_localhost": {calls("b, {to: c, listen: 'localhost:15001'}"), nil, mesh.Ports{ab: 15002}},
		"around_wildcard":  {calls("b", "  x: {runs_as: {user: x}, inbound: {listen: ':15001', app: 'unix:/x'}}\n"), nil, mesh.Ports{ab: 15002}},
		"around_app":       {calls("b", "  x: {runs_as: {user: x}, inbound: {listen: ':80', app: '127.0.0.1:15001'}}\n"), nil, mesh.Ports{ab: 15002}},
		"beside_other_host": {
			calls("b", "  x: {runs_as: {user: x}, inbound: {listen: '10.0.0.1:15001', app: 'unix:/x'}}\n"), nil, mesh.Ports{ab: 15001},
		},
		"moved_to_stated": {calls("{to: b, listen: '127.0.0.1:15001'}, c"), mesh.Ports{ab: 15001}, mesh.Ports{ac: 15002}},
		"twice_in_prev":   {calls("b, c"), mesh.Ports{ab: 15001, ac: 0}, mesh.Ports{ab: 15001, ac: 15002}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := parse(t, tt.text)
			prev := tt.prev.Clone()
			got, err := mesh.AssignPorts(f, tt.prev)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if d := cmp.Diff(prev, tt.prev); d != "" {
				t.Errorf("prev changed: %s", d)
			}
			if _, err := mesh.Compile(f, 1, got, nil); err != nil {
				t.Error(err)
			}
			again, err := mesh.AssignPorts(f, got)
			if err != nil || !cmp.Equal(got, again) {
				t.Errorf("not stable: %v %v, %v", got, again, err)
			}
		})
	}
}

func TestAssignPortsRefusesToMoveAPort(t *testing.T) {
	t.Parallel()
	f := parse(t, calls("b", "  x: {runs_as: {user: x}, inbound: {listen: ':15001', app: 'unix:/x'}}\n"))
	prev := mesh.Ports{{From: "a", To: "b"}: 15001}
	for what, err := range map[string]error{
		"assign":  second(mesh.AssignPorts(f, prev)),
		"compile": second(mesh.Compile(f, 1, prev, nil)),
	} {
		faults := fault.All(err)
		if len(faults) != 1 || faults[0].Code != fault.MeshPortTaken || faults[0].Line != 7 || faults[0].File != "parley.yaml" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAssignPortsRefusesTwoEdgesOnOnePort(t *testing.T) {
	t.Parallel()
	f := parse(t, calls("b, c"))
	prev := mesh.Ports{{From: "a", To: "b"}: 15001, {From: "a", To: "c"}: 15001}
	if _, err := mesh.AssignPorts(f, prev); err == nil {
		t.Error("assigned")
	}
	if _, err := mesh.Compile(f, 1, prev, nil); err == nil {
		t.Error("compiled")
	}
}

func second[T any](_ T, err error) error { return err }

func TestCompileWantsPorts(t *testing.T) {
	t.Parallel()
	if _, err := mesh.Compile(parse(t, calls("b")), 1, nil, nil); err == nil {
		t.Error("compiled without a port")
	}
}

// TestRoutesMayCall follows a request from the edge to the service.
func TestRoutesMayCall(t *testing.T) {
	t.Parallel()
	s := compile(t, parse(t, string(read(t, "testdata/good/example.yaml"))))
	set := policyOf(t, s)
	edge := s.Gateways[0]
	tests := map[string]struct {
		q    policy.Query
		want policy.Decision
	}{
		"key":        {policy.Query{Target: "edge/routes[0]", Caller: identity.Caller{KeyID: "k", Scopes: []string{"orders.read"}}, Method: "GET", Path: "/orders/7"}, policy.Decision{Allow: true, Rule: "gateway.edge.routes[0]", Reason: policy.Allowed}},
		"no_scope":   {policy.Query{Target: "edge/routes[0]", Caller: identity.Caller{KeyID: "k"}, Method: "GET", Path: "/orders/7"}, policy.Decision{Reason: policy.ScopeMissing}},
		"nobody":     {policy.Query{Target: "edge/routes[0]", Method: "GET", Path: "/orders/7"}, policy.Decision{Reason: policy.NoCredential}},
		"onward":     {policy.Query{Target: "orders", Caller: identity.Caller{Workload: edge.ID}, Method: "GET", Path: "/orders/7"}, policy.Decision{Allow: true, Rule: "gateway.edge.routes[0]", Reason: policy.Allowed}},
		"other_path": {policy.Query{Target: "orders", Caller: identity.Caller{Workload: edge.ID}, Method: "GET", Path: "/admin"}, policy.Decision{Reason: policy.PathNotAllowed}},
		"other":      {policy.Query{Target: "db", Caller: identity.Caller{Workload: edge.ID}}, policy.Decision{Reason: policy.CallerNotAllowed}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := set.Decide(tt.q)
			opts := cmpopts.IgnoreFields(policy.Decision{}, "Revision", "Rule")
			if d := cmp.Diff(tt.want, got, opts); d != "" || tt.want.Allow && got.Rule != tt.want.Rule {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}
