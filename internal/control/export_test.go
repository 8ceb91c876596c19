package control

import (
	"context"
	"net"
	"net/http"
	"time"
)

// AsPeer makes every request of h one of uid.
func AsPeer(h http.Handler, uid int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(withPeer(r.Context(), peer{uid: uid, pid: 42, name: "ana"})))
	})
}

// SetUID makes s one that runs as uid.
func (s *Server) SetUID(uid int) { s.uid = uid }

// ConnContext is what a connection's context gets.
func (s *Server) ConnContext(ctx context.Context, c net.Conn) context.Context {
	return s.connContext(ctx, c)
}

// Needed is the role that each operation needs.
var Needed = needed

// Peer is the uid in ctx.
func Peer(ctx context.Context) (uid int, ok bool) {
	p, ok := peerFrom(ctx)
	return p.uid, ok
}

// Hold keeps everybody else from changing the desired state.
func (s *Server) Hold() { s.changing <- struct{}{} }

// SetReadTimeout bounds how long a request may take to arrive.
func (s *Server) SetReadTimeout(d time.Duration) { s.http.ReadTimeout = d }

// EventPage is one page of events.
var EventPage = eventPage

// Release ends what Hold began.
func (s *Server) Release() { <-s.changing }
