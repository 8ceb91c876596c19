package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/mesh"
)

func (o operations) GetVersion(context.Context, api.GetVersionRequestObject) (api.GetVersionResponseObject, error) {
	return api.GetVersion200JSONResponse(o.cfg.Version), nil
}

func (o operations) GetStatus(ctx context.Context, _ api.GetStatusRequestObject) (api.GetStatusResponseObject, error) {
	o.cfg.Collector.Settle(ctx)
	run, err := o.cfg.Runtime.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("read what runs: %w", err)
	}
	head, err := o.head(ctx)
	if err != nil {
		return nil, err
	}
	bans, err := o.bans(ctx)
	if err != nil {
		return nil, err
	}
	var file *mesh.File
	found := slices.Clone(run.Findings) // not to append to the runtime's own
	if head.Number > 0 {
		if file, err = mesh.Parse(head.Name, head.Text); err != nil {
			found = append(found, api.Finding{Code: "revision_unreadable", Message: fmt.Sprintf("revision %d is no longer valid: %v", head.Number, err), Help: "apply a corrected file: parley apply"})
		} else {
			for _, f := range findings(mesh.Findings(file, o.cfg.Clock.Now())) {
				f.Expected = run.Expected[f.Code]
				found = append(found, f)
			}
		}
	}
	if run.Revision != head.Number {
		found = append(found, api.Finding{
			Code:    "revision_not_running",
			Message: fmt.Sprintf("revision %d runs, and the newest is %d", run.Revision, head.Number),
			Help:    "see why in the server's log, then apply it again: parley apply",
		})
	}
	return api.GetStatus200JSONResponse{
		Version: o.cfg.Version.Version, Now: o.cfg.Clock.Now().UTC(), Since: run.Since.UTC(),
		TrustDomain: o.cfg.TrustDomain.String(), Revision: run.Revision,
		Applied: head.Applied.UTC(), AppliedBy: head.Actor,
		CA: list(run.CA), Services: list(run.Services), Gateways: list(run.Gateways), Listeners: list(run.Listeners), Hosts: run.Hosts, Bans: bans, Plaintext: run.Plaintext,
		Edges: edges(file, run.Edges), EdgesPeriod: int64(EdgesPeriod / time.Second),
		Audit: run.Audit, Findings: list(found[:min(len(found), maxFindings)]),
	}, nil
}

// list is never null on the wire.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// edges joins what was seen with what the mesh file declares, in order of caller
// and callee.
func edges(file *mesh.File, seen []api.EdgeStatus) []api.EdgeStatus {
	all := make(map[mesh.Edge]api.EdgeStatus, len(seen))
	for _, e := range seen {
		all[mesh.Edge{From: e.From, To: e.To}] = e
	}
	for edge := range declared(file) {
		e := all[edge]
		e.From, e.To, e.Declared = edge.From, edge.To, true
		all[edge] = e
	}
	out := make([]api.EdgeStatus, 0, len(all))
	for _, e := range all {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b api.EdgeStatus) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	return out
}

// declared are the edges that file names under calls, allow or routes, and the
// way into each gateway. A gateway goes by the path of its identity, as in events.
func declared(file *mesh.File) map[mesh.Edge]bool {
	set := map[mesh.Edge]bool{}
	if file == nil {
		return set
	}
	for name, svc := range file.Services {
		for _, c := range svc.Calls {
			set[mesh.Edge{From: name, To: c.To}] = true
		}
		for _, a := range svc.Allow {
			for _, from := range a.From {
				set[mesh.Edge{From: from, To: name}] = true
			}
		}
	}
	for name, g := range file.Gateways {
		gateway := "gateway/" + name
		set[mesh.Edge{To: gateway}] = true
		for _, r := range g.Routes {
			set[mesh.Edge{From: gateway, To: r.To}] = true
		}
	}
	return set
}
