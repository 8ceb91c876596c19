package snapshot_test

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

func edges() *snapshot.Snapshot {
	jwt := func(issuer string) []policy.Requirement {
		return []policy.Requirement{{Kind: policy.JWT, Issuer: issuer, Audience: "orders", Scopes: []string{"read"}}}
	}
	return &snapshot.Snapshot{
		Version: snapshot.Version, Domain: "shop.example", Hosts: []snapshot.Host{{Name: "a"}, {Name: "b"}, {Name: "c"}},
		Services: []snapshot.Service{}, APIKeys: []snapshot.APIKey{},
		Gateways: []snapshot.Gateway{
			{
				Name: "one", RunsOn: []string{"a"}, Routes: []snapshot.Route{{PolicyTarget: "one/routes[0]", ForwardToken: true}}, HSTS: "max-age=60",
				Redirect: &snapshot.Redirect{Listen: ":80", Hosts: []string{"shop.example"}, Port: 443},
				Proxies:  &snapshot.Proxies{Hops: 2, From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}},
			},
			{Name: "two", RunsOn: []string{"b"}, Routes: []snapshot.Route{{PolicyTarget: "two/routes[0]"}}},
		},
		Rules: []policy.Rule{
			{ID: "1", Target: "one/routes[0]", Any: jwt("https://one.example")},
			{ID: "2", Target: "two/routes[0]", Any: jwt("https://two.example")},
		},
		Issuers: []snapshot.Issuer{
			{Name: "one", URL: "https://one.example", Keys: json.RawMessage(`{"keys":[]}`), Skew: time.Second},
			{Name: "two", URL: "https://two.example", Hosts: []string{"keys.example"}},
		},
	}
}

// TestIssuersOfAHost: an agent knows those whose tokens its own gateways accept.
func TestIssuersOfAHost(t *testing.T) {
	t.Parallel()
	for host, want := range map[string][]string{"a": {"one"}, "b": {"two"}, "c": nil} {
		var got []string
		for _, i := range edges().For(host, nil).Issuers {
			got = append(got, i.Name)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", host, d)
		}
	}
}

func TestEdgesAreSerialised(t *testing.T) {
	t.Parallel()
	data, err := snapshot.Encode(edges())
	if err != nil {
		t.Fatal(err)
	}
	got, err := snapshot.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := snapshot.Encode(got)
	if err != nil || string(again) != string(data) {
		t.Errorf("%v: %s became %s", err, data, again)
	}
}
