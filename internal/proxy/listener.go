package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/proxy/web"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A listener is one entry of the snapshot at work.
type listener struct {
	fixed   fixed
	address string
	app     appKey // of an inbound; guarded by Proxy.mu
	feed    *feed
	front   net.Listener // feed behind its handshake or attestation
	pending func() int   // connections that the front has and the service does not yet
	service service
	// Of an inbound: where its handshakes are, and until when others than those are let
	// in. The time is guarded by Proxy.mu and is zero once that is over.
	tls            *mtls.Listener
	plaintextUntil time.Time
}

// A service serves a listener's connections.
type service interface {
	// update swaps the routes.
	update(*spec, map[upstreamKey]*upstream)
	// run serves until the feed is closed.
	run()
	// drain ends what is under way, by force once ctx ends.
	drain(context.Context)
	connections() int
}

// newListener makes the listener of s, without a goroutine of its own yet other
// than the one that shakes hands.
func (p *Proxy) newListener(s *spec, address string, ups map[upstreamKey]*upstream) (*listener, error) {
	config, err := p.tlsConfig(s)
	if err != nil {
		return nil, err
	}
	l := &listener{fixed: s.fixed, address: address, app: s.app, feed: newFeed(), pending: func() int { return 0 }}
	switch {
	case s.redirect:
		l.front = l.feed
	case config == nil:
		l.front = &attesting{Listener: l.feed, proxy: p, request: s.request()}
	default:
		lc := mtls.ListenerConfig{Clock: p.cfg.Clock, Refused: p.refused(s), MaxHandshakes: p.maxHandshakes}
		if s.end == call.Inbound {
			lc.Conns = &p.conns
			if s.protocol == call.TCP {
				lc.Silence = serverFirst
			}
		}
		front := mtls.NewListener(l.feed, config, lc)
		l.front, l.pending = front, front.Pending
		if s.end == call.Inbound {
			l.tls = front
		}
	}
	if s.protocol == call.HTTP {
		cfg := web.Config{Gate: p.cfg.Gate, Clock: p.cfg.Clock, Logger: p.cfg.Logger, Joiner: p.relay, Unreadable: p.meters.unreadable(s.name).Inc}
		if s.end == call.Edge {
			cfg.Joiner = p.edgeRelay
		}
		l.service = &webService{front: l.front, server: web.NewServer(cfg, p.site(s, ups)), site: p.site}
	} else {
		l.service = newTCPService(p, l.front, s, ups)
	}
	surplus, base := p.meters.surplus(s.name), s.request()
	l.feed.full = func(c net.Conn) bool {
		if l.connections() < p.connections() {
			return false
		}
		surplus.Inc()
		r := base
		r.Remote, r.Start = remote(c), p.cfg.Clock.Now()
		p.cfg.Gate.Refuse(&r, route.Connections, nil)
		return true
	}
	return l, nil
}

// maxHandshakes leaves the most of a listener's connections to those who have shaken
// hands.
func (p *Proxy) maxHandshakes() int {
	return min(mtls.MaxHandshakes, max(1, p.connections()/4))
}

// connections are those that the listener holds.
func (l *listener) connections() int { return l.service.connections() + l.pending() }

// tlsConfig is nil for an outbound, which is plaintext on this host, and for a
// listener that only tells the way to an edge.
func (p *Proxy) tlsConfig(s *spec) (*tls.Config, error) {
	if s.end == call.Outbound || s.redirect {
		return nil, nil
	}
	if s.end == call.Edge && s.cert != "" {
		files, err := mtls.OpenFiles(s.cert, s.key, p.cfg.Clock)
		if err != nil {
			return nil, err
		}
		return mtls.Edge(files.Certificate, mtls.HTTP2, mtls.HTTP1), nil
	}
	src, ok := p.cfg.Source(s.localID)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: no source of its credential", s.localID)
	case s.end == call.Edge:
		return mtls.Edge(func() (*tls.Certificate, error) {
			c, err := src.Credential()
			if err != nil {
				return nil, err
			}
			return c.Certificate(), nil
		}, mtls.HTTP2, mtls.HTTP1), nil
	case s.protocol == call.HTTP:
		return mtls.Inbound(src, p.cfg.Clock, mtls.HTTP2, mtls.HTTP1), nil
	}
	return mtls.Inbound(src, p.cfg.Clock), nil
}

// refused records a peer that did not complete its handshake.
func (p *Proxy) refused(s *spec) func(netip.AddrPort, error, call.Peer) {
	counter := p.meters.handshake(s.name)
	base := s.request()
	return func(from netip.AddrPort, err error, peer call.Peer) {
		counter.Inc()
		r := base
		r.Remote, r.Peer, r.Start = from, peer, p.cfg.Clock.Now()
		p.cfg.Gate.Refuse(&r, route.HandshakeRefused, err)
	}
}

// drain stops accepting and ends what is under way.
func (l *listener) drain(ctx context.Context) {
	_ = l.feed.Close()
	l.service.drain(ctx)
}

// webService serves HTTP.
type webService struct {
	front  net.Listener
	server *web.Server
	site   func(*spec, map[upstreamKey]*upstream) *web.Site
}

func (w *webService) update(s *spec, ups map[upstreamKey]*upstream) { w.server.SetSite(w.site(s, ups)) }
func (w *webService) run()                                          { _ = w.server.Serve(w.front) }
func (w *webService) connections() int                              { return w.server.Connections() }

func (w *webService) drain(ctx context.Context) {
	_ = w.server.Shutdown(ctx)
	_ = w.front.Close()
}

// site is what a web listener serves under s.
func (p *Proxy) site(s *spec, ups map[upstreamKey]*upstream) *web.Site {
	st := &web.Site{End: s.end, Listener: s.name, Local: s.local, LocalID: s.localID}
	if s.end == call.Edge {
		st.HSTS, st.Proxies = s.gateway.HSTS, s.gateway.Proxies
	}
	if s.redirect {
		r := s.gateway.Redirect
		st.Redirect = &web.Redirect{Hosts: r.Hosts, Port: r.Port, Count: p.meters.redirects.With(s.local).Inc}
		return st
	}
	if s.end == call.Edge {
		st.Revision = s.revision
		st.Match = edgeMatch(s.gateway, s, ups)
		return st
	}
	hop := web.Hop{Target: s.target, WebSocket: s.webSocket}
	if s.end == call.Inbound {
		hop.PolicyTarget, hop.Upstream, hop.Probe = s.target, ups[s.app].web, s.probe
	} else {
		hop.Upstream = ups[s.mesh].web
	}
	st.Match = func(string, string, string) web.Hop { return hop }
	return st
}

func edgeMatch(g *snapshot.Gateway, s *spec, ups map[upstreamKey]*upstream) func(host, path, method string) web.Hop {
	table := route.NewTable(g)
	hops := make(map[string]web.Hop, len(g.Routes))
	for _, r := range g.Routes {
		hops[r.PolicyTarget] = web.Hop{
			Target: r.To, PolicyTarget: r.PolicyTarget,
			Upstream: ups[routeKey(s.localID, &r)].web, WebSocket: r.WebSocket,
			ForwardToken: r.ForwardToken,
		}
	}
	return func(host, path, method string) web.Hop {
		r := table.Match(host, path, method)
		if r == nil {
			return web.Hop{}
		}
		return hops[r.PolicyTarget]
	}
}

// tcpService relays.
type tcpService struct {
	proxy *Proxy
	front net.Listener
	base  call.Request
	to    atomic.Pointer[upstream]

	ctx    context.Context // ends the relays
	cancel context.CancelFunc
	ran    chan struct{}  // closed when nothing is accepted any more
	wg     sync.WaitGroup // one a connection
	count  atomic.Int64
}

func newTCPService(p *Proxy, front net.Listener, s *spec, ups map[upstreamKey]*upstream) *tcpService {
	t := &tcpService{proxy: p, front: front, base: s.request(), ran: make(chan struct{})}
	t.ctx, t.cancel = context.WithCancel(p.ctx)
	t.update(s, ups)
	return t
}

func (t *tcpService) update(s *spec, ups map[upstreamKey]*upstream) {
	u := ups[s.mesh]
	if s.end == call.Inbound {
		u = ups[s.app]
	}
	t.to.Store(u)
}

func (t *tcpService) connections() int { return int(t.count.Load()) }

func (t *tcpService) run() {
	defer close(t.ran)
	for {
		c, err := t.front.Accept()
		if err != nil {
			return
		}
		t.count.Add(1)
		t.wg.Go(func() {
			defer t.count.Add(-1)
			t.serve(c)
		})
	}
}

// recover ends a connection in which this program failed.
func (t *tcpService) recover(c net.Conn, r *call.Request) {
	if v := recover(); v != nil {
		t.proxy.cfg.Logger.Error("a connection failed in this program", "component", "proxy", "listener", r.Listener, "decision", r.Verdict.ID, logging.Panicked(v))
		t.proxy.cfg.Gate.Done(r, call.Outcome{Error: route.UpstreamClosed})
		mtls.Abort(c)
	}
}

func (t *tcpService) serve(c net.Conn) {
	r := t.base
	defer t.recover(c, &r)
	r.Start, r.Remote = t.proxy.cfg.Clock.Now(), remote(c)
	r.Peer, r.TLS = mtls.ConnFacts(c)
	r.Plaintext = mtls.Plaintext(c)
	if a, ok := c.(*attested); ok {
		process, refused := a.Attestation()
		if refused != nil {
			mtls.Abort(c)
			return
		}
		r.Process = process
	}
	t.proxy.relay.Serve(t.ctx, c, &r, t.to.Load().tcp)
}

func (t *tcpService) drain(ctx context.Context) {
	_ = t.front.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-t.ran
		t.wg.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	t.cancel()
	<-done
}
