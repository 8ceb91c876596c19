package node

import (
	"context"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/identity"
)

// prober implements control.Prober.
type prober struct{ node *Node }

// Host is the server's machine.
func (p prober) Host() string { return p.node.host }

// Endpoints are those of the newest snapshot, or what agents announce.
func (p prober) Endpoints(host, service string) []string {
	return p.node.server.Fleet().Endpoints(host, service)
}

// SetProbes makes them what the registrar goes by.
func (p prober) SetProbes(probes map[string]map[identity.ID]bool) {
	p.node.server.Registrar().SetProbes(enrol.Probes(probes))
}

// Assess hands the orders to the fleet.
func (p prober) Assess(ctx context.Context, orders map[string]*assess.Order, got func(string, []assess.Result)) map[string]string {
	return p.node.server.Fleet().Assess(ctx, orders, got)
}
