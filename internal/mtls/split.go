package mtls

import (
	"crypto/tls"
	"net"
	"slices"
	"sync"
)

// Split makes one listener a group of application protocols out of inner, which
// is one of NewListener's. A connection of no group's is closed. When one of them
// is closed, or inner fails, all of them are.
func Split(inner net.Listener, groups ...[]string) []net.Listener {
	s := &split{inner: inner, done: make(chan struct{})}
	listeners := make([]net.Listener, len(groups))
	for i, g := range groups {
		p := &part{split: s, protocols: g, ready: make(chan net.Conn)}
		s.parts, listeners[i] = append(s.parts, p), p
	}
	go s.run() // ends with Close
	return listeners
}

type split struct {
	inner net.Listener
	parts []*part
	once  sync.Once
	done  chan struct{}
	err   error // why there are no more; set before done is closed
}

func (s *split) run() {
	for {
		c, err := s.inner.Accept()
		if err != nil {
			s.end(err)
			return
		}
		t, ok := c.(*tls.Conn)
		i := -1
		if ok {
			proto := t.ConnectionState().NegotiatedProtocol
			i = slices.IndexFunc(s.parts, func(p *part) bool { return slices.Contains(p.protocols, proto) })
		}
		if i < 0 {
			_ = c.Close()
			continue
		}
		go s.parts[i].hand(c) // waits for Accept, or for the end
	}
}

func (s *split) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.done)
		_ = s.inner.Close()
	})
}

// A part is a listener of Split.
type part struct {
	*split
	protocols []string
	ready     chan net.Conn
}

func (p *part) hand(c net.Conn) {
	select {
	case p.ready <- c:
	case <-p.done:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (p *part) Accept() (net.Conn, error) {
	select {
	case c := <-p.ready:
		return c, nil
	case <-p.done:
		return nil, p.err
	}
}

// Close implements net.Listener.
func (p *part) Close() error {
	p.end(net.ErrClosed)
	return nil
}

// Addr implements net.Listener.
func (p *part) Addr() net.Addr { return p.inner.Addr() }
