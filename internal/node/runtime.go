package node

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/enrol/renew"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/proxy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// runtime shows the admin API what runs, and puts into force what it decides.
type runtime struct {
	node    *Node
	clock   clock.Clock
	started time.Time
}

// publishTime bounds how long an apply waits for the agent. What is not in force
// by then follows; the revision stands.
const publishTime = 10 * time.Second

// Explain implements control.Runtime.
func (r *runtime) Explain(q policy.Query) policy.Explanation { return r.node.agent.Gate().Explain(q) }

// Prepare implements control.Runtime.
func (r *runtime) Prepare(_ context.Context, s *snapshot.Snapshot) error {
	return r.node.agent.Prepare(s)
}

// Publish implements control.Runtime.
func (r *runtime) Publish(ctx context.Context, s *snapshot.Snapshot) error {
	// The revision is committed: a client that goes away does not stop it.
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), publishTime)
	defer done()
	return r.node.agent.Applied(ctx, r.node.server.Publish(s))
}

// Settle implements control.Collector.
func (r *runtime) Settle(ctx context.Context) { r.node.agent.Settle(ctx) }

// Bundle implements control.Runtime.
func (r *runtime) Bundle() *identity.Bundle { return r.node.server.Bundle() }

// Status implements control.Runtime.
func (r *runtime) Status(ctx context.Context) (control.RuntimeStatus, error) {
	st := control.RuntimeStatus{Since: r.started, CA: r.authorities(), Findings: r.node.agent.Findings()}
	var err error
	if st.Edges, err = r.node.server.Store().Edges(ctx, r.clock.Now().Add(-control.EdgesPeriod)); err != nil {
		return st, err
	}
	if st.Audit, err = r.node.server.Store().AuditStatus(ctx); err != nil {
		return st, err
	}
	if err := r.node.agent.Delivery(); err != nil {
		st.Audit.State, st.Audit.Note = api.StateFailed, undelivered(err)
	}
	u := r.node.agent.Current()
	if u == nil { // no revision runs yet
		return st, nil
	}
	st.Revision = u.Snapshot.Revision
	for _, s := range u.Snapshot.Services {
		st.Services = append(st.Services, r.service(s))
	}
	for _, g := range u.Snapshot.Gateways {
		s := r.service(snapshot.Service{Name: g.Name, ID: g.ID})
		st.Gateways = append(st.Gateways, api.GatewayStatus{
			Name: s.Name, ID: s.ID, State: s.State, Note: s.Note, Serial: s.Serial, NotAfter: s.NotAfter, RenewsAt: s.RenewsAt,
			Listen: g.Listen, Routes: len(g.Routes),
		})
	}
	st.Listeners = r.listeners(u.Snapshot)
	return st, nil
}

// undelivered says what keeps events from where they are searched.
func undelivered(err error) string {
	note := "the newest events wait in the agent's log"
	if known := fault.All(err); len(known) > 0 {
		note += ": " + known[0].Message
	}
	return note
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

func (r *runtime) service(s snapshot.Service) api.ServiceStatus {
	st := api.ServiceStatus{Name: s.Name, ID: s.ID.String(), State: api.StateOK}
	c, renews, err := r.node.agent.Credential(s.ID)
	switch {
	case errors.Is(err, renew.ErrEnded):
		st.State, st.Note, st.RenewsAt = api.StateFailed, "the last certificate has ended and none followed", renews
	case err != nil:
		st.State, st.Note = api.StateWaiting, "no certificate yet"
	default:
		st.Serial, st.NotAfter, st.RenewsAt = c.Serial(), c.NotAfter(), renews
	}
	return st
}

func (r *runtime) listeners(snap *snapshot.Snapshot) (out []api.ListenerStatus) {
	facts := listenerFacts(snap)
	for _, l := range r.node.agent.Status() {
		st := facts[l.Name]
		st.Name, st.Protocol, st.Address, st.State = l.Name, l.Protocol, l.Address, api.StateOK
		if l.Error != nil {
			st.State, st.Note = api.StateFailed, l.Error.Error()
		} else if l.State != proxy.Open {
			st.State, st.Note = api.StateWaiting, string(l.State)
		}
		out = append(out, st)
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
	var out []api.Certificate
	for _, rec := range records {
		if rec.Kind != enrol.KindX509 || rec.Serial <= after || len(out) == limit {
			continue
		}
		c := api.Certificate{
			Serial: rec.Serial, Kind: kindOf(rec.ID), ID: rec.ID.String(), NotBefore: rec.NotBefore, NotAfter: rec.NotAfter,
			Fingerprint: rec.Fingerprint, Host: rec.Host,
		}
		if held, renews, err := r.node.agent.Credential(rec.ID); err == nil && held.Serial() == rec.Serial {
			c.Current, c.RenewsAt = true, renews
		}
		out = append(out, c)
	}
	return out, nil
}

// kindOf is whether an identity is a gateway's or a service's, by its path.
func kindOf(id identity.ID) string {
	if strings.HasPrefix(id.Path(), "/gateway/") {
		return "gateway"
	}
	return "service"
}
