package parley

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
)

// A Caller is who is on the other side of a connection, by the certificate that
// was verified.
type Caller struct {
	// ID is the SPIFFE ID: "spiffe://shop.example/web".
	ID string
	// Service is the name of a service of this process's own trust domain
	// ("web"), and empty for a caller of another.
	Service string
	// Serial is the certificate's serial number in lower-case hexadecimal.
	Serial string
	// Origin is whom the gateway let in that calls. It is nil where the caller is no
	// gateway, and where its route is public.
	Origin *Origin
}

type callerKey struct{}

// CallerFrom is the caller of a request that came through Handler; ctx is the
// request's context.
func CallerFrom(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// CallerOf is the caller of a connection that Listen yielded. It is false for
// any other connection, and where the caller's certificate has ended since.
func (w *Workload) CallerOf(c net.Conn) (Caller, bool) {
	r := w.running.Load()
	t, ok := c.(*tls.Conn)
	if r == nil || !ok {
		return Caller{}, false
	}
	cs := t.ConnectionState()
	id, err := r.peers.verify(r, cs)
	if err != nil || !r.allow[id] {
		return Caller{}, false
	}
	return r.caller(id, cs), true
}

// caller is who id is, cs being verified as id's.
func (r *running) caller(id identity.ID, cs tls.ConnectionState) Caller {
	c := Caller{ID: id.String(), Serial: identity.Serial(cs.PeerCertificates[0])}
	if id.TrustDomain() == r.id().TrustDomain() {
		c.Service = id.Name()
	}
	return c
}

// maxVerified bounds the leaves whose verification is remembered.
const maxVerified = 1024

// verified remembers which leaves were found good under the present trust, so
// that a connection is verified in full once and not at each request. It takes no
// listener's word: a request may have come in by another one than ours.
type verified struct {
	mu    sync.Mutex // guards what follows
	trust *identity.Trust
	ids   map[*x509.Certificate]identity.ID
}

// verify is the identity behind a connection, now.
func (v *verified) verify(r *running, cs tls.ConnectionState) (identity.ID, error) {
	trust := r.src.Trust()
	switch {
	case trust == nil:
		return identity.ID{}, mtls.ErrNoTrust
	case len(cs.PeerCertificates) == 0:
		return identity.ID{}, mtls.ErrNoCertificate
	case cs.Version < tls.VersionTLS13:
		return identity.ID{}, mtls.ErrVersion
	}
	leaf, now := cs.PeerCertificates[0], r.clk.Now()
	if id, ok := v.known(trust, leaf); ok {
		if now.After(leaf.NotAfter) {
			return id, fmt.Errorf("%s ended %s: %w", id, leaf.NotAfter.UTC().Format(time.RFC3339), identity.ErrExpired)
		}
		return id, nil
	}
	id, err := trust.Verify(cs.PeerCertificates, now)
	if err == nil {
		v.keep(trust, leaf, id)
	}
	return id, err
}

func (v *verified) known(trust *identity.Trust, leaf *x509.Certificate) (identity.ID, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	id, ok := v.ids[leaf]
	return id, ok && v.trust == trust
}

func (v *verified) keep(trust *identity.Trust, leaf *x509.Certificate, id identity.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.trust != trust || len(v.ids) >= maxVerified {
		v.trust, v.ids = trust, map[*x509.Certificate]identity.ID{}
	}
	v.ids[leaf] = id
}

// code is the reason that a refused caller is told.
func code(err error) string {
	switch {
	case err == nil:
		return "call_not_allowed"
	case errors.Is(err, mtls.ErrNoCertificate):
		return "credentials_required"
	case errors.Is(err, identity.ErrExpired):
		return "credential_expired"
	case errors.Is(err, mtls.ErrNoTrust):
		return "not_ready"
	}
	return "credentials_invalid"
}
