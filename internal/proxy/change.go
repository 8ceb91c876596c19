package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/fault"
)

// A change is the next state of a proxy, beside the present one until commit.
type change struct {
	proxy     *Proxy
	sockets   map[string]*socket
	listeners map[string]*listener
	upstreams map[upstreamKey]*upstream
	specs     []*spec
	places    map[meshKey]places
	failed    []ListenerStatus
	opened    []*socket
	made      []*upstream
	started   []*listener
}

// prepare does everything that can fail and changes nothing that runs. What cannot
// be opened is among c.failed and in the error, and keeps up nothing else.
func (c *change) prepare(ctx context.Context, wanted []*spec) error {
	var errs []error
	var left []*spec
	for _, s := range wanted {
		err := c.include(ctx, s)
		if err == nil {
			continue
		}
		if !c.proxy.failedBefore(s.name, err) {
			c.proxy.cfg.Logger.Error("a listener is not open", "component", "proxy", "listener", s.name, "error", err)
		}
		c.failed = append(c.failed, s.failure(err))
		errs, left = append(errs, fmt.Errorf("listener %s: %w", s.name, err)), append(left, s)
	}
	for _, s := range left { // once it is known which addresses others need
		c.keep(s)
	}
	return errors.Join(errs...)
}

func (c *change) include(ctx context.Context, s *spec) error {
	key := s.socketKey()
	if c.sockets[key] != nil {
		return fault.New(fault.PortOccupied, "", "two listeners want %s", s.stated)
	}
	if c.listeners[s.name] != nil {
		return fault.New(fault.Internal, "", "two listeners are called %s", s.name)
	}
	sock := c.proxy.sockets[key]
	if sock == nil {
		var err error
		if sock, err = openSocket(ctx, s.stated); err != nil {
			return err
		}
	}
	if err := c.listener(s, sock); err != nil {
		if sock != c.proxy.sockets[key] {
			sock.close()
		}
		return err
	}
	if sock != c.proxy.sockets[key] {
		c.opened = append(c.opened, sock)
	}
	c.sockets[key], c.specs = sock, append(c.specs, s)
	return nil
}

func (c *change) listener(s *spec, sock *socket) error {
	if err := c.reach(s); err != nil {
		return err
	}
	if l := c.proxy.listeners[s.name]; l != nil && l.fixed == s.fixed {
		c.listeners[s.name] = l
		return nil
	}
	l, err := c.proxy.newListener(s, sock.address(), c.upstreams)
	if err != nil {
		return err
	}
	c.listeners[s.name], c.started = l, append(c.started, l)
	return nil
}

// keep lets the listener that s was to replace go on by the routes of s, where s is
// the same one with another address or certificate. Any other ends: what it was for
// is not wanted any more.
func (c *change) keep(s *spec) {
	l := c.proxy.listeners[s.name]
	if l == nil {
		return
	}
	was := l.fixed
	was.stated, was.cert, was.key = s.stated, s.cert, s.key
	if was != s.fixed {
		return
	}
	old := *s
	old.fixed = l.fixed
	key := old.socketKey()
	sock := c.proxy.sockets[key]
	if sock == nil || c.sockets[key] != nil || c.reach(&old) != nil {
		return
	}
	c.sockets[key], c.listeners[s.name], c.specs = sock, l, append(c.specs, &old)
}

// reach finds or makes the upstreams that s needs.
func (c *change) reach(s *spec) error {
	switch s.end {
	case call.Inbound:
		if _, ok := c.upstreams[s.app]; !ok {
			u, kept := c.proxy.upstreams[s.app]
			if !kept {
				u = c.proxy.newApp(s.app)
				c.made = append(c.made, u)
			}
			c.upstreams[s.app] = u
		}
		return nil
	case call.Outbound:
		return c.far(s.mesh, places{s.local, s.target, s.places})
	case call.Edge:
		if s.redirect {
			return nil
		}
		for i := range s.gateway.Routes {
			r := &s.gateway.Routes[i]
			if err := c.far(routeKey(s.localID, r), places{s.local, r.To, r.Places}); err != nil {
				return err
			}
		}
	}
	return nil
}

// far finds or makes the upstream k, which is to be at.
func (c *change) far(k meshKey, at places) error {
	if _, ok := c.upstreams[k]; !ok {
		u, kept := c.proxy.upstreams[k]
		if !kept {
			src, ok := c.proxy.cfg.Source(k.local)
			if !ok {
				return fmt.Errorf("%s: no source of its credential", k.local)
			}
			u = c.proxy.newMesh(k, src)
			u.endpoints.Watch(c.proxy.meters.unreached.With(at.local, at.service).Inc)
			c.made = append(c.made, u)
		}
		c.upstreams[k] = u
	}
	c.places[k] = at
	return nil
}

// commit cannot fail. Listeners that are new take their sockets, those that stay
// get their routes, and what is not wanted any more drains.
func (c *change) commit() {
	p := c.proxy
	for k, at := range c.places {
		u := c.upstreams[k]
		u.places = at
		u.update(p.cfg.Lookup)
	}
	for _, s := range c.specs {
		l := c.listeners[s.name]
		l.app = s.app
		l.service.update(s, c.upstreams)
		p.observe(l, s.plaintextUntil)
		c.sockets[s.socketKey()].hand(l.feed)
	}
	for key, sock := range p.sockets {
		if c.sockets[key] != sock {
			sock.close()
		}
	}
	for _, l := range c.started {
		p.wg.Go(l.service.run)
	}
	for _, sock := range c.opened {
		p.wg.Go(func() { sock.accept(p.ctx, p.cfg.Clock) })
	}
	for name, l := range p.listeners {
		if c.listeners[name] != l {
			p.remove(l, drainTime)
		}
	}
	for key, u := range p.upstreams {
		if _, ok := c.upstreams[key]; !ok {
			u.close()
			p.meters.forgetEndpoints(u.places)
		}
	}
	for _, u := range c.upstreams {
		if u.endpoints != nil {
			p.meters.watchEndpoints(u.places, u.endpoints)
		}
	}
	p.sockets, p.listeners, p.upstreams, p.failed = c.sockets, c.listeners, c.upstreams, c.failed
	p.divide()
	for _, l := range p.listeners {
		p.meters.watch(l)
	}
}

// cutOff ends the inbounds that must not run, with their connections and whatever
// becomes of the rest of a change: they may lead to a stranger. It requires p.mu.
func (p *Proxy) cutOff(failed []ListenerStatus) {
	for _, f := range failed {
		p.failed = append(slices.DeleteFunc(p.failed, func(l ListenerStatus) bool { return l.Name == f.Name }), f)
		l := p.listeners[f.Name]
		if l == nil {
			continue
		}
		delete(p.listeners, f.Name)
		for key, s := range p.sockets {
			if s.current.Load() == l.feed {
				s.close()
				delete(p.sockets, key)
			}
		}
		if u, ok := p.upstreams[l.app]; ok {
			u.close()
			delete(p.upstreams, l.app)
		}
		p.remove(l, 0)
	}
}

// remove drains l in the background, for at most grace. It requires p.mu.
func (p *Proxy) remove(l *listener, grace time.Duration) {
	p.draining[l] = true
	p.meters.forget(l)
	p.wg.Go(func() {
		ctx, cancel := context.WithTimeout(p.ctx, grace)
		defer cancel()
		l.drain(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.draining, l)
	})
}
