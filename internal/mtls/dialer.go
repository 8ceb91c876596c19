package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// A Dialer opens connections to one expected identity. It is safe for
// concurrent use.
type Dialer struct {
	// Conns, where set, registers each connection until it is closed, under the
	// peer's identity and under our own. Set it before the first use.
	Conns *Conns

	src    identity.Source
	expect identity.ID
	clk    clock.Clock
	alpn   []string
	state  atomic.Pointer[clientState]
}

// clientState is a configuration with its sessions. Sessions are never taken
// from one credential or trust epoch to the next: a resumed connection is the
// old credential's.
type clientState struct {
	credential *identity.Credential
	epoch      uint64
	sessions   sessions
	config     *tls.Config
}

// NewDialer is a dialer whose connections are to expect and to nobody else. It
// presents src's credential and offers alpn.
func NewDialer(src identity.Source, expect identity.ID, clk clock.Clock, alpn ...string) *Dialer {
	return &Dialer{src: src, expect: expect, clk: clk, alpn: alpn}
}

// DialContext connects to addr and shakes hands, within DialTimeout. The peer
// may still refuse us: in TLS 1.3 a client has finished before the server
// judged its certificate, so that refusal comes with the first Read.
//
// A resumed session whose verification fails is tried once more in full, with
// every kept session forgotten: the server may have a good certificate by now.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	st, err := d.current()
	if err != nil {
		return nil, err
	}
	conn, err := d.dial(ctx, st, network, addr)
	var refused *refusal
	if errors.As(err, &refused) && refused.resumed {
		st.sessions.forget()
		conn, err = d.dial(ctx, st, network, addr)
	}
	return conn, err
}

func (d *Dialer) dial(ctx context.Context, st *clientState, network, addr string) (*tls.Conn, error) {
	var nd net.Dialer
	raw, err := nd.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w := &conn{Conn: raw}
	c := tls.Client(w, st.config)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("handshake with %s: %w", addr, err)
	}
	w.learn(c.ConnectionState())
	w.local = st.credential
	if d.Conns != nil {
		w.onClose(d.Conns.Track(c, w.peer.ID))
		w.onClose(d.Conns.Track(c, st.credential.ID))
		// Trust may have changed between the verification and the registration.
		if err := d.src.Trust().Admit(w.peer.ID); err != nil {
			Abort(c)
			return nil, &refusal{err: err}
		}
	}
	return c, nil
}

// current is the state for the present credential and trust. Two callers that
// find it stale at once build two; one is kept, the other serves one dial.
func (d *Dialer) current() (*clientState, error) {
	cred, err := current(d.src, d.clk.Now())
	if err != nil {
		return nil, err
	}
	trust := d.src.Trust()
	if trust == nil {
		return nil, ErrNoTrust
	}
	st := d.state.Load()
	if st != nil && st.credential == cred && st.epoch == trust.Epoch {
		return st, nil
	}
	st = &clientState{credential: cred, epoch: trust.Epoch}
	st.config = d.config(st)
	d.state.Store(st)
	return st, nil
}

func (d *Dialer) config(st *clientState) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         d.alpn,
		Time:               d.clk.Now,
		ClientSessionCache: &st.sessions,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return st.credential.Certificate(), nil
		},
		// Not a skip: it turns off the standard library's check of a DNS name
		// against the system's roots, which would be the wrong question.
		// VerifyConnection, which crypto/tls calls in every handshake whatever
		// this says, verifies the chain against the mesh's trust and wants the
		// one identity that was called.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return d.verify(cs)
		},
	}
}

func (d *Dialer) verify(cs tls.ConnectionState) error {
	id, err := verify(d.src, cs, d.clk.Now(), (*identity.Trust).Verify)
	if err == nil && id != d.expect {
		err = fmt.Errorf("%w: wanted %s, got %s", ErrUnexpectedPeer, d.expect, id)
	}
	if err != nil {
		return &refusal{err: err, resumed: cs.DidResume}
	}
	return nil
}

// A refusal is our own judgement of a server, and whether the session was a
// resumed one.
type refusal struct {
	err     error
	resumed bool
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// IsRefusal says that err is our own refusal of a server's certificate.
func IsRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

// ByPeer says that err is a TLS alert from the other side: for a client, most
// often that its certificate was refused.
func ByPeer(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// Own is the credential that was presented on a connection that a Dialer opened,
// nil for any other. A source may have a newer one by now.
func Own(c net.Conn) *identity.Credential {
	if w := unwrap(c); w != nil {
		return w.local
	}
	return nil
}

// Ends is the earlier end of the two leaves of a connection that a Dialer
// opened, zero for any other. Nothing new may be sent on it afterwards.
func Ends(c net.Conn) time.Time {
	w := unwrap(c)
	if w == nil || w.local == nil {
		return time.Time{}
	}
	if own := w.local.NotAfter(); own.Before(w.peer.NotAfter) {
		return own
	}
	return w.peer.NotAfter
}
