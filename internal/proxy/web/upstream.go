package web

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/balance"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// Limits of the client half.
const (
	meshIdle = 60 * time.Second
	appIdle  = 30 * time.Second
	// answerTimeout is the time from a whole request to the head of its response. A
	// gRPC server may send that head with its first message, hours later, so for gRPC
	// there is none: what its caller states travels on, and ends the call at both ends.
	answerTimeout = 5 * time.Minute
	// upstreamPing is how long an HTTP/2 upstream is silent before it is asked
	// whether it lives. gRPC servers take more than one such question within five
	// minutes for abuse and end the connection with all its streams (gRPC A8,
	// too_many_pings). A host that is gone is found sooner, by TCP keep-alive.
	upstreamPing = 6 * time.Minute
	// continueWait is how long a body waits for the 100 that its client asked for,
	// which may never come (RFC 9110 section 10.1.1). curl waits as long, and nginx
	// sends none over HTTP/2.
	continueWait   = time.Second
	maxIdle        = 1024 // connections without a request, of an upstream
	maxAnswerBytes = 256 << 10
	// leafMargin is how long before the end of a leaf its connections are left:
	// a request that was just sent still arrives in time.
	leafMargin = 2 * time.Second
)

// A carriage is how a request travels on.
type carriage int

// The carriages.
const (
	http1 carriage = iota
	http2
	streaming // HTTP/2 without a limit for the head of the response
	upgrading // HTTP/1.1, whatever else the upstream speaks
)

// An Upstream is something that requests are forwarded to.
type Upstream interface {
	// roundTrip sends a request, which it has made ready for the connection before.
	roundTrip(c carriage, r *http.Request, prepare preparation) (*http.Response, error)
	// scheme of the requests, http or https.
	scheme() string
	// mesh says that the other end is Parley, whose own fields pass.
	mesh() bool
	// address is that of the upstream where it is no connection's.
	address() string
	// Close closes idle connections, and others as they become idle.
	Close()
}

// Mesh is a service behind mTLS, at any number of endpoints. A request goes on in
// the version of HTTP in which it came.
//
// Of each endpoint connections are kept in generations: all those of one generation
// were made with one credential under one trust epoch. When either changes, or the
// first leaf of a generation comes near its end, new requests use a new generation
// and the old one drains. So no request is sent on a connection whose leaf has ended.
type Mesh struct {
	// Limit, where set, is how many connections there may be at a time, counted for
	// each endpoint and version of HTTP. A request waits a while for one, and then
	// fails with route.ErrBusy. Set it before the first use.
	Limit func() int
	// Foreign says that no sidecar is at the other end but the program itself. Set it
	// before the first use.
	Foreign bool

	src    identity.Source
	clk    clock.Clock
	set    *balance.Set[*place]
	h1, h2 *mtls.Dialer
}

// A place is one endpoint of a Mesh, with its connections.
type place struct {
	mesh     *Mesh
	endpoint *balance.Endpoint[*place]

	current atomic.Pointer[generation]
	mu      sync.Mutex // held to replace current
}

type generation struct {
	credential *identity.Credential
	epoch      uint64
	ends       atomic.Int64 // earliest end of a leaf, Unix nanoseconds
	h1, h2     *pool
	streams    *pool
}

// NewMesh reaches the service expect with src's credential, at no endpoint before
// Update. Connections are registered in conns.
func NewMesh(src identity.Source, expect identity.ID, clk clock.Clock, conns *mtls.Conns) *Mesh {
	m := &Mesh{src: src, clk: clk}
	m.set = balance.New(clk, func(e *balance.Endpoint[*place]) *place { return &place{mesh: m, endpoint: e} }, (*place).close)
	m.h1 = mtls.NewDialer(src, expect, clk, mtls.HTTP1)
	m.h2 = mtls.NewDialer(src, expect, clk, mtls.HTTP2)
	m.h1.Conns, m.h2.Conns = conns, conns
	return m
}

func (m *Mesh) scheme() string  { return "https" }
func (m *Mesh) mesh() bool      { return !m.Foreign }
func (m *Mesh) address() string { return m.set.Addresses() }

// Endpoints are where the service is called.
func (m *Mesh) Endpoints() balance.Endpoints { return m.set }

// Close implements Upstream.
func (m *Mesh) Close() { m.set.Update("", nil) }

// roundTrip sends r to an endpoint, and to another one where that could not be
// reached. What was sent to one is sent to no other.
func (m *Mesh) roundTrip(c carriage, r *http.Request, prepare preparation) (*http.Response, error) {
	try := m.set.Begin()
	for try.Endpoint != nil {
		p, err := try.Kept.transport(c)
		if err != nil {
			try.Done()
			return nil, err // of our own credential: another endpoint is no way out
		}
		resp, sent, err := p.roundTrip(r, prepare)
		if err == nil {
			try.Reached()
			return resp, nil
		}
		try.Failed(r.Context(), err, sent || ours(err))
	}
	return nil, try.Err
}

// ours says that err is no fault of the endpoint.
func ours(err error) bool {
	code, _ := route.Failure(err)
	return code == route.NoCredential || code == route.UpstreamBusy
}

func (p *place) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.current.Swap(nil); g != nil {
		g.retire()
	}
}

func (p *place) transport(c carriage) (*pool, error) {
	g, err := p.generation()
	if err != nil {
		return nil, err
	}
	switch c {
	case http2:
		return g.h2, nil
	case streaming:
		return g.streams, nil
	}
	return g.h1, nil
}

func (p *place) generation() (*generation, error) {
	m := p.mesh
	cred, err := m.src.Credential()
	if err != nil {
		return nil, err
	}
	trust := m.src.Trust()
	if trust == nil {
		return nil, mtls.ErrNoTrust
	}
	now := m.clk.Now()
	if now.After(cred.NotAfter()) {
		return nil, fmt.Errorf("own credential: %w", identity.ErrExpired)
	}
	good := func(g *generation) bool {
		return g != nil && g.credential == cred && g.epoch == trust.Epoch && now.UnixNano() < g.ends.Load()
	}
	if g := p.current.Load(); good(g) {
		return g, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.current.Load(); good(g) {
		return g, nil
	}
	g := &generation{credential: cred, epoch: trust.Epoch}
	// Our own leaf's end is not lowered by the margin: it is renewed long before,
	// and if not, the last seconds are better used than refused.
	g.ends.Store(cred.NotAfter().UnixNano())
	g.h1 = p.newPool(g, m.h1, mtls.HTTP1)
	g.h2 = p.newPool(g, m.h2, mtls.HTTP2)
	g.streams = p.newPool(g, m.h2, mtls.HTTP2)
	g.streams.t.ResponseHeaderTimeout = 0
	if old := p.current.Swap(g); old != nil {
		old.retire()
	}
	return g, nil
}

func (p *place) newPool(g *generation, d *mtls.Dialer, alpn string) *pool {
	m := p.mesh
	connections := newPool(newTransport(meshIdle), m.scheme(), alpn == mtls.HTTP2, m.clk, func(ctx context.Context) (net.Conn, error) {
		c, err := p.dial(ctx, d, alpn)
		if err != nil {
			return nil, err
		}
		g.lower(mtls.Ends(c).Add(-leafMargin))
		return c, nil
	})
	connections.limit, connections.ended = m.Limit, p.endpoint.Done
	return connections
}

func (p *place) dial(ctx context.Context, d *mtls.Dialer, alpn string) (net.Conn, error) {
	if limit := p.mesh.set.DialTime(); limit > 0 {
		var done func()
		ctx, done = context.WithTimeout(ctx, limit)
		defer done()
	}
	c, err := d.DialContext(ctx, "tcp", p.endpoint.Address)
	if err == nil && alpn == mtls.HTTP2 && c.ConnectionState().NegotiatedProtocol != alpn {
		_ = c.Close()
		err = errors.New("the upstream does not speak HTTP/2")
	}
	if err != nil {
		return nil, err // not c, which would be an interface of nothing
	}
	return c, nil
}

// lower keeps the earliest end.
func (g *generation) lower(end time.Time) {
	for {
		old := g.ends.Load()
		if end.UnixNano() >= old || g.ends.CompareAndSwap(old, end.UnixNano()) {
			return
		}
	}
}

// retire closes what is idle, and the rest when it becomes idle.
func (g *generation) retire() {
	g.h1.close()
	g.h2.close()
	g.streams.close()
}

// App is an application behind its sidecar, in plaintext.
type App struct {
	// Limit is as of Mesh.
	Limit func() int
	// Check, where set, says why a connection is not to the application. It is asked
	// before anything is sent. Set it before the first use.
	Check func(net.Conn) error

	addr                  string
	p, streams, upgrading *pool
}

// NewApp reaches addr: host:port, or unix: and an absolute path. With h2 it
// speaks HTTP/2 from the first byte, but for WebSocket, otherwise HTTP/1.1. Deadlines are set by clk.
func NewApp(addr string, h2 bool, clk clock.Clock) *App {
	a := &App{addr: addr}
	a.p = a.newPool(h2, clk)
	a.streams, a.upgrading = a.p, a.p
	if h2 {
		a.upgrading = a.newPool(false, clk)
		a.streams = a.newPool(true, clk)
		a.streams.t.ResponseHeaderTimeout = 0
	}
	return a
}

func (a *App) newPool(h2 bool, clk clock.Clock) *pool {
	p := newPool(newTransport(appIdle), a.scheme(), h2, clk, func(ctx context.Context) (net.Conn, error) {
		c, err := a.Dial(ctx)
		if err != nil {
			return nil, err
		}
		return &patient{Conn: c, clk: clk}, nil
	})
	p.limit = func() int {
		if a.Limit == nil {
			return math.MaxInt
		}
		return a.Limit()
	}
	return p
}

// A patient connection to an application gives up on a write once nothing was
// read on the other side for as long as stall. The client, which may be gone, is
// not noticed while its body cannot be passed on.
type patient struct {
	net.Conn
	clk   clock.Clock
	armed time.Time // net/http writes from one goroutine at a time
}

// Write implements net.Conn.
func (p *patient) Write(b []byte) (int, error) {
	if now := p.clk.Now(); now.Sub(p.armed) > stall/4 {
		p.armed = now
		_ = p.SetWriteDeadline(now.Add(stall))
	}
	return p.Conn.Write(b)
}

// Dial connects to the application. A connection that Check refuses is closed, and
// the error is a *route.Stranger.
func (a *App) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, mtls.DialTimeout)
	defer cancel()
	network, addr := "tcp", a.addr
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err != nil || a.Check == nil {
		return c, err
	}
	if err := a.Check(c); err != nil {
		_ = c.Close()
		return nil, &route.Stranger{Err: err}
	}
	return c, nil
}

func (a *App) roundTrip(c carriage, r *http.Request, prepare preparation) (*http.Response, error) {
	resp, _, err := a.transport(c).roundTrip(r, prepare)
	return resp, err
}

func (a *App) transport(c carriage) *pool {
	switch c {
	case streaming:
		return a.streams
	case upgrading:
		return a.upgrading
	}
	return a.p
}

func (a *App) scheme() string  { return "http" }
func (a *App) mesh() bool      { return false }
func (a *App) address() string { return a.addr }

// Close implements Upstream.
func (a *App) Close() {
	a.p.close()
	a.streams.close()
	a.upgrading.close()
}

func newTransport(idle time.Duration) *http.Transport {
	return &http.Transport{
		IdleConnTimeout:        idle,
		ResponseHeaderTimeout:  answerTimeout,
		ExpectContinueTimeout:  continueWait,
		MaxResponseHeaderBytes: maxAnswerBytes,
		DisableCompression:     true, // bodies travel as they are
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: upstreamPing, PingTimeout: pingTimeout, WriteByteTimeout: writeTimeout},
	}
}
