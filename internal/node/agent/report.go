package agent

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/parleymesh/parley/internal/enrol/renew"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/proxy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// reportEvery is how long something that changed by itself, such as a listener
// that opened at last, may go unreported.
const reportEvery = 2 * time.Second

// reporting tells the control plane what runs here, whenever that changes.
func (a *Agent) reporting(ctx context.Context) error {
	for {
		applied, changed, health := a.applied.wait(), a.changed.wait(), a.checks.changed.wait()
		a.Tell(ctx)
		tick, done := context.WithCancel(ctx)
		go func() {
			select {
			case <-applied:
			case <-changed:
			case <-health:
			case <-tick.Done():
			}
			done()
		}()
		_ = a.cfg.Clock.Sleep(tick, reportEvery) // an early end is what it waits for
		done()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// Tell reports what runs here now, if that is another thing than was told last.
func (a *Agent) Tell(ctx context.Context) {
	a.telling.Lock()
	defer a.telling.Unlock()
	if r := a.report(ctx); r != nil && !reflect.DeepEqual(r, a.told) {
		a.cfg.Control.Report(r)
		a.told = r
	}
}

// report is what runs here now, nil before the first update.
func (a *Agent) report(ctx context.Context) *link.Report {
	a.mu.Lock()
	u, failure := a.current.Load(), a.failure
	a.mu.Unlock()
	if u == nil {
		return nil
	}
	r := &link.Report{Generation: u.Generation, Revision: u.Snapshot.Revision}
	if failure != nil {
		r.Fault = words(failure)
	}
	if err := a.Delivery(); err != nil {
		r.Delivery = words(err)
	}
	apps := a.apps.look(ctx, u.Snapshot)
	for _, s := range u.Snapshot.Services {
		r.Services = append(r.Services, withApp(a.credentialReport(s.Name, s.ID), apps[s.Name]))
	}
	for _, g := range u.Snapshot.Gateways {
		r.Services = append(r.Services, a.credentialReport(g.Name, g.ID))
	}
	open := map[string]bool{}
	for _, l := range a.proxy.Status() {
		lr := link.ListenerReport{Name: l.Name, Address: l.Address, Protocol: l.Protocol, State: link.OK}
		switch {
		case l.Error != nil:
			lr.State, lr.Note, lr.Help = link.Failed, words(l.Error), hint(l.Error)
		case l.State != proxy.Open:
			lr.State, lr.Note = link.Waiting, string(l.State)
		default:
			open[l.Name] = true
		}
		r.Listeners = append(r.Listeners, lr)
	}
	for _, f := range a.Findings() {
		r.Findings = append(r.Findings, link.FindingReport{Code: f.Code, Message: f.Message, Help: f.Help})
	}
	r.Endpoints = a.endpoints(u.Snapshot, open, apps)
	for _, s := range a.gate.Plaintext() {
		p := link.PlaintextReport{Service: s.Service, Count: s.Count, First: s.First.UTC(), Last: s.Last.UTC()}
		if s.Address.IsValid() {
			p.Address = s.Address.String()
		}
		r.Plaintext = append(r.Plaintext, p)
	}
	return r
}

// words are err as a person is told of it elsewhere.
func words(err error) string {
	if known := fault.All(err); len(known) > 0 {
		return known[0].Error()
	}
	return err.Error()
}

// hint is what to do about err, where it says so.
func hint(err error) string {
	if known := fault.All(err); len(known) > 0 {
		return known[0].Hint
	}
	return ""
}

func (a *Agent) credentialReport(name string, id identity.ID) link.ServiceReport {
	r := link.ServiceReport{Name: name, ID: id, State: link.OK}
	c, renews, err := a.Credential(id)
	switch {
	case errors.Is(err, renew.ErrEnded):
		r.State, r.Note, r.RenewsAt = link.Failed, "the last certificate has ended and none followed", renews
	case err != nil:
		r.State, r.Note = link.Waiting, "no certificate yet"
	default:
		r.Serial, r.NotAfter, r.RenewsAt = c.Serial(), c.NotAfter(), renews
	}
	return r
}

// withApp is s with its application, where its certificate is not the trouble.
func withApp(s link.ServiceReport, app appState) link.ServiceReport {
	if app.Down == nil || s.State != link.OK {
		return s
	}
	s.State, s.Note, s.Help = link.Failed, app.Down.Error(), app.Down.Hint
	if !app.Seen {
		s.State = link.Waiting
	}
	return s
}

// endpoints are the services that can be called here: their listener is open, their
// application takes calls, and they have a certificate to show.
func (a *Agent) endpoints(s *snapshot.Snapshot, open map[string]bool, apps map[string]appState) (all []link.Endpoint) {
	if a.leaving.Load() {
		return nil
	}
	for _, svc := range s.Services {
		if svc.Inbound == nil || !open[svc.Name+".inbound"] || apps[svc.Name].Down != nil {
			continue
		}
		if _, _, err := a.Credential(svc.ID); err == nil {
			all = append(all, link.Endpoint{Service: svc.Name, Address: wildcard(svc.Inbound.Listen)})
		}
	}
	return all
}

// withdraw announces no service any more, and waits until that is known where they
// are called. They go on meanwhile: a caller that does not know yet is served.
func (a *Agent) withdraw(ctx context.Context) {
	a.leaving.Store(true)
	a.telling.Lock()
	announced := a.told != nil && len(a.told.Endpoints) > 0
	a.telling.Unlock()
	if u := a.current.Load(); u == nil || len(u.Snapshot.Hosts) == 0 || !announced {
		return
	}
	a.Tell(ctx)
	a.cfg.Control.Spread(ctx)
}

// wildcard is a listener's address with an IP address in every case.
func wildcard(listen string) string {
	if len(listen) > 0 && listen[0] == ':' {
		return "0.0.0.0" + listen
	}
	return listen
}
