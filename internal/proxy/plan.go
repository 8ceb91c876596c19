package proxy

import (
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/snapshot"
)

// fixed is what a listener is for as long as it lives; where it differs, it is
// another listener.
type fixed struct {
	name      string
	stated    string // the address as it was stated
	end       call.End
	protocol  call.Protocol
	local     string
	localID   identity.ID
	cert, key string // of an edge with files of its own
	redirect  bool   // of a listener that tells the way to an edge
	// runsAs is what an outbound's connections were attested by, each once; of an
	// inbound its user, who has to hold the application's port.
	runsAs snapshot.RunsAs
}

// A spec is a listener that a snapshot wants.
type spec struct {
	fixed
	// Of an inbound: the service and its application.
	target string
	app    appKey
	probe  *snapshot.Probe
	// Of an inbound and an outbound: whether requests may become WebSocket connections.
	webSocket *snapshot.WebSocket
	// Of an inbound: until when callers without TLS are let in.
	plaintextUntil time.Time
	// Of an outbound: who is called, and where.
	mesh   meshKey
	places snapshot.Places
	// Of an edge, with the revision that its routes are of.
	gateway  *snapshot.Gateway
	revision int64
}

// socketKey is the address, so that a listener that replaces another one on it
// takes over its socket. Port 0 is another port each time.
func (s *spec) socketKey() string {
	if strings.HasSuffix(s.stated, ":0") {
		return s.stated + " " + s.name
	}
	return s.stated
}

// plan is what snap wants, without the inbounds that must not run: each is asked
// for again every time, since whoever holds its application's port may change, and
// so may the user who should. It requires p.mu.
func (p *Proxy) plan(snap *snapshot.Snapshot) (wanted []*spec, failed []ListenerStatus) {
	for i := range snap.Services {
		svc := &snap.Services[i]
		if svc.Inbound != nil {
			s := inboundSpec(svc)
			if err := p.cfg.AppPort(*svc); err != nil {
				failed = append(failed, s.failure(err))
				if !p.failedBefore(s.name, err) {
					p.cfg.Logger.Error("an inbound listener must not run", "component", "proxy", "listener", s.name, "error", err)
				}
			} else {
				wanted = append(wanted, s)
			}
		}
		for j := range svc.Outbound {
			wanted = append(wanted, outboundSpec(svc, &svc.Outbound[j]))
		}
	}
	for i := range snap.Gateways {
		g := &snap.Gateways[i]
		wanted = append(wanted, &spec{
			fixed: fixed{
				name: "gateway." + g.Name, stated: g.Listen, end: call.Edge, protocol: call.HTTP,
				local: g.Name, localID: g.ID, cert: g.CertFile, key: g.KeyFile,
			},
			gateway: g, revision: snap.Revision,
		})
		if g.Redirect != nil {
			wanted = append(wanted, &spec{fixed: fixed{
				name: "gateway." + g.Name + ".redirect", stated: g.Redirect.Listen, end: call.Edge, protocol: call.HTTP,
				local: g.Name, localID: g.ID, redirect: true,
			}, gateway: g, revision: snap.Revision})
		}
	}
	return wanted, failed
}

func (s *spec) failure(err error) ListenerStatus {
	return ListenerStatus{Name: s.name, Address: s.stated, Protocol: string(s.protocol), State: Failed, Error: err}
}

// failedNow is why the listener does not run, nil where it does. It requires p.mu.
func (p *Proxy) failedNow(name string) error {
	i := slices.IndexFunc(p.failed, func(l ListenerStatus) bool { return l.Name == name })
	if i < 0 {
		return nil
	}
	return p.failed[i].Error
}

// failedBefore says that the listener failed in the same way the last time: it is
// tried again every few seconds, and Status goes on saying so. It requires p.mu.
func (p *Proxy) failedBefore(name string, err error) bool {
	was := p.failedNow(name)
	return was != nil && was.Error() == err.Error()
}

// Due says whether another Apply of snap is: to open or close an inbound because of
// who holds its application's port now, or to try again what could not be opened. It
// changes nothing.
func (p *Proxy) Due(snap *snapshot.Snapshot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unopened {
		return true
	}
	for i := range snap.Services {
		svc := &snap.Services[i]
		if svc.Inbound == nil {
			continue
		}
		name := inboundName(svc)
		err := p.cfg.AppPort(*svc)
		if was := p.failedNow(name); (err == nil) != (was == nil) || err != nil && err.Error() != was.Error() {
			return true
		}
	}
	return false
}

func inboundName(svc *snapshot.Service) string { return svc.Name + ".inbound" }

func inboundSpec(svc *snapshot.Service) *spec {
	in := svc.Inbound
	app := appKey{addr: in.App, h2: in.AppHTTP2, user: svc.RunsAs.User}
	return &spec{
		fixed: fixed{
			name: inboundName(svc), stated: in.Listen, end: call.Inbound,
			protocol: call.Protocol(in.Protocol), local: svc.Name, localID: svc.ID,
			runsAs: snapshot.RunsAs{User: svc.RunsAs.User},
		},
		target: svc.Name, app: app, probe: in.Probe, webSocket: in.WebSocket, plaintextUntil: in.PlaintextUntil,
	}
}

func outboundSpec(svc *snapshot.Service, out *snapshot.Outbound) *spec {
	return &spec{
		fixed: fixed{
			name: svc.Name + ".calls." + out.To, stated: out.Listen, end: call.Outbound,
			protocol: call.Protocol(out.Protocol), local: svc.Name, localID: svc.ID, runsAs: svc.RunsAs,
		},
		target: out.To, webSocket: out.WebSocket, places: out.Places,
		mesh: meshKey{local: svc.ID, expect: out.ToID, protocol: call.Protocol(out.Protocol), foreign: out.Foreign},
	}
}

// routeKey is the upstream of a route: gateways forward requests of HTTP only.
func routeKey(gateway identity.ID, r *snapshot.Route) meshKey {
	return meshKey{local: gateway, expect: r.ToID, protocol: call.HTTP, foreign: r.Foreign}
}

// request is what every request of the listener has in common.
func (s *spec) request() call.Request {
	r := call.Request{
		End: s.end, Protocol: s.protocol, Listener: s.name, Local: s.local, LocalID: s.localID,
		Target: s.target, Header: route.Fields(nil),
	}
	if s.end == call.Inbound {
		r.PolicyTarget = s.target
	}
	return r
}
