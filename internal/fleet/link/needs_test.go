package link_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/snapshot"
)

// An agent that knows nothing of WebSocket is not sent a snapshot that offers it,
// wherever it does, and is named for that.
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
