package parley

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
)

// Listen is net.Listen with mutual TLS: Accept yields connections (*tls.Conn,
// handshake complete) of callers that Allow names, and closes all others.
func (w *Workload) Listen(network, address string) (net.Listener, error) {
	source, err := w.started()
	if err != nil {
		return nil, err
	}
	inner, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	log := w.logger()
	l := &listener{workload: w, Listener: mtls.NewListener(inner, mtls.Server(source, clock.System{}, "h2", "http/1.1"), mtls.ListenerConfig{
		Clock: clock.System{},
		Refused: func(remote netip.AddrPort, err error, peer call.Peer) {
			log.Warn("handshake refused", "remote", remote.String(), "claimed", peer.ID.String(), "error", err.Error())
		},
	})}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		l.Listener.Close()
		return nil, ErrClosed
	}
	w.open[l] = struct{}{}
	return l, nil
}

// listener lets only those callers in that the workload allows.
type listener struct {
	net.Listener
	workload *Workload
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, _ := mtls.ConnFacts(c)
		if l.workload.allows(peer.ID) {
			return c, nil
		}
		l.workload.logger().Warn("caller not allowed", "caller", peer.ID.String(), "remote", c.RemoteAddr().String())
		c.Close()
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.workload.mu.Lock()
	delete(l.workload.open, l)
	l.workload.mu.Unlock()
	return l.Listener.Close()
}

func (w *Workload) allows(id identity.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.allowed[id]
}

// A Caller is who made a request, as its certificate proves.
type Caller struct {
	// ID is the whole SPIFFE ID.
	ID string
	// Service is the ID's path without the leading slash: the service's name.
	Service string
	// Serial is of the certificate, in lower-case hexadecimal.
	Serial string
}

type callerKey struct{}

// CallerFrom is the caller of the request that ctx belongs to; false where the
// request did not come through a Handler.
func CallerFrom(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// Handler lets requests through to next whose TLS client certificate verifies
// now and names a caller that Allow names; CallerFrom then says who it is. All
// others are answered 403 (RFC 9457). It trusts nothing but the certificates of
// the request's own connection, so it is safe behind any http.Server, and
// refuses everything behind one without TLS.
func (w *Workload) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, err := w.caller(r)
		if err != nil {
			w.logger().Warn("request refused", "remote", r.RemoteAddr, "caller", c.ID, "error", err.Error())
			forbid(rw)
			return
		}
		next.ServeHTTP(rw, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

func (w *Workload) caller(r *http.Request) (Caller, error) {
	source, err := w.started()
	if err != nil {
		return Caller{}, err
	}
	if r.TLS == nil {
		return Caller{}, identity.ErrNoCredential
	}
	id, err := source.Trust().Verify(r.TLS.PeerCertificates, clock.System{}.Now())
	c := Caller{ID: id.String(), Service: id.Name()}
	if err != nil {
		return c, err
	}
	if !w.allows(id) {
		return c, errNotAllowed
	}
	c.Serial = identity.Serial(r.TLS.PeerCertificates[0])
	return c, nil
}

// forbid answers without a word about who else may.
func forbid(rw http.ResponseWriter) {
	rw.Header().Set("Content-Type", "application/problem+json")
	rw.Header().Set("Cache-Control", "no-store")
	rw.WriteHeader(http.StatusForbidden)
	_ = json.NewEncoder(rw).Encode(map[string]any{ // the client went away
		"type": "urn:parley:problem:call_not_allowed", "title": "This call is not allowed", "status": http.StatusForbidden, "code": "call_not_allowed",
	})
}
