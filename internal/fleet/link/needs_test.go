package link_test

import (
	"slices"
	"testing"

	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/snapshot"
)

// TestNeeds: an agent that would not enforce a part of an edge is not sent it.
func TestNeeds(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		snap snapshot.Snapshot
		want []string
	}{
		"nothing":  {snapshot.Snapshot{Gateways: []snapshot.Gateway{{}}}, nil},
		"tokens":   {snapshot.Snapshot{Issuers: []snapshot.Issuer{{}}}, []string{link.Tokens}},
		"redirect": {snapshot.Snapshot{Gateways: []snapshot.Gateway{{Redirect: &snapshot.Redirect{}}}}, []string{link.EdgeFront}},
		"HSTS":     {snapshot.Snapshot{Gateways: []snapshot.Gateway{{}, {HSTS: "x"}}}, []string{link.EdgeFront}},
		"proxies":  {snapshot.Snapshot{Gateways: []snapshot.Gateway{{Proxies: &snapshot.Proxies{}}}}, []string{link.EdgeFront}},
	} {
		got := link.Needs(&tt.snap)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
		if len(link.Lacks(link.Capabilities(), got)) > 0 {
			t.Errorf("%s: this program lacks %v", name, got)
		}
	}
}
