package proxy

import (
	"net"
	"net/netip"
	"sync"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// An attested connection asks who opened it when it is first read, on the
// goroutine that serves it: before the first byte, and without holding up the
// accept loop.
type attested struct {
	net.Conn
	proxy   *Proxy
	request call.Request // what the refusal is recorded with

	once    sync.Once
	process call.Process
	refused *call.Verdict
}

// Read implements net.Conn.
func (a *attested) Read(p []byte) (int, error) {
	a.Attestation()
	return a.Conn.Read(p)
}

// Attestation implements web.Attested. The first caller asks; a refusal is
// recorded then, once for the connection.
func (a *attested) Attestation() (call.Process, *call.Verdict) {
	a.once.Do(func() {
		process, err := a.proxy.cfg.Attest(a.request.Local, a.Conn)
		a.process = process
		if err == nil {
			return
		}
		a.request.Process = process
		v := a.proxy.cfg.Gate.Refuse(&a.request, route.ProcessRefused, err)
		a.refused = &v
	})
	return a.process, a.refused
}

// NetConn is what lies below, for mtls.Abort.
func (a *attested) NetConn() net.Conn { return a.Conn }

// CloseWrite lets a relay end one direction.
func (a *attested) CloseWrite() error {
	if half, ok := a.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return a.Conn.Close()
}

// attesting is a feed whose connections are attested.
type attesting struct {
	net.Listener
	proxy   *Proxy
	request call.Request
}

// Accept implements net.Listener.
func (l *attesting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	a := &attested{Conn: c, proxy: l.proxy, request: l.request}
	a.request.Start = l.proxy.cfg.Clock.Now()
	a.request.Remote = remote(c)
	return a, nil
}

func remote(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
