package parley

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/mtls"
)

// Listen announces on a local address, as net.Listen does, for the callers in
// Allow. Accept yields a *tls.Conn after its handshake; who is on the other side
// is CallerOf's answer for it. A raw protocol needs no more; for HTTP, serve it
// through Handler: HTTP/1.1 and HTTP/2 are both offered.
//
// The caller is checked once a connection here. Handler checks each request.
func (w *Workload) Listen(network, addr string) (net.Listener, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	r, err := w.start(ctx)
	if err != nil {
		return nil, err
	}
	inner, err := net.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	// The handshake admits every member of the mesh, so that one who may not
	// call gets an answer where the protocol has one.
	l := &listener{r: r, Listener: mtls.NewListener(inner,
		mtls.Server(r.src, r.clk, mtls.HTTP2, mtls.HTTP1),
		mtls.ListenerConfig{Clock: r.clk, Refused: r.handshakeRefused})}
	r.mu.Lock()
	r.open[l] = true
	closed := r.closed
	r.mu.Unlock()
	if closed {
		_ = l.Close()
		return nil, ErrClosed
	}
	return l, nil
}

func (r *running) handshakeRefused(remote netip.AddrPort, err error, peer call.Peer) {
	r.log.Info("handshake refused", "remote", remote.String(), "claimed", peer.ID.String(), "error", err)
}

// A listener yields only connections of allowed callers.
type listener struct {
	net.Listener
	r    *running
	once sync.Once
	err  error
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		t, ok := c.(*tls.Conn)
		if !ok {
			_ = c.Close()
			return nil, errors.New("parley: not a TLS connection")
		}
		id, err := l.r.peers.verify(l.r, t.ConnectionState())
		if err == nil && l.r.allow[id] {
			return t, nil
		}
		l.r.deny.take(t)
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.r.mu.Lock()
		delete(l.r.open, l)
		l.r.mu.Unlock()
		l.err = l.Listener.Close()
	})
	return l.err
}
