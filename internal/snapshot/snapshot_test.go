package snapshot_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var (
	td        = must(identity.ParseTrustDomain("shop.example"))
	identical = cmp.Options{
		cmp.Comparer(func(a, b identity.ID) bool { return a == b }), cmp.Comparer(func(a, b identity.TrustDomain) bool { return a == b }), cmpopts.EquateEmpty(),
	}
)

func id(name string) identity.ID { return must(identity.NewID(td, "/"+name)) }

// whole is a mesh on hosts one and two, with something of everything.
func whole() *snapshot.Snapshot {
	return &snapshot.Snapshot{
		Version: snapshot.Version, Revision: 5, TrustDomain: td, Domain: "shop.example", LeafTTL: time.Hour,
		Hosts:  []snapshot.Host{{Name: "one", ID: id("parley/agent/one"), Advertise: "10.0.0.1"}, {Name: "two", ID: id("parley/agent/two"), Advertise: "10.0.0.2"}},
		Admins: []snapshot.Admin{{Name: "alice", ID: id("parley/admin/alice"), Role: "admin"}},
		Services: []snapshot.Service{
			{
				Name: "front", ID: id("front"), RunsOn: []string{"one"}, RunsAs: snapshot.RunsAs{User: "front", SHA256: strings.Repeat("a", 64)},
				Outbound: []snapshot.Outbound{{To: "back", ToID: id("back"), Listen: "127.0.0.1:15001", Protocol: "http", Places: snapshot.Places{Endpoints: []string{"from the file"}}}},
			},
			{
				Name: "back", ID: id("back"), RunsOn: []string{"two"}, RunsAs: snapshot.RunsAs{Systemd: "secret-unit.service"},
				Inbound: &snapshot.Inbound{Listen: ":9443", App: "unix:/run/secret.sock", Protocol: "http", AppHTTP2: true, Probe: &snapshot.Probe{Path: "/secret/health", Method: "HEAD"}},
			},
			{Name: "both", ID: id("both"), RunsOn: []string{"one", "two"}, RunsAs: snapshot.RunsAs{User: "both"}, Inbound: &snapshot.Inbound{Listen: ":9444", App: "127.0.0.1:1", Protocol: "tcp"}},
		},
		Gateways: []snapshot.Gateway{{
			Name: "edge", ID: id("gateway/edge"), RunsOn: []string{"two"}, Listen: ":443", CertFile: "/secret/cert.pem", KeyFile: "/secret/key.pem", Hosts: []string{"shop.example"},
			Routes: []snapshot.Route{{PolicyTarget: "edge/routes[0]", Host: "*.shop.example", Path: "/secret/**", Methods: []string{"GET"}, To: "back", ToID: id("back"), Places: snapshot.Places{Endpoints: []string{"from the file"}}}},
		}},
		Rules: []policy.Rule{
			{ID: "back.allow[0]", Target: "back", From: []identity.ID{id("front")}, Methods: []string{"GET"}, Paths: []string{"/secret/**"}, File: "m.yaml", Line: 7},
			{ID: "both.allow[0]", Target: "both", From: []identity.ID{id("front"), id("back")}},
			{ID: "front.allow[0]", Target: "front", From: []identity.ID{id("back")}}, // it has no inbound: nobody decides by this
			{ID: "gateway.edge.routes[0]", Target: "edge/routes[0]", Any: []policy.Requirement{{Kind: policy.APIKey, Scopes: []string{"secret.read"}}}},
		},
		APIKeys: []snapshot.APIKey{{ID: "k1", Name: "secret-ci", Digest: [32]byte{1, 2, 3}, Scopes: []string{"secret.read"}, NotAfter: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}},
		Members: []identity.ID{id("back"), id("both"), id("front"), id("gateway/edge")},
	}
}

func names(s *snapshot.Snapshot) (all []string) {
	for _, h := range s.Hosts {
		all = append(all, "host "+h.Name)
	}
	for _, v := range s.Services {
		all = append(all, v.Name)
	}
	for _, g := range s.Gateways {
		all = append(all, "gateway "+g.Name)
	}
	for _, r := range s.Rules {
		all = append(all, r.ID)
	}
	for _, k := range s.APIKeys {
		all = append(all, "key "+k.ID)
	}
	return all
}

// An agent learns nothing of what other hosts run but who the members are.
func TestSliceIsTheHostsOwn(t *testing.T) {
	t.Parallel()
	s, before := whole(), whole()
	ends := func(to string) []string { return []string{to + ":1", "from the file"} }
	for host, want := range map[string][]string{
		"one":   {"host one", "front", "both", "both.allow[0]"},
		"two":   {"host two", "back", "both", "gateway edge", "back.allow[0]", "both.allow[0]", "gateway.edge.routes[0]", "key k1"},
		"three": nil,
		"":      nil,
	} {
		got := s.For(host, ends)
		if diff := cmp.Diff(want, names(got)); diff != "" {
			t.Errorf("%s:\n%s", host, diff)
		}
		if diff := cmp.Diff(s.Members, got.Members, identical); diff != "" || got.Revision != 5 || got.LeafTTL != time.Hour {
			t.Errorf("%s:\n%s", host, diff)
		}
		data := string(must(snapshot.Encode(got)))
		if host != "two" && strings.Contains(data, "secret") {
			t.Errorf("%s is told secrets: %s", host, data)
		}
		if strings.Contains(data, "alice") {
			t.Errorf("%s is told who administers: %s", host, data)
		}
		for _, v := range got.Services {
			for _, o := range v.Outbound {
				if !slices.Equal(o.Endpoints, []string{"back:1", "from the file"}) {
					t.Errorf("%s: %s is at %v", host, o.To, o.Endpoints)
				}
			}
		}
		for _, g := range got.Gateways {
			if !slices.Equal(g.Routes[0].Endpoints, []string{"back:1", "from the file"}) {
				t.Errorf("%s: the route leads to %v", host, g.Routes[0].Endpoints)
			}
		}
	}
	if p := s.For("two", ends).Services[0].Inbound.Probe; p == nil || p.Path != "/secret/health" || p.Method != "HEAD" {
		t.Errorf("back's host is told of the probe %+v", p)
	}
	if diff := cmp.Diff(before, s, identical); diff != "" {
		t.Errorf("the whole was changed:\n%s", diff)
	}
	if got := s.For("one", nil); got.Services[0].Outbound[0].Endpoints[0] != "from the file" {
		t.Errorf("got %v", got.Services[0].Outbound)
	}
}

func TestSliceOfAMeshOnOneMachine(t *testing.T) {
	t.Parallel()
	s := whole()
	s.Hosts = nil
	got := s.For("any", nil)
	s.Admins = nil
	if diff := cmp.Diff(s, got, identical); diff != "" {
		t.Error(diff)
	}
}

// What is decided on a host by its slice is what would be decided by the whole, for
// everything that is decided there.
func TestSliceDecidesAsTheWhole(t *testing.T) {
	t.Parallel()
	const meshes, queries = 200, 60
	allowed := 0
	for seed := range uint64(meshes) {
		r := rand.New(rand.NewPCG(seed, 1))
		s, targets := random(r)
		all := compile(t, s)
		for _, h := range s.Hosts {
			part := s.For(h.Name, nil)
			own := compile(t, part)
			for range queries {
				target := targets[r.IntN(len(targets))]
				if !decides(part, target) {
					continue
				}
				q := policy.Query{Target: target, Caller: caller(r), Method: pick(r, "", "GET", "POST"), Path: pick(r, "", "/a", "/a/b", "/c")}
				want, got := all.Decide(q), own.Decide(q)
				if diff := cmp.Diff(want, got, identical); diff != "" {
					t.Fatalf("mesh %d, host %s, %+v:\n%s", seed, h.Name, q, diff)
				}
				if got.Allow {
					allowed++
				}
			}
		}
	}
	if allowed < 100 {
		t.Errorf("%d decisions allowed: the meshes have nothing to decide", allowed)
	}
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func caller(r *rand.Rand) identity.Caller {
	c := identity.Caller{Workload: id(fmt.Sprintf("s%d", r.IntN(6)))}
	return c
}

func random(r *rand.Rand) (*snapshot.Snapshot, []string) {
	s := whole()
	s.Hosts, s.Services, s.Gateways, s.Rules = nil, nil, nil, nil
	hosts := []string{"h0", "h1", "h2"}
	for _, h := range hosts {
		s.Hosts = append(s.Hosts, snapshot.Host{Name: h, ID: id("parley/agent/" + h)})
	}
	var targets []string
	rule := func(target string) {
		for i := range r.IntN(4) {
			x := policy.Rule{ID: fmt.Sprintf("%s.allow[%d]", target, i), Target: target}
			for range r.IntN(3) {
				x.From = append(x.From, id(fmt.Sprintf("s%d", r.IntN(6))))
			}
			if r.IntN(2) == 0 {
				x.Methods = []string{pick(r, "GET", "POST")}
			}
			if r.IntN(2) == 0 {
				x.Paths = []string{pick(r, "/a", "/a/**", "/*")}
			}
			if strings.Contains(target, "routes") && r.IntN(2) == 0 {
				x.Any = []policy.Requirement{{Kind: policy.Public}}
			}
			s.Rules = append(s.Rules, x)
		}
		targets = append(targets, target)
	}
	for i := range 6 {
		v := snapshot.Service{Name: fmt.Sprintf("s%d", i), ID: id(fmt.Sprintf("s%d", i)), RunsOn: hosts[:1+r.IntN(3)]}
		if r.IntN(4) > 0 {
			v.Inbound = &snapshot.Inbound{Listen: ":1", Protocol: "http"}
		}
		s.Services = append(s.Services, v)
		rule(v.Name)
	}
	g := snapshot.Gateway{Name: "edge", ID: id("gateway/edge"), RunsOn: hosts[r.IntN(3):]}
	for i := range 3 {
		target := fmt.Sprintf("edge/routes[%d]", i)
		g.Routes = append(g.Routes, snapshot.Route{PolicyTarget: target, To: "s0"})
		rule(target)
	}
	s.Gateways = append(s.Gateways, g)
	return s, targets
}

// decides says whether a host with s is ever asked about target.
func decides(s *snapshot.Snapshot, target string) bool {
	for _, v := range s.Services {
		if v.Name == target && v.Inbound != nil {
			return true
		}
	}
	for _, g := range s.Gateways {
		for _, r := range g.Routes {
			if r.PolicyTarget == target {
				return true
			}
		}
	}
	return false
}

// compile compiles the rules as a gate does.
func compile(t *testing.T, s *snapshot.Snapshot) *policy.Set {
	t.Helper()
	var targets []string
	for _, v := range s.Services {
		targets = append(targets, v.Name)
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

func TestEncodeAndDecode(t *testing.T) {
	t.Parallel()
	for _, s := range []*snapshot.Snapshot{whole(), whole().For("one", nil), whole().For("nobody", nil)} {
		s.Admins = nil // they stay on the server
		got, err := snapshot.Decode(must(snapshot.Encode(s)))
		if diff := cmp.Diff(s, got, identical); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	good := string(must(snapshot.Encode(whole())))
	replaced := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %s in %s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, tt := range map[string]struct {
		text string
		want error
	}{
		"nothing": {"", nil}, "no JSON": {"x", nil}, "list": {"[]", nil}, "null": {"null", snapshot.ErrVersion}, "cut": {good[:len(good)-1], nil},
		"two": {good + good, nil}, "trailing": {good + "x", nil},
		"no version": {replaced(`"version":1,`, ``), snapshot.ErrVersion}, "later": {replaced(`"version":1,`, `"version":2,"new_field":1,`), snapshot.ErrVersion},
		"version of another kind": {replaced(`"version":1,`, `"version":"1",`), nil},
		"unknown field":           {replaced(`"revision":5`, `"revision":5,"mode":"observe"`), nil},
		"unknown in a service":    {replaced(`"runs_as":{`, `"runs_as":{"pid":1,`), nil},
		"unknown in a rule":       {replaced(`"target":"back"`, `"target":"back","unless":1`), nil},
		"unknown in a route":      {replaced(`"policy_target"`, `"limit":1,"policy_target"`), nil},
		"unknown in a probe":      {replaced(`"path":"/secret/health"`, `"path":"/secret/health","query":"x"`), nil},
		"unknown in a key":        {replaced(`"digest"`, `"from":"x","digest"`), nil},
		"administrators":          {replaced(`"revision":5`, `"revision":5,"admins":[]`), nil},
		"trust domain":            {replaced(`"shop.example","leaf`, `"Shop","leaf`), nil}, "no trust domain": {replaced(`"trust_domain":"shop.example",`, ``), nil},
		"identity":  {replaced(`spiffe://shop.example/front`, `http://shop.example/front`), nil},
		"too large": {strings.Repeat(" ", snapshot.MaxSize) + good, snapshot.ErrTooLarge},
	} {
		s, err := snapshot.Decode([]byte(tt.text))
		if err == nil || s != nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, %v", name, s != nil, err)
		}
	}
}

func TestEncodeIsBounded(t *testing.T) {
	t.Parallel()
	s := whole()
	s.Services[0].RunsAs.User = strings.Repeat("x", snapshot.MaxSize)
	if _, err := snapshot.Encode(s); !errors.Is(err, snapshot.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(must(snapshot.Encode(whole())))
	f.Add(must(snapshot.Encode(whole().For("one", nil))))
	f.Add([]byte(`{"version":1,"trust_domain":"td"}`))
	f.Add([]byte(`{"version":1,"trust_domain":"td","services":[{"name":"a","id":"spiffe://td/a","runs_as":{}}]} {}`))
	f.Add([]byte(`{"version":2,"x":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := snapshot.Decode(data)
		if err != nil {
			return
		}
		again := must(snapshot.Encode(s))
		got, err := snapshot.Decode(again)
		if err != nil {
			t.Fatalf("not read again: %v\n%s", err, again)
		}
		if !bytes.Equal(must(json.Marshal(got)), again) {
			t.Errorf("another one: %s", again)
		}
		_ = s.For("one", func(string) []string { return nil })
	})
}
