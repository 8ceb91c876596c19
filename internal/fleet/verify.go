package fleet

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
)

// maxResults bounds the results of one report, maxWaiting those that nobody has read
// yet, and maxAll those of one host and phase.
const (
	maxResults = 1000
	maxWaiting = 10_000
	maxAll     = 200_000
)

// A phase is one phase of a verification, as the fleet waits for it.
type phase struct {
	run     string
	name    assess.Phase
	hosts   map[string]bool // that have not said that they are done
	reports []hostReport    // that were not passed on yet
	waiting int             // results in them
	all     map[string]int  // results of each host so far
	fault   map[string]string
}

type hostReport struct {
	host    string
	results []assess.Result
}

// Assess has hosts try their orders, which are of one run and phase, and waits until
// all of them are done, or ctx ends. got is called with results as they come, one
// call at a time. missed are the hosts that did not try it, or not all of it, with
// why. One phase is tried at a time.
func (f *Fleet) Assess(ctx context.Context, orders map[string]*assess.Order, got func(host string, results []assess.Result)) (missed map[string]string) {
	p := &phase{hosts: map[string]bool{}, all: map[string]int{}, fault: map[string]string{}}
	f.mu.Lock()
	for host, o := range orders {
		p.run, p.name = o.Run, o.Phase
		switch a := f.agents[host]; {
		case a == nil || a.connection == 0:
			p.fault[host] = "its agent is not connected"
		case !slices.Contains(a.capabilities, link.Verify):
			p.fault[host] = "its agent is too old to try anything"
		default:
			p.hosts[host] = true
			a.order = o
		}
	}
	f.phase = p
	f.wakeTellers()
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.phase = nil
	}()
	for {
		f.mu.Lock()
		reported := f.reported
		for host := range p.hosts {
			if a := f.agents[host]; a == nil || a.connection == 0 || a.order != orders[host] {
				p.fault[host] = "its agent was lost while it tried"
				delete(p.hosts, host)
			}
		}
		waiting, reports := len(p.hosts), p.reports
		p.reports, p.waiting = nil, 0
		f.mu.Unlock()
		for _, r := range reports { // not under the lock: whoever reads may be slow
			got(r.host, r.results)
		}
		if waiting == 0 {
			return p.fault
		}
		select {
		case <-reported:
		case <-ctx.Done():
			f.mu.Lock()
			defer f.mu.Unlock()
			for host := range p.hosts {
				p.fault[host] = "it was not done in time"
			}
			return p.fault
		}
	}
}

// Endpoints are where service is called from host, in the newest snapshot.
func (f *Fleet) Endpoints(host, service string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.snapshot == nil {
		return nil
	}
	if reach := f.endpoints(host); reach != nil {
		return reach(service)
	}
	for _, s := range f.state.snapshot.Services {
		if s.Name == service && s.Inbound != nil {
			if strings.HasPrefix(s.Inbound.Listen, ":") {
				return []string{loopback.String() + s.Inbound.Listen}
			}
			return []string{s.Inbound.Listen}
		}
	}
	return nil
}

// order is what host's agent is to try and was not sent yet, nil for nothing.
func (f *Fleet) order(host string, connection uint64) *assess.Order {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil || a.connection != connection || a.order == nil || a.ordered == a.order {
		return nil
	}
	a.ordered = a.order
	return a.order
}

// assessed takes what a host says of its order, and refuses what is of another run or
// phase, or was not asked for.
func (f *Fleet) assessed(host string, r *assess.Report) error {
	if len(r.Results) > maxResults {
		return fault.New(fault.BadRequest, "", "%d results are too many for one report", len(r.Results))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.phase
	if p == nil || p.run != r.Run || p.name != r.Phase || !p.hosts[host] {
		return fault.New(fault.NotFound, "", "no verification %q waits for host %s", clip(r.Run), host)
	}
	for i := range r.Results {
		x := &r.Results[i]
		cut(&x.Caller, &x.Callee, &x.Endpoint, (*string)(&x.Check), (*string)(&x.Outcome), &x.Detail, &x.Help, &x.Decision)
	}
	n := len(r.Results)
	if p.waiting += n; p.waiting > maxWaiting {
		p.waiting -= n
		return fault.New(fault.Conflict, "", "too many results wait to be read")
	}
	if p.all[host] += n; p.all[host] > maxAll {
		return fault.New(fault.BadRequest, "", "host %s has too many results", host)
	}
	if n > 0 {
		p.reports = append(p.reports, hostReport{host, r.Results})
	}
	if r.Done {
		delete(p.hosts, host)
		if r.Fault != "" {
			cut(&r.Fault)
			p.fault[host] = r.Fault
		}
	}
	f.wake()
	return nil
}

// flaws are those of certificates for probes by the checks that need them.
var flaws = map[assess.Check]ca.Flaw{
	"": ca.NoFlaw, assess.Expired: ca.Expired, assess.NotYetValid: ca.NotYetValid, assess.WrongUsage: ca.WrongUsage, assess.TwoNames: ca.TwoNames,
}

// issueProbe has a certificate for probes signed for host.
func (f *Fleet) issueProbe(ctx context.Context, host string, id identity.ID, check assess.Check, csr []byte) ([]*x509.Certificate, error) {
	flaw, known := flaws[check]
	if !known {
		return nil, fault.New(fault.BadRequest, "", "no certificate for probes has the flaw %q", clip(string(check)))
	}
	return f.cfg.Registrar.IssueProbe(ctx, host, id, flaw, csr)
}

func (s *Server) issueProbe(ctx context.Context, r *link.ProbeRequest) (*link.IssueReply, error) {
	host, _, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	chain, err := s.cfg.Fleet.issueProbe(ctx, host, r.ID, r.Flaw, r.CSR)
	if err != nil {
		return nil, err
	}
	return &link.IssueReply{Chain: link.RawChain(chain)}, nil
}

func (s *Server) assessed(ctx context.Context, r *assess.Report) (*link.AssessedReply, error) {
	host, _, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	return &link.AssessedReply{}, s.cfg.Fleet.assessed(host, r)
}

// NextOrder waits for something to try.
func (l *Local) NextOrder(ctx context.Context) (assess.Order, error) {
	for {
		l.fleet.mu.Lock()
		changed := l.fleet.changed
		l.fleet.mu.Unlock()
		if o := l.fleet.order(l.host, l.connection); o != nil {
			return *o, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return assess.Order{}, ctx.Err()
		}
	}
}

// IssueProbe asks for a certificate for probes as id.
func (l *Local) IssueProbe(ctx context.Context, id identity.ID, flaw assess.Check, csr []byte) ([]*x509.Certificate, error) {
	return l.fleet.issueProbe(ctx, l.host, id, flaw, csr)
}

// Assessed takes what came of an order.
func (l *Local) Assessed(_ context.Context, r *assess.Report) error {
	return l.fleet.assessed(l.host, r)
}
