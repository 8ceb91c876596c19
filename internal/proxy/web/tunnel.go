package web

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/route"
)

var (
	errNotSwitched = errors.New("the upstream changed the protocol unasked, or to another one")
	errOver        = errors.New("the server is shutting down")
)

// checkUpgrade refuses an upgrade where none is offered, and a handshake of
// WebSocket that is malformed or, at an edge, made by a page of another site.
func (x *exchange) checkUpgrade() error {
	if !route.AsksUpgrade(x.r.Header) {
		return nil
	}
	if x.hop.WebSocket == nil {
		return route.NoUpgrade()
	}
	if err := route.CheckWebSocket(x.r); err != nil {
		return err
	}
	if x.site.End == call.Edge {
		own := route.Origin(secure(x.conn), x.r.Host)
		if err := route.CheckOrigin(x.r.Header, x.hop.WebSocket.Origins, own); err != nil {
			return err
		}
	}
	x.upgrade = true
	return nil
}

// tunnel hands a connection whose upgrade the upstream agreed to over to the
// relay, for as long as it lasts. The call's outcome is that of the connection.
func (x *exchange) tunnel(resp *http.Response, fromMesh bool) {
	up := x.upstream.get()
	if !x.upgrade || up == nil || !route.Switched(resp.Header, route.WebSocketKey(x.r.Header)) {
		x.fail(errNotSwitched)
		return
	}
	s := x.server
	if !s.tunnels.TryRLock() {
		x.fail(errOver)
		return
	}
	defer s.tunnels.RUnlock()
	// net/http stops to count the connection as one of its own.
	s.conns.Add(1)
	defer s.conns.Add(-1)
	down, ahead, err := x.control.Hijack()
	if err != nil {
		x.fail(err)
		return
	}
	if p, ok := up.(*patient); ok {
		up = p.Conn // the relay has a limit of its own
	}
	body, _ := resp.Body.(io.Reader)
	near, far := &spliced{Conn: down, in: ahead}, &spliced{Conn: up, in: body}
	if err := x.switchProtocols(down, resp.Header, fromMesh); err != nil {
		x.finish(route.ClientClosed, 0)
		mtls.Abort(near)
		mtls.Abort(far)
		return
	}
	s.cfg.Joiner.Join(s.ctx, near, far, func(in, out int64, code string) {
		x.in, x.out = in, out
		x.finish(code, http.StatusSwitchingProtocols)
	})
}

// switchProtocols writes the response that ends HTTP on the connection.
func (x *exchange) switchProtocols(down net.Conn, header http.Header, fromMesh bool) error {
	h := http.Header{}
	route.CleanResponse(h, header, fromMesh)
	delete(h, "Content-Length") // RFC 9110 section 8.6
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	var head bytes.Buffer
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	if err := h.Write(&head); err != nil {
		return err
	}
	head.WriteString("\r\n")
	if err := down.SetWriteDeadline(x.server.cfg.Clock.Now().Add(stall)); err != nil {
		return err
	}
	_, err := down.Write(head.Bytes())
	return err
}

// A spliced connection is read through what may have read ahead of it.
type spliced struct {
	net.Conn
	in io.Reader
}

// Read implements net.Conn.
func (s *spliced) Read(p []byte) (int, error) { return s.in.Read(p) }

// NetConn is what lies below, for package mtls.
func (s *spliced) NetConn() net.Conn { return s.Conn }

// CloseWrite ends one direction.
func (s *spliced) CloseWrite() error {
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return s.Conn.Close()
}
