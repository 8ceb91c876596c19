// Package proxy runs the listeners that a snapshot gives this host: a sidecar's
// inbound (mTLS to the application), its outbound (application to mTLS) and a
// gateway's edge. It joins route, web and tcp to sockets, identities and
// attestation.
//
// It refuses to authorise: package gate does, through route.Gate.
package proxy

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/proxy/tcp"
	"github.com/parleymesh/parley/internal/snapshot"
)

// drainTime is what a removed listener's connections get to end by themselves.
const drainTime = 30 * time.Second

// edgeIdle ends a WebSocket connection of an edge over which nothing came either
// way. Clients of WebSocket send pings much more often.
const edgeIdle = 5 * time.Minute

// minConnections is what each may have, however few descriptors there are.
const minConnections = 64

// Config is what a Proxy needs. Every field but Lookup, MaxConnections and Metrics is
// required.
type Config struct {
	Gate route.Gate
	// Source is where the credential of a service or gateway of this host comes
	// from; false where there is none.
	Source func(identity.ID) (identity.Source, bool)
	// Attest says which process opened conn, and an error if it is not service's.
	// The process is filled in as far as it is known in either case. It is called
	// once a connection, before its first byte is read.
	Attest func(service string, conn net.Conn) (call.Process, error)
	// AppPort says why a service's inbound must not run, such as that another
	// user's process holds the application's port. It is asked again while the
	// inbound runs, and must not block.
	AppPort func(snapshot.Service) error
	// AppConn says why a connection to an application's Unix socket is not to a
	// process of the user that the service runs as. It is asked once a connection,
	// before anything is sent, of services that have such a user.
	AppConn func(user string, conn net.Conn) error
	// Lookup is where a name of snapshot.Places leads, as far as that is known: it
	// must not block. Resolved is called when it changes. Nil knows no name.
	Lookup func(name string) []string
	// MaxConnections is how many connections one listener may have, where more are
	// closed as they come, and one endpoint of an upstream, where more wait. Zero is an equal share
	// for each of them of half the descriptors that the process may open, never less
	// than 64 and never more than a quarter: an edge that strangers hold open must
	// not take those of the others and of the log.
	MaxConnections int
	Clock          clock.Clock
	Logger         *slog.Logger
	Metrics        *metric.Registry
}

// A Proxy runs listeners. It is safe for concurrent use.
type Proxy struct {
	cfg   Config
	relay *tcp.Relay
	// edgeRelay has less patience with WebSocket connections of strangers.
	edgeRelay *tcp.Relay
	conns     mtls.Conns
	meters    meters

	// ctx ends when Drain is over: the goroutines of listeners end with it.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	share atomic.Int64 // how many connections a listener or an upstream may have

	mu        sync.Mutex // guards what follows; held by Apply throughout
	sockets   map[string]*socket
	listeners map[string]*listener // by name
	draining  map[*listener]bool
	upstreams map[upstreamKey]*upstream
	failed    []ListenerStatus
	unopened  bool // some of failed could not be opened at the last Apply
	closed    bool
}

// New is a proxy without listeners.
func New(cfg Config) *Proxy {
	if cfg.Lookup == nil {
		cfg.Lookup = func(string) []string { return nil }
	}
	p := &Proxy{
		cfg:       cfg,
		relay:     tcp.New(tcp.Config{Gate: cfg.Gate, Clock: cfg.Clock}),
		edgeRelay: tcp.New(tcp.Config{Gate: cfg.Gate, Clock: cfg.Clock, Idle: edgeIdle}),
		meters:    newMeters(cfg.Metrics),
		sockets:   map[string]*socket{},
		listeners: map[string]*listener{},
		draining:  map[*listener]bool{},
		upstreams: map[upstreamKey]*upstream{},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Apply makes the listeners those of snap, as far as they can be opened: new
// addresses are opened first, then routes are swapped, and removed listeners drain. A
// listener that stays keeps its socket and its connections.
//
// What cannot be opened keeps up nothing else, since the rest would go on by rules
// that are not meant any more. It is in the error, by a *fault.Fault such as
// PortOccupied, PortForbidden, SocketPath or KeyUnreadable, and Status says so. The
// listener that it was to replace goes on, by the new routes, where only its address
// or certificate was to be another.
//
// An inbound whose AppPort check fails does not start, or is cut off with its
// connections if it runs; Status says why, and it is no error. Due says when
// another Apply is.
func (p *Proxy) Apply(ctx context.Context, snap *snapshot.Snapshot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	wanted, failed := p.plan(snap)
	p.cutOff(failed)
	next := &change{proxy: p, failed: failed, sockets: map[string]*socket{}, listeners: map[string]*listener{}, upstreams: map[upstreamKey]*upstream{}, places: map[meshKey]places{}}
	err := next.prepare(ctx, wanted)
	next.commit()
	p.unopened = err != nil
	return err
}

// TrustChanged closes the connections of identities that trust no longer admits,
// ours among them.
func (p *Proxy) TrustChanged(trust *identity.Trust) {
	if n := p.conns.CloseRefused(trust); n > 0 {
		p.cfg.Logger.Info("connections closed because their identity was withdrawn", "component", "proxy", "count", n)
	}
}

// Drain stops accepting, lets calls under way end until ctx does, and then
// closes what is left. The proxy is of no use afterwards. The error is ctx's.
func (p *Proxy) Drain(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	for _, s := range p.sockets {
		s.close()
	}
	all := slices.Collect(maps.Values(p.listeners))
	all = slices.AppendSeq(all, maps.Keys(p.draining))
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range all {
		wg.Go(func() { l.drain(ctx) })
	}
	wg.Wait()
	p.cancel()
	p.mu.Lock()
	for _, u := range p.upstreams {
		u.close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return ctx.Err()
}

// connections is how many a listener or an upstream may have.
func (p *Proxy) connections() int { return int(p.share.Load()) }

// divide gives listeners, and each endpoint of an upstream, their shares. It requires
// p.mu.
func (p *Proxy) divide() {
	parts := len(p.listeners)
	for _, u := range p.upstreams {
		if parts++; u.endpoints != nil {
			parts += max(0, u.endpoints.Len()-1)
		}
	}
	share := uint64(p.cfg.MaxConnections)
	var limit syscall.Rlimit
	if share == 0 && syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		all := min(limit.Cur, math.MaxInt32)
		share = max(minConnections, min(all/4, all/2/uint64(max(1, parts))))
	}
	p.share.Store(int64(max(1, share)))
}
