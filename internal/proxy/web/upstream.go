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
	// transport carries a request.
	transport(carriage) (*pool, error)
	// scheme of the requests, http or https.
	scheme() string
	// mesh says that the other end is Parley, whose own fields pass.
	mesh() bool
	// address is that of the upstream where it is no connection's.
	address() string
	// Close closes idle connections, and others as they become idle.
	Close()
}

// Mesh is a service behind mTLS. A request goes on in the version of HTTP in
// which it came.
//
// Connections are kept in generations: all those of one generation were made
// with one credential under one trust epoch. When either changes, or the first
// leaf of a generation comes near its end, new requests use a new generation and
// the old one drains. So no request is sent on a connection whose leaf has ended.
type Mesh struct {
	// Limit, where set, is how many connections there may be at a time, counted for
	// each version of HTTP. A request waits a while for one, and then fails with
	// route.ErrBusy. Set it before the first use.
	Limit func() int

	src       identity.Source
	clk       clock.Clock
	endpoints []string
	h1, h2    *mtls.Dialer
	next      atomic.Uint32

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

// NewMesh reaches the service expect at endpoints with src's credential.
// Connections are registered in conns.
func NewMesh(src identity.Source, expect identity.ID, endpoints []string, clk clock.Clock, conns *mtls.Conns) *Mesh {
	m := &Mesh{src: src, clk: clk, endpoints: endpoints}
	m.h1 = mtls.NewDialer(src, expect, clk, mtls.HTTP1)
	m.h2 = mtls.NewDialer(src, expect, clk, mtls.HTTP2)
	m.h1.Conns, m.h2.Conns = conns, conns
	return m
}

func (m *Mesh) scheme() string  { return "https" }
func (m *Mesh) mesh() bool      { return true }
func (m *Mesh) address() string { return strings.Join(m.endpoints, ",") }

// Close implements Upstream.
func (m *Mesh) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.current.Swap(nil); g != nil {
		g.retire()
	}
}

func (m *Mesh) transport(c carriage) (*pool, error) {
	g, err := m.generation()
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

func (m *Mesh) generation() (*generation, error) {
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
	if g := m.current.Load(); good(g) {
		return g, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.current.Load(); good(g) {
		return g, nil
	}
	g := &generation{credential: cred, epoch: trust.Epoch}
	// Our own leaf's end is not lowered by the margin: it is renewed long before,
	// and if not, the last seconds are better used than refused.
	g.ends.Store(cred.NotAfter().UnixNano())
	g.h1 = m.newPool(g, m.h1, mtls.HTTP1)
	g.h2 = m.newPool(g, m.h2, mtls.HTTP2)
	g.streams = m.newPool(g, m.h2, mtls.HTTP2)
	g.streams.t.ResponseHeaderTimeout = 0
	if old := m.current.Swap(g); old != nil {
		old.retire()
	}
	return g, nil
}

func (m *Mesh) newPool(g *generation, d *mtls.Dialer, alpn string) *pool {
	p := newPool(newTransport(meshIdle), m.scheme(), alpn == mtls.HTTP2, m.clk, func(ctx context.Context) (net.Conn, error) {
		c, err := m.dial(ctx, d, "tcp", alpn)
		if err != nil {
			return nil, err
		}
		g.lower(mtls.Ends(c).Add(-leafMargin))
		return c, nil
	})
	p.limit = m.Limit
	return p
}

// dial tries the endpoints in turn, from the next one on. Nothing was sent where
// it fails, so another may be tried.
func (m *Mesh) dial(ctx context.Context, d *mtls.Dialer, network, alpn string) (net.Conn, error) {
	if len(m.endpoints) == 0 {
		return nil, &net.DNSError{Err: "the service has no endpoint", IsNotFound: true}
	}
	first, start := error(nil), int(m.next.Add(1))
	for i := range m.endpoints {
		c, err := d.DialContext(ctx, network, m.endpoints[(start+i)%len(m.endpoints)])
		if err == nil && alpn == mtls.HTTP2 && c.ConnectionState().NegotiatedProtocol != alpn {
			_ = c.Close()
			err = errors.New("the upstream does not speak HTTP/2")
		}
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
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

func (a *App) transport(c carriage) (*pool, error) {
	switch c {
	case streaming:
		return a.streams, nil
	case upgrading:
		return a.upgrading, nil
	}
	return a.p, nil
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
