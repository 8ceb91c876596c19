package mtls

import (
	"errors"
	"net"
	"os"
	"time"
)

// recordHandshake is the first byte of every TLS connection: the type of the record
// that holds the ClientHello (RFC 8446 section 5.1). No request of HTTP begins with it.
const recordHandshake = 22

// Plaintext says that c came in without TLS at a Listener that observes.
func Plaintext(c net.Conn) bool {
	w := unwrap(c)
	return w != nil && w.plain
}

// Observe lets connections in that do not begin with TLS, as they are, until the
// clock says until. Those that are open then stay open: EndPlaintext cuts them.
// The zero time ends it at once, which a listener begins with. Connections with TLS
// notice nothing of a change, at whatever point of their handshake they are.
func (l *Listener) Observe(until time.Time) {
	l.mu.Lock()
	l.until = until
	l.mu.Unlock()
	if !l.Observes() {
		l.EndPlaintext()
	}
}

// Observes says whether connections without TLS are let in now.
func (l *Listener) Observes() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.observes()
}

// observes requires l.mu.
func (l *Listener) observes() bool { return l.cfg.Clock.Now().Before(l.until) }

// EndPlaintext cuts the connections that were let in without TLS and says how many
// those were.
func (l *Listener) EndPlaintext() int {
	l.mu.Lock()
	open := make([]*conn, 0, len(l.plain))
	for w := range l.plain {
		open = append(open, w)
	}
	l.mu.Unlock()
	// Outside of the lock: closing takes it.
	for _, w := range open {
		w.cut.Store(true)
		Abort(w)
	}
	return len(open)
}

// look reads the first byte of a connection to a listener that observes and says
// whether it came without TLS. What was read is read again from s.raw's successor,
// next. A silent peer is taken for one that waits for the server to speak, where
// the configuration says after how long. The error is why there is no first byte.
func (l *Listener) look(s *shake, limit time.Time) (next net.Conn, plain bool, err error) {
	silent := limit
	if l.cfg.Silence > 0 {
		silent = l.cfg.Clock.Now().Add(l.cfg.Silence)
	}
	_ = s.raw.SetReadDeadline(silent)
	p := &peeked{Conn: s.raw}
	n, err := s.raw.Read(p.first[:])
	_ = s.raw.SetReadDeadline(limit)
	p.left = n
	switch {
	case n > 0:
		return p, p.first[0] != recordHandshake, nil
	case errors.Is(err, os.ErrDeadlineExceeded) && l.cfg.Silence > 0:
		return p, true, nil
	}
	return p, false, err
}

// enrol registers w as one without TLS, and says false where none is let in any
// more.
func (l *Listener) enrol(w *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.observes() {
		return false
	}
	if l.plain == nil {
		l.plain = map[*conn]bool{}
	}
	w.plain, l.plain[w] = true, true
	w.onClose(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.plain, w)
	})
	return true
}

// peeked is a connection whose first byte was read and is to be read again. Only one
// goroutine reads it at a time.
type peeked struct {
	net.Conn
	first [1]byte
	left  int
}

// Read implements net.Conn.
func (p *peeked) Read(b []byte) (int, error) {
	if p.left > 0 && len(b) > 0 {
		p.left = 0
		b[0] = p.first[0]
		return 1, nil
	}
	return p.Conn.Read(b)
}

// NetConn is what lies below, as in tls.Conn.
func (p *peeked) NetConn() net.Conn { return p.Conn }

// CloseWrite ends our direction of the TCP connection, where there is one.
func (p *peeked) CloseWrite() error {
	if half, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
