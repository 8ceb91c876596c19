package proxy

import (
	"context"
	"net"
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/proxy/balance"
	"github.com/parleymesh/parley/internal/proxy/tcp"
	"github.com/parleymesh/parley/internal/proxy/web"
	"github.com/parleymesh/parley/internal/snapshot"
)

// upstreams outlive a change of configuration that does not touch them, and with
// them their pools. Where a service is called is no part of the key: an endpoint
// that comes or goes leaves the connections to the others alone.
type (
	upstreamKey any // appKey or meshKey

	appKey struct {
		addr string
		h2   bool
		// user holds the port, by runs_as: connections that were made to another
		// user's process are not used for this one's. Of a Unix socket each connection
		// is asked; empty is anybody.
		user string
	}
	meshKey struct {
		local, expect identity.ID
		protocol      call.Protocol
		foreign       bool
	}

	// An upstream has the half of its protocol, an application both.
	upstream struct {
		web       web.Upstream
		tcp       tcp.Upstream
		endpoints balance.Endpoints // nil of an application
		places    places
	}

	// places are where a service is called.
	places struct {
		local, service string // by name
		snapshot.Places
	}
)

func (u *upstream) close() {
	if u.web != nil {
		u.web.Close()
	}
}

// update makes the places of u those that it is to have, its names among them as
// lookup knows them now.
func (u *upstream) update(lookup func(name string) []string) {
	if u.endpoints == nil {
		return
	}
	all := slices.Clone(u.places.Endpoints)
	for _, n := range u.places.Names {
		all = append(all, lookup(n)...)
	}
	slices.Sort(all)
	u.endpoints.Update(balance.Mode(u.places.Balance), slices.Compact(all))
}

func (p *Proxy) newApp(k appKey) *upstream {
	app := web.NewApp(k.addr, k.h2, p.cfg.Clock)
	app.Limit = p.connections
	if k.user != "" && strings.HasPrefix(k.addr, "unix:") {
		app.Check = func(c net.Conn) error { return p.cfg.AppConn(k.user, c) }
	}
	return &upstream{web: app, tcp: direct{app, k.addr}}
}

// direct is an application for the relay.
type direct struct {
	app  *web.App
	addr string
}

// Address implements tcp.Upstream.
func (d direct) Address() string { return d.addr }

// Dial implements tcp.Upstream.
func (d direct) Dial(ctx context.Context) (net.Conn, func(), error) {
	c, err := d.app.Dial(ctx)
	return c, func() {}, err
}

func (p *Proxy) newMesh(k meshKey, src identity.Source) *upstream {
	if k.protocol == call.TCP {
		far := tcp.NewMesh(src, k.expect, p.cfg.Clock, &p.conns)
		return &upstream{tcp: far, endpoints: far.Endpoints()}
	}
	far := web.NewMesh(src, k.expect, p.cfg.Clock, &p.conns)
	far.Limit, far.Foreign = p.connections, k.foreign
	return &upstream{web: far, endpoints: far.Endpoints()}
}

// Resolved brings the endpoints up to date that are names: Config.Lookup knows other
// addresses of some.
func (p *Proxy) Resolved() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	for _, u := range p.upstreams {
		if len(u.places.Names) > 0 {
			u.update(p.cfg.Lookup)
		}
	}
	p.divide()
}
