package node

import (
	"context"
	"crypto/x509"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// runtime shows the admin API what runs, and puts into force what it decides.
type runtime struct {
	node    *Node
	clock   clock.Clock
	started time.Time
	demoBin string
}

// publishTime bounds how long an apply waits for the agent. What is not in force
// by then follows; the revision stands.
const publishTime = 10 * time.Second

// Explain implements control.Runtime.
func (r *runtime) Explain(q policy.Query) policy.Explanation { return r.node.server.Explain(q) }

// Prepare implements control.Runtime: what would run on this machine is tried.
func (r *runtime) Prepare(_ context.Context, s *snapshot.Snapshot) error {
	if r.node.agent == nil {
		return nil
	}
	return r.node.agent.Prepare(s.For(r.node.host, nil))
}

// Publish implements control.Runtime.
func (r *runtime) Publish(ctx context.Context, s *snapshot.Snapshot) error {
	// The revision is committed: a client that goes away does not stop it.
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), publishTime)
	defer done()
	generation := r.node.server.Publish(s)
	if r.node.agent != nil {
		if err := r.node.agent.Applied(ctx, generation); err != nil {
			return err
		}
	}
	return behind(r.node.server.Fleet().Wait(ctx, generation))
}

// banTime bounds how long a ban waits for agents to confirm it.
const banTime = 3 * time.Second

// Ban implements control.Runtime.
func (r *runtime) Ban(ctx context.Context, banned []identity.ID) (out []control.Confirmation) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), banTime)
	defer done()
	fleet := r.node.server.Fleet()
	missing := fleet.WaitWithdrawn(ctx, r.node.server.Ban(banned))
	for _, h := range fleet.Hosts() {
		c := control.Confirmation{Host: h.Name, Confirmed: h.Connected}
		if !h.Connected {
			c.Note = "it is not connected, and hears of it when it comes back"
		}
		if why, ok := missing[h.Name]; ok {
			c.Confirmed, c.Note = false, why
		}
		out = append(out, c)
	}
	return out
}

// behind says which hosts do not run what was published.
func behind(hosts map[string]string) error {
	var faults fault.List
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		faults = append(faults, fault.New(fault.NotRunning, "see it: parley status -o wide", "on host %s: %s", name, hosts[name]))
	}
	return faults.Err()
}

// Settle implements control.Collector.
func (r *runtime) Settle(ctx context.Context) {
	if r.node.agent != nil {
		r.node.agent.Settle(ctx)
	}
	r.node.server.Fleet().Settle(ctx)
}

// Bundle implements control.Runtime.
func (r *runtime) Bundle() *identity.Bundle { return r.node.server.Bundle() }

// Status implements control.Runtime.
func (r *runtime) Status(ctx context.Context) (control.RuntimeStatus, error) {
	st := control.RuntimeStatus{Since: r.started, CA: r.authorities()}
	var err error
	if st.Edges, err = r.node.server.Store().Edges(ctx, r.clock.Now().Add(-control.EdgesPeriod)); err != nil {
		return st, err
	}
	if st.Audit, err = r.node.server.Store().AuditStatus(ctx); err != nil {
		return st, err
	}
	if r.node.agent != nil {
		r.node.agent.Tell(ctx) // not what it told a moment ago
	}
	s := &survey{snap: r.node.server.Fleet().Snapshot(), hosts: r.node.server.Fleet().Hosts()}
	s.fill(&st)
	st.Findings = expected(r.demoBin, st.Findings)
	if r.demoBin != "" {
		st.Expected = map[string]string{"apart_by_exe": "the demo runs as you alone; elsewhere give each service a user of its own"}
	}
	return st, nil
}

// expected marks those findings of the demo that are meant: its executables are
// their own user's, since nobody else could start them. All others stay.
func expected(demoBin string, all []api.Finding) []api.Finding {
	for i, f := range all {
		if demoBin != "" && f.Code == string(fault.WritableByItself) && strings.Contains(f.Message, `executable "`+demoBin+"/") {
			all[i].Expected = "the demo's programs are yours; a service's own are better root's"
		}
	}
	return all
}

func (r *runtime) authorities() (out []api.Certificate) {
	a := r.node.server.Authority()
	for _, c := range []struct {
		kind string
		cert *x509.Certificate
	}{{"root", a.Root()}, {"intermediate", a.Intermediate()}} {
		out = append(out, api.Certificate{
			Serial: identity.Serial(c.cert), Kind: c.kind, NotBefore: c.cert.NotBefore, NotAfter: c.cert.NotAfter,
			Fingerprint: identity.Fingerprint(c.cert), Current: true,
		})
	}
	return out
}

// listenerFacts are what the snapshot says of its listeners, by name.
func listenerFacts(snap *snapshot.Snapshot) map[string]api.ListenerStatus {
	facts := map[string]api.ListenerStatus{}
	for _, s := range snap.Services {
		if s.Inbound != nil {
			facts[s.Name+".inbound"] = api.ListenerStatus{Owner: s.Name, End: string(call.Inbound), Target: s.Inbound.App}
		}
		for _, o := range s.Outbound {
			facts[s.Name+".calls."+o.To] = api.ListenerStatus{Owner: s.Name, End: string(call.Outbound), Target: o.To}
		}
	}
	for _, g := range snap.Gateways {
		facts["gateway."+g.Name] = api.ListenerStatus{Owner: g.Name, End: string(call.Edge)}
		if g.Redirect != nil {
			facts["gateway."+g.Name+".redirect"] = api.ListenerStatus{Owner: g.Name, End: string(call.Edge)}
		}
	}
	return facts
}

// Certificates implements control.Certificates: those issued, of which the agent
// knows which are presented now.
func (r *runtime) Certificates(ctx context.Context, now time.Time, after string, limit int) ([]api.Certificate, error) {
	records, err := r.node.server.Store().Certificates(ctx, now)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(records, func(a, b enrol.Record) int { return strings.Compare(a.Serial, b.Serial) })
	type serial struct{ host, number string } // a host speaks for its own only
	presented := map[serial]time.Time{}       // and when each is renewed
	for _, h := range r.node.server.Fleet().Hosts() {
		for _, s := range h.Report.Services {
			presented[serial{h.Name, s.Serial}] = s.RenewsAt
		}
	}
	var out []api.Certificate
	for _, rec := range records {
		if rec.Kind != enrol.KindX509 || rec.Serial <= after || len(out) == limit {
			continue
		}
		c := api.Certificate{
			Serial: rec.Serial, Kind: kindOf(rec.ID), ID: rec.ID.String(), NotBefore: rec.NotBefore, NotAfter: rec.NotAfter,
			Fingerprint: rec.Fingerprint, Host: rec.Host,
		}
		if renews, ok := presented[serial{rec.Host, rec.Serial}]; ok {
			c.Current, c.RenewsAt = true, renews
		}
		out = append(out, c)
	}
	return out, nil
}

// kindOf is whether an identity is a gateway's or a service's, by its path.
func kindOf(id identity.ID) string {
	if id.IsGateway() {
		return "gateway"
	}
	return "service"
}
