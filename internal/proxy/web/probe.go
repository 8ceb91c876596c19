package web

import (
	"crypto/tls"
	"net"
	"net/http"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// probe says that the request is one of `parley verify`: its connection is, by what
// was negotiated in its handshake. It went the way of every other up to the decision,
// and what is allowed ends here, unanswered by the application.
func (x *exchange) probe() bool {
	return x.site.End == call.Inbound && x.req.TLS.ALPN == call.Probe
}

// answerProbe answers an allowed probe, and says whether that was it: the one request
// that the mesh file names for probes goes on to the application.
func (x *exchange) answerProbe() bool {
	h := x.w.Header()
	if x.named() {
		h[route.Probe] = []string{route.ProbeForwarded}
		return false
	}
	x.hop.Upstream = nil // for the record: nothing was asked of it
	if x.unread() {
		// Otherwise net/http waits for the body before it sends anything.
		_ = x.control.EnableFullDuplex()
	}
	x.finish("", http.StatusOK)
	h[route.Probe] = []string{route.ProbeAnswered}
	h[route.Decision] = []string{x.req.Verdict.ID}
	h["Cache-Control"] = []string{"no-store"}
	h["Content-Length"] = []string{"0"}
	h["Connection"] = []string{"close"}
	x.w.WriteHeader(http.StatusOK)
	if x.unread() {
		x.skipBody() // within a time, which net/http has none for
	}
	return true
}

// named says that the request is the one that the mesh file names for probes, and
// nothing more: a query or a body could make an application do something else.
func (x *exchange) named() bool {
	p := x.hop.Probe
	return p != nil && p.Method == x.req.Method && p.Path == x.req.Path && x.query == "" && x.r.ContentLength == 0 && !x.upgrade
}

// A probed listener hides TLS of probes from net/http, which closes a connection
// whose negotiated protocol it does not know.
type probed struct{ net.Listener }

// Accept implements net.Listener.
func (l probed) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if t, ok := c.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol == call.Probe {
		return probeConn{t}, nil
	}
	return c, err
}

// A probeConn is a connection of a probe.
type probeConn struct{ net.Conn }

// NetConn is what lies below, for what is known of the connection.
func (p probeConn) NetConn() net.Conn { return p.Conn }
