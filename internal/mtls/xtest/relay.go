package xtest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A Relay is the network between a client and a server, which can be cut.
type Relay struct {
	// Addr is where the client connects.
	Addr string

	l     net.Listener
	mu    sync.Mutex // guards what follows
	to    string
	cut   bool
	left  int64 // bytes that the server may still send, where there is a limit
	limit bool
	conns map[net.Conn]bool
	tries int
}

// NewRelay relays to addr until the test ends.
func NewRelay(tb testing.TB, addr string) *Relay {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &Relay{Addr: l.Addr().String(), l: l, to: addr, conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.relay(c) })
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		r.Cut()
		wg.Wait()
	})
	return r
}

// To makes addr where new connections go.
func (r *Relay) To(addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to = addr
}

// Cut resets every connection, and each new one until Mend.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut, r.tries = true, 0
	r.reset()
}

// CutAfter cuts once the server has sent n more bytes.
func (r *Relay) CutAfter(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left, r.limit = n, true
}

// Mend lets new connections through.
func (r *Relay) Mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut, r.limit = false, false
}

// Tries is how many connections were refused since it was cut.
func (r *Relay) Tries() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tries
}

// reset requires r.mu.
func (r *Relay) reset() {
	for c := range r.conns {
		abort(c)
	}
	clear(r.conns)
}

func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

func (r *Relay) relay(client net.Conn) {
	r.mu.Lock()
	to, cut := r.to, r.cut
	if cut {
		r.tries++
	}
	r.mu.Unlock()
	server, err := net.DialTimeout("tcp", to, 5*time.Second)
	r.mu.Lock()
	if err != nil || cut || r.cut {
		r.mu.Unlock()
		abort(client)
		if err == nil {
			abort(server)
		}
		return
	}
	r.conns[client], r.conns[server] = true, true
	r.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	})
	wg.Go(func() {
		_, _ = io.Copy(client, limited{r, server})
		_ = client.Close()
	})
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, client)
	delete(r.conns, server)
}

// limited reads from a server what may still pass.
type limited struct {
	r *Relay
	net.Conn
}

func (l limited) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	if l.r.limit {
		if l.r.left -= int64(n); l.r.left <= 0 {
			l.r.limit, l.r.cut = false, true
			l.r.reset()
			return 0, io.ErrUnexpectedEOF
		}
	}
	return n, err
}
