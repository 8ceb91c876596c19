package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// ErrCrowded says that a handshake had to give way to newer ones.
var ErrCrowded = errors.New("too many handshakes are under way and this was the oldest")

// A peer that was refused gets this long, and this many of its bytes read, to
// see the alert: a close with unread bytes is a reset, which takes the alert
// along.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 64 << 10
)

// patience is how long a handshake may take before it has to give way where the
// listener is full. It is far above what an honest one needs.
const patience = time.Second

// ListenerConfig is how a Listener shakes hands.
type ListenerConfig struct {
	// Timeout bounds a handshake; zero is HandshakeTimeout.
	Timeout time.Duration
	// Clock is required.
	Clock clock.Clock
	// MaxHandshakes says how many may be under way at once, asked at each; nil is
	// always MaxHandshakes of this package.
	MaxHandshakes func() int
	// Refused, where set, is told of each failed handshake but those that
	// the peer broke off, with what its certificate claims, if it sent one. It is called concurrently.
	Refused func(remote netip.AddrPort, err error, peer call.Peer)
	// Conns, where set, registers each connection under its peer until it is closed.
	Conns *Conns
	// MaxOpen, where set, is how many connections of one peer may be open at once;
	// the zero ID stands for all who proved no identity. One more is closed.
	MaxOpen func(peer identity.ID) int
	// Silence is how long a listener that observes waits for the first byte, before it
	// takes the peer for one without TLS that lets the server speak first. Zero is for
	// protocols in which nobody does.
	Silence time.Duration
}

// A Listener shakes hands concurrently, so that a slow peer delays nobody else. It is
// a net.Listener.
type Listener struct {
	inner net.Listener
	tls   *tls.Config
	cfg   ListenerConfig

	ready   chan net.Conn
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup // the accept loop and every handshake
	pending atomic.Int64   // see Pending

	mu       sync.Mutex          // guards what follows
	room     *sync.Cond          // a handshake has ended, or Close was called
	underway []*shake            // oldest first
	open     map[identity.ID]int // where cfg.MaxOpen is set
	err      error               // why the accept loop ended
	until    time.Time           // see Observe
	plain    map[*conn]bool      // those open without TLS
}

// A shake is one handshake under way.
type shake struct {
	started time.Time
	raw     net.Conn
	evicted bool
}

// NewListener wraps inner: Accept yields *tls.Conn whose handshake is complete, and
// while the listener observes also connections of which Plaintext holds. Handshakes
// run without waiting for Accept. When cfg.MaxHandshakes() are under
// way, the oldest gives way if it has taken longer than a second; otherwise new
// connections wait in the kernel. Close ends the handshakes under way.
func NewListener(inner net.Listener, config *tls.Config, cfg ListenerConfig) *Listener {
	if cfg.Timeout == 0 {
		cfg.Timeout = HandshakeTimeout
	}
	if cfg.MaxHandshakes == nil {
		cfg.MaxHandshakes = func() int { return MaxHandshakes }
	}
	l := &Listener{inner: inner, tls: config, cfg: cfg, ready: make(chan net.Conn)}
	l.room = sync.NewCond(&l.mu)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Add(1)
	go l.accept()
	return l
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.err != nil {
			return nil, l.err
		}
		return nil, net.ErrClosed
	}
}

// Pending is how many connections are open that Accept has not yielded: those that
// shake hands, that were refused and have not gone yet, and that wait for Accept.
func (l *Listener) Pending() int { return int(l.pending.Load()) }

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close implements net.Listener. Connections that Accept did not yield are closed.
func (l *Listener) Close() error {
	l.cancel()
	err := l.inner.Close()
	l.mu.Lock()
	for _, s := range l.underway {
		_ = s.raw.Close()
	}
	l.room.Broadcast()
	l.mu.Unlock()
	l.wg.Wait()
	return err
}

func (l *Listener) accept() {
	defer l.wg.Done()
	defer l.cancel()
	for {
		raw, err := l.inner.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() && l.cfg.Clock.Sleep(l.ctx, 20*time.Millisecond) == nil {
				continue // out of descriptors: others will end
			}
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
			return
		}
		l.pending.Add(1)
		s := l.enter(raw)
		if s == nil {
			_ = raw.Close()
			l.pending.Add(-1)
			return
		}
		l.wg.Add(1)
		go l.serve(s)
	}
}

// enter waits for room; nil once the listener is closed.
func (l *Listener) enter(raw net.Conn) *shake {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.underway) >= l.cfg.MaxHandshakes() && l.ctx.Err() == nil {
		now := l.cfg.Clock.Now()
		oldest := l.underway[0]
		if wait := patience - now.Sub(oldest.started); wait > 0 {
			l.waitRoom(wait)
			continue
		}
		oldest.evicted = true
		_ = oldest.raw.Close()
		l.underway = slices.Delete(l.underway, 0, 1)
	}
	if l.ctx.Err() != nil {
		return nil
	}
	s := &shake{started: l.cfg.Clock.Now(), raw: raw}
	l.underway = append(l.underway, s)
	return s
}

// waitRoom waits for room at most for d. It requires l.mu.
func (l *Listener) waitRoom(d time.Duration) {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		_ = l.cfg.Clock.Sleep(ctx, d)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.room.Broadcast()
	}()
	l.room.Wait()
}

func (l *Listener) leave(s *shake) (evicted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.underway, s); i >= 0 {
		l.underway = slices.Delete(l.underway, i, i+1)
	}
	l.room.Signal()
	return s.evicted
}

func (l *Listener) serve(s *shake) {
	defer l.wg.Done()
	defer l.pending.Add(-1)
	limit := l.cfg.Clock.Now().Add(l.cfg.Timeout)
	_ = s.raw.SetDeadline(limit)
	w, peer, err := &conn{Conn: s.raw}, call.Peer{}, error(nil)
	plain := false
	if l.Observes() {
		if w.Conn, plain, err = l.look(s, limit); plain {
			plain = l.enrol(w) // one that comes too late fails its handshake
		}
	}
	var c net.Conn = w
	if !plain && err == nil {
		t := tls.Server(w, l.tls)
		if err = t.HandshakeContext(l.ctx); err == nil {
			w.learn(t.ConnectionState())
		} else {
			peer, _ = Facts(t.ConnectionState())
		}
		c = t
	}
	evicted := l.leave(s)
	if err == nil && l.ctx.Err() == nil {
		_ = s.raw.SetDeadline(time.Time{})
		l.yield(c, w)
		return
	}
	if l.ctx.Err() != nil {
		_ = w.Close()
		return // our own end is nobody's refusal
	}
	if evicted {
		err = ErrCrowded
	}
	// A peer that left by itself was not refused: a probe of the port, or a
	// client that did not need the connection after all.
	if l.cfg.Refused != nil && !left(err) {
		l.cfg.Refused(addrPort(s.raw.RemoteAddr()), err, peer)
	}
	l.linger(w)
}

// yield hands c, which lies over w, to Accept.
func (l *Listener) yield(c net.Conn, w *conn) {
	if !l.admit(w) {
		_ = c.Close()
		return
	}
	if l.cfg.Conns != nil && !w.peer.ID.IsZero() {
		w.onClose(l.cfg.Conns.Track(c, w.peer.ID))
	}
	select {
	case l.ready <- c:
	case <-l.ctx.Done():
		_ = c.Close()
	}
}

// admit counts a connection of its peer, until it is closed, and says whether there
// is room for it.
func (l *Listener) admit(w *conn) bool {
	if l.cfg.MaxOpen == nil {
		return true
	}
	id := w.peer.ID
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[id] >= l.cfg.MaxOpen(id) {
		return false
	}
	if l.open == nil {
		l.open = map[identity.ID]int{}
	}
	l.open[id]++
	w.onClose(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.open[id]--; l.open[id] == 0 {
			delete(l.open, id)
		}
	})
	return true
}

func left(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// linger lets the peer see the alert before the connection goes.
func (l *Listener) linger(w *conn) {
	defer w.Close()
	defer context.AfterFunc(l.ctx, func() { _ = w.Close() })()
	if w.CloseWrite() != nil {
		return
	}
	_ = w.SetDeadline(l.cfg.Clock.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, w, lingerBytes)
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
