package mtls

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
)

// conn lies under each *tls.Conn of this package, and is a connection without TLS
// that a Listener let in: it keeps what is known of the
// connection, and runs what waits for its end.
type conn struct {
	net.Conn
	peer  call.Peer
	tls   call.TLS
	local *identity.Credential // presented by a Dialer
	plain bool                 // it came without TLS

	cut  atomic.Bool
	mu   sync.Mutex // guards what follows
	ends []func()
	over bool
}

// learn is called once, before anybody else has the connection.
func (c *conn) learn(cs tls.ConnectionState) { c.peer, c.tls = Facts(cs) }

// onClose runs f when the connection is closed, at once if it is.
func (c *conn) onClose(f func()) {
	c.mu.Lock()
	over := c.over
	if !over {
		c.ends = append(c.ends, f)
	}
	c.mu.Unlock()
	if over {
		f()
	}
}

// NetConn is what lies below, as in tls.Conn.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.mu.Lock()
	ends := c.ends
	c.ends, c.over = nil, true
	c.mu.Unlock()
	for _, f := range ends {
		f()
	}
	return err
}

// CloseWrite ends our direction of the TCP connection, where there is one.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func unwrap(c net.Conn) *conn {
	for c != nil {
		if w, ok := c.(*conn); ok {
			return w
		}
		outer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = outer.NetConn()
	}
	return nil
}

// Abort closes c at once, without the closing alert of TLS, and where it can
// with a reset: the other side sees a truncated stream, not a complete one.
func Abort(c net.Conn) {
	raw := c
	for {
		outer, ok := raw.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		raw = outer.NetConn()
		if _, ok := outer.(*tls.Conn); ok {
			c = raw
		}
	}
	if tcp, ok := raw.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// Withdrawn says that CloseRefused or EndPlaintext cut c.
func Withdrawn(c net.Conn) bool {
	w := unwrap(c)
	return w != nil && w.cut.Load()
}

// Conns registers open connections by the identities at their ends. The zero
// value is ready for use; it is safe for concurrent use.
type Conns struct {
	mu   sync.Mutex // guards what follows
	next uint64
	open map[identity.ID]map[uint64]net.Conn
}

// Track registers conn as one of id's. untrack is to be called once it is
// closed, and may be called again.
func (c *Conns) Track(conn net.Conn, id identity.ID) (untrack func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	key := c.next
	if c.open == nil {
		c.open = map[identity.ID]map[uint64]net.Conn{}
	}
	if c.open[id] == nil {
		c.open[id] = map[uint64]net.Conn{}
	}
	c.open[id][key] = conn
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open[id], key)
		if len(c.open[id]) == 0 {
			delete(c.open, id)
		}
	}
}

// Len is how many registrations there are.
func (c *Conns) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, conns := range c.open {
		n += len(conns)
	}
	return n
}

// CloseRefused aborts the connections of every identity that trust no longer
// admits and says how many those were.
func (c *Conns) CloseRefused(trust *identity.Trust) int {
	c.mu.Lock()
	refused := map[net.Conn]bool{}
	for id, conns := range c.open {
		if trust.Admit(id) == nil {
			continue
		}
		for _, conn := range conns {
			refused[conn] = true
		}
	}
	c.mu.Unlock()
	// Outside of the lock: closing runs untrack.
	for conn := range refused {
		if w := unwrap(conn); w != nil {
			w.cut.Store(true)
		}
		Abort(conn)
	}
	return len(refused)
}
