package parley

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/audit"
)

// Limits of connections that only get a refusal.
const (
	maxDenied   = 64
	deniedTime  = 5 * time.Second
	deniedBytes = 16 << 10
)

// A denier answers members of the mesh who may not call: with 403 where the
// connection is HTTP by its negotiated protocol, and else by closing it.
type denier struct {
	r      *running
	server *http.Server
	queue  *queue
	slots  chan struct{} // one is taken while a connection is served
	served chan struct{} // closed when the server has ended
}

func newDenier(r *running) *denier {
	d := &denier{
		r: r, queue: &queue{conns: make(chan net.Conn), done: make(chan struct{})},
		slots: make(chan struct{}, maxDenied), served: make(chan struct{}),
	}
	d.server = &http.Server{
		Handler:     http.HandlerFunc(d.refuse),
		ReadTimeout: deniedTime, WriteTimeout: deniedTime, IdleTimeout: deniedTime, MaxHeaderBytes: deniedBytes,
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				<-d.slots
			}
		},
	}
	d.server.SetKeepAlivesEnabled(false)
	go func() {
		defer close(d.served)
		_ = d.server.Serve(d.queue)
	}()
	return d
}

// Close ends the server and its connections.
func (d *denier) Close() error {
	err := errors.Join(d.queue.Close(), d.server.Close())
	<-d.served
	return err
}

func (d *denier) refuse(rw http.ResponseWriter, req *http.Request) {
	id, err := d.r.peers.verify(d.r, *req.TLS)
	d.r.forbid(rw, req, code(err), id)
}

// take owns c from here on.
func (d *denier) take(c *tls.Conn) {
	cs := c.ConnectionState()
	if cs.NegotiatedProtocol != "" {
		select {
		case d.slots <- struct{}{}:
			if d.queue.put(c) {
				return
			}
			<-d.slots
		default: // enough of them
		}
	}
	id, err := d.r.peers.verify(d.r, cs)
	d.r.log.Info("connection refused", "decision", audit.NewID(d.r.clk.Now()), "reason", code(err),
		"caller", id.String(), "remote", c.RemoteAddr().String())
	_ = c.Close()
}

// A queue is a listener that yields the connections put into it.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (*queue) Addr() net.Addr { return &net.TCPAddr{} }

// Close implements net.Listener.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}
