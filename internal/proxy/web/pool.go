package web

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// roomWait is how long a request waits for a connection of an upstream that has as
// many as it may.
const roomWait = 5 * time.Second

// A pool keeps the connections to one upstream.
//
// net/http runs each of them (http.ClientConn) and has no say in which request
// goes where. Its own pool sends a request that is idempotent, or says so in an
// Idempotency-Key, once more wherever a connection that was used before breaks;
// by then an application may have carried it out, and the log has one event for
// two deeds.
type pool struct {
	t      *http.Transport // of which only NewClientConn is used
	dial   func(context.Context) (net.Conn, error)
	scheme string
	shared bool // HTTP/2: a connection takes many requests
	clk    clock.Clock
	idle   time.Duration // how long a connection is kept without a request
	limit  func() int    // of connections, nil for none
	ended  func()        // told of each request that got a response when that is over, nil for nobody

	ctx    context.Context // ends sweep
	cancel context.CancelFunc

	mu       sync.Mutex // guards what follows; no method of a link is called under it
	links    []*link    // HTTP/1.1: those without a request, the last used last. HTTP/2: all
	open     int        // with those that are being made
	making   bool       // HTTP/2: one is, and will do for all
	turn     uint64     // moves with whatever those who wait for can come of
	waiting  []chan struct{}
	sweeping bool
	closed   bool // what becomes idle is closed
}

// A link is one connection of a pool.
type link struct {
	*http.ClientConn
	net    net.Conn
	writes atomic.Int64 // of HTTP/1.1, but those that failed before the first byte

	since time.Time // without a request; guarded by pool.mu, as gone
	gone  bool
}

// An under lies under the ClientConn of HTTP/1.1.
type under struct {
	net.Conn
	pool *pool
	link *link
}

// Write implements net.Conn.
func (u under) Write(b []byte) (int, error) {
	u.link.writes.Add(1)
	n, err := u.Conn.Write(b)
	if n == 0 && err != nil {
		u.link.writes.Add(-1)
	}
	return n, err
}

// Close implements net.Conn.
func (u under) Close() error {
	u.pool.forget(u.link)
	return u.Conn.Close()
}

// newPool keeps connections that dial makes. t is the pool's own.
func newPool(t *http.Transport, scheme string, shared bool, clk clock.Clock, dial func(context.Context) (net.Conn, error)) *pool {
	p := &pool{t: t, dial: dial, scheme: scheme, shared: shared, clk: clk, idle: t.IdleConnTimeout}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(!shared)
	t.Protocols.SetHTTP2(shared && scheme == "https")
	t.Protocols.SetUnencryptedHTTP2(shared && scheme == "http")
	dialed := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return ctx.Value(dialedKey{}).(net.Conn), nil
	}
	t.DialContext, t.DialTLSContext = dialed, dialed
	return p
}

// dialedKey is where newLink leaves a connection for NewClientConn.
type dialedKey struct{}

// roundTrip sends r on one connection, as prepare makes it for that one. Where it is certain
// that nobody has read r there, because the server had closed the connection, it
// sends it on a second one, and on no third. An error with sent false says that
// nobody has read r at all.
func (p *pool) roundTrip(r *http.Request, prepare preparation) (resp *http.Response, sent bool, err error) {
	l, reused, err := p.take(r.Context(), true)
	if err != nil {
		return nil, false, err
	}
	before := l.writes.Load()
	resp, err = p.send(l, r, prepare)
	if err == nil || !reused || !p.unsent(l, before, err) || !unread(r.Body) {
		return resp, true, err
	}
	if l, _, err = p.take(r.Context(), p.shared); err != nil {
		return nil, false, err
	}
	resp, err = p.send(l, r, prepare)
	return resp, true, err
}

// A preparation makes a request ready for the connection that it goes over. The
// request may not be changed any more once it was sent.
type preparation func(net.Conn, *http.Request) (*http.Request, error)

// unread says that b can be sent as if for the first time.
func unread(b io.Reader) bool {
	ours, ok := b.(*body)
	return b == nil || ok && ours.reopen()
}

func (p *pool) send(l *link, r *http.Request, prepare preparation) (*http.Response, error) {
	r, err := prepare(l.net, r)
	if err != nil {
		l.Release()
		p.release(l)
		return nil, err
	}
	resp, err := l.RoundTrip(r)
	if err != nil {
		p.release(l)
		return nil, err
	}
	end := sync.OnceFunc(func() {
		p.release(l)
		if p.ended != nil {
			p.ended()
		}
	})
	if both, ok := resp.Body.(io.ReadWriteCloser); ok {
		resp.Body = duplex{both, end}
	} else {
		resp.Body = held{resp.Body, end}
	}
	return resp, nil
}

// held is a response's body; the connection is released when it is closed.
type held struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer.
func (h held) Close() error {
	defer h.end()
	return h.ReadCloser.Close()
}

// duplex is held for a connection that changed its protocol.
type duplex struct {
	io.ReadWriteCloser
	end func()
}

// Close implements io.Closer.
func (d duplex) Close() error {
	defer d.end()
	return d.ReadWriteCloser.Close()
}

// streamError has the fields of net/http's own, which is how that lets itself be
// seen.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

// Error implements error.
func (streamError) Error() string { return "stream error" }

const refusedStream = 7 // REFUSED_STREAM of RFC 9113 section 7

// unsent says that nobody has read a request that failed with err. Over HTTP/1.1
// that is where nothing was written since before. Over HTTP/2 others write too:
// there it is where the server said so (RFC 9113 section 8.7), or where no stream
// was begun because the connection takes none any more.
func (p *pool) unsent(l *link, before int64, err error) bool {
	if !p.shared {
		return l.writes.Load() == before
	}
	var stream streamError
	if errors.As(err, &stream) {
		return stream.Code == refusedStream
	}
	switch err.Error() { // net/http exports neither; a test fails where the text changes
	case "http2: client conn not usable", "http2: Transport received Server's graceful shutdown GOAWAY":
		return true
	}
	return false
}

// take is a connection with room for one request, reserved; reused says that it
// had one before. With old false it is a new one.
func (p *pool) take(ctx context.Context, old bool) (l *link, reused bool, err error) {
	var bounded context.Context
	for {
		p.mu.Lock()
		turn := p.turn
		p.mu.Unlock()
		if old {
			if l := p.kept(); l != nil {
				return l, true, nil
			}
		}
		wait := p.claim(turn)
		if wait == nil {
			l, err := p.connect(ctx)
			return l, false, err
		}
		if bounded == nil {
			var cancel context.CancelFunc
			bounded, cancel = context.WithTimeoutCause(ctx, roomWait, route.ErrBusy)
			defer cancel()
		}
		select {
		case <-wait:
		case <-bounded.Done():
			p.leave(wait)
			return nil, false, context.Cause(bounded)
		}
	}
}

// claim is nil where the caller is to make a connection. Otherwise it is closed
// when it is worth to look again: at once, where something moved since turn.
func (p *pool) claim(turn uint64) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	limit := math.MaxInt
	if p.limit != nil {
		limit = p.limit()
	}
	if p.open < limit && !p.making {
		p.open++
		p.making = p.shared
		return nil
	}
	wait := make(chan struct{})
	if p.turn != turn {
		close(wait)
	} else {
		p.waiting = append(p.waiting, wait)
	}
	return wait
}

// wake lets the first n who wait look again. It requires p.mu.
func (p *pool) wake(n int) {
	p.turn++
	n = min(n, len(p.waiting))
	for _, w := range p.waiting[:n] {
		close(w)
	}
	p.waiting = slices.Delete(p.waiting, 0, n)
}

// leave gives up waiting, and passes the turn on that came with it.
func (p *pool) leave(wait chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiting, wait); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	} else {
		p.wake(1)
	}
}

// kept is a connection that was there already, reserved, nil for none.
func (p *pool) kept() *link {
	if p.shared {
		p.mu.Lock()
		links := p.links
		p.mu.Unlock()
		for _, l := range links {
			if l.Reserve() == nil {
				return l
			}
		}
		return nil
	}
	for {
		p.mu.Lock()
		n := len(p.links) - 1
		if n < 0 {
			p.mu.Unlock()
			return nil
		}
		l := p.links[n]
		p.links = slices.Delete(p.links, n, n+1)
		stale := p.clk.Now().Sub(l.since) >= p.idle
		p.mu.Unlock()
		if !stale && !hungUp(l.net) && l.Reserve() == nil {
			return l
		}
		_ = l.Close()
	}
}

// connect makes a connection, reserved. It follows claim.
func (p *pool) connect(ctx context.Context) (*link, error) {
	l := &link{}
	err := p.fill(ctx, l)
	if err != nil {
		p.forget(l)
	}
	if p.shared {
		p.mu.Lock()
		if err == nil && !l.gone {
			p.links = append(slices.Clip(p.links), l)
		}
		p.making = false
		p.wake(len(p.waiting))
		p.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// fill makes l a connection.
func (p *pool) fill(ctx context.Context, l *link) error {
	c, err := p.dial(ctx)
	if err != nil {
		return err
	}
	l.net = c
	if !p.shared {
		c = under{c, p, l}
	}
	l.ClientConn, err = p.t.NewClientConn(context.WithValue(ctx, dialedKey{}, c), p.scheme, "upstream:1")
	if err != nil {
		_ = c.Close()
		return err
	}
	if err := l.Reserve(); err != nil {
		_ = l.Close()
		return err
	}
	if p.shared {
		l.SetStateHook(func(*http.ClientConn) {
			if l.Err() != nil {
				p.forget(l)
			}
		})
	}
	return nil
}

// release takes l back when its request and response are over.
func (p *pool) release(l *link) {
	free := l.Err() == nil && l.Available() > 0
	if p.shared {
		free = l.InFlight() == 0
	}
	p.mu.Lock()
	keep := !p.closed
	if p.shared {
		keep = keep || !free
	} else if keep = keep && free && len(p.links) < maxIdle; keep {
		l.since = p.clk.Now()
		p.links = append(p.links, l)
		if !p.sweeping {
			p.sweeping = true
			go p.sweep()
		}
	}
	p.wake(1)
	p.mu.Unlock()
	if !keep {
		_ = l.Close()
	}
}

// forget is for a connection that was closed, or never came to be.
func (p *pool) forget(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.gone {
		return
	}
	l.gone = true
	p.open--
	p.wake(1)
	if i := slices.Index(p.links, l); i >= 0 {
		// kept may be looking at the old ones.
		p.links = slices.Concat(p.links[:i], p.links[i+1:])
	}
}

// sweep closes connections of HTTP/1.1 that had no request for too long. It ends
// when there are none left, or with the pool; net/http does the same for HTTP/2.
func (p *pool) sweep() {
	for {
		ended := p.clk.Sleep(p.ctx, p.idle/2) != nil
		p.mu.Lock()
		old := p.clk.Now().Add(-p.idle)
		n := 0
		for n < len(p.links) && !p.links[n].since.After(old) {
			n++
		}
		stale := slices.Clone(p.links[:n])
		p.links = slices.Clone(p.links[n:])
		ended = ended || len(p.links) == 0
		p.sweeping = !ended
		p.mu.Unlock()
		for _, l := range stale {
			_ = l.Close()
		}
		if ended {
			return
		}
	}
}

// close closes idle connections, and the others when they become idle.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	links := p.links
	if !p.shared {
		p.links = nil
	}
	p.mu.Unlock()
	p.cancel()
	for _, l := range links {
		if !p.shared || l.InFlight() == 0 {
			_ = l.Close()
		}
	}
}
