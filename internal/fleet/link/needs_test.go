package link_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/snapshot"
)

// An agent that would not enforce a part of a snapshot is not sent it, wherever
// that part is, and is named for it.
func TestNeeds(t *testing.T) {
	t.Parallel()
	ws := &snapshot.WebSocket{}
	for name, tt := range map[string]struct {
		s    snapshot.Snapshot
		want []string
	}{
		"nothing": {snapshot.Snapshot{Services: []snapshot.Service{{Inbound: &snapshot.Inbound{}, Outbound: []snapshot.Outbound{{}}}}, Gateways: []snapshot.Gateway{{Routes: []snapshot.Route{{}}}}}, []string{}},
		"inbound": {snapshot.Snapshot{Services: []snapshot.Service{{Inbound: &snapshot.Inbound{WebSocket: ws}}}}, []string{link.WebSocket}},
		"calls":   {snapshot.Snapshot{Services: []snapshot.Service{{Outbound: []snapshot.Outbound{{WebSocket: ws}}}}}, []string{link.WebSocket}},
		"route":   {snapshot.Snapshot{Gateways: []snapshot.Gateway{{Routes: []snapshot.Route{{WebSocket: ws}}}}}, []string{link.WebSocket}},
		"probe":   {snapshot.Snapshot{Services: []snapshot.Service{{}, {Inbound: &snapshot.Inbound{Probe: &snapshot.Probe{}}}}}, []string{link.Verify}},

		"plaintext": {snapshot.Snapshot{Services: []snapshot.Service{{}, {Inbound: &snapshot.Inbound{PlaintextUntil: time.Unix(1, 0)}}}}, []string{link.Plaintext}},

		"balance":            {snapshot.Snapshot{Services: []snapshot.Service{{Outbound: []snapshot.Outbound{{Places: snapshot.Places{Balance: "round_robin"}}}}}}, []string{link.Balance}},
		"balance of a route": {snapshot.Snapshot{Gateways: []snapshot.Gateway{{Routes: []snapshot.Route{{Places: snapshot.Places{Balance: "round_robin"}}}}}}, []string{link.Balance}},
		"name":               {snapshot.Snapshot{Services: []snapshot.Service{{Outbound: []snapshot.Outbound{{Places: snapshot.Places{Names: []string{"x:1"}}}}}}}, []string{link.Listed}},
		"foreign":            {snapshot.Snapshot{Gateways: []snapshot.Gateway{{Routes: []snapshot.Route{{Places: snapshot.Places{Foreign: true}}}}}}, []string{link.Listed}},

		"gaps":              {snapshot.Snapshot{Services: []snapshot.Service{{}, {Audit: &snapshot.Audit{Gap: true}}}}, []string{link.Gaps}},
		"gaps of a gateway": {snapshot.Snapshot{Gateways: []snapshot.Gateway{{Audit: &snapshot.Audit{Gap: true}}}}, []string{link.Gaps}},

		"health": {snapshot.Snapshot{Services: []snapshot.Service{{Inbound: &snapshot.Inbound{Health: &snapshot.Health{}}}}}, []string{link.Health}},

		"tokens":   {snapshot.Snapshot{Issuers: []snapshot.Issuer{{}}}, []string{link.Tokens}},
		"redirect": {snapshot.Snapshot{Gateways: []snapshot.Gateway{{Redirect: &snapshot.Redirect{}}}}, []string{link.EdgeFront}},
		"HSTS":     {snapshot.Snapshot{Gateways: []snapshot.Gateway{{}, {HSTS: "x"}}}, []string{link.EdgeFront}},
		"all of it": {snapshot.Snapshot{
			Issuers:  []snapshot.Issuer{{}},
			Services: []snapshot.Service{{Inbound: &snapshot.Inbound{Probe: &snapshot.Probe{}, WebSocket: ws}}},
			Gateways: []snapshot.Gateway{{HSTS: "x"}},
		}, []string{link.EdgeFront, link.Tokens, link.Verify, link.WebSocket}},
		"proxies": {snapshot.Snapshot{Gateways: []snapshot.Gateway{{Proxies: &snapshot.Proxies{}}}}, []string{link.EdgeFront}},
	} {
		if d := cmp.Diff(tt.want, link.Needs(&tt.s)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if d := cmp.Diff(tt.want, append([]string{}, link.Lacks(nil, link.Needs(&tt.s))...)); d != "" {
			t.Errorf("%s, lacked: %s", name, d)
		}
		if missing := link.Lacks(link.Capabilities(), link.Needs(&tt.s)); missing != nil {
			t.Errorf("%s: this program lacks %q", name, missing)
		}
	}
}
