// Package mtls builds every tls.Config that the product serves or calls with:
// servers and clients of the mesh, which prove a SPIFFE identity to each other by
// TLS 1.3, the edge, which only proves its own, and clients of the world outside,
// which prove none. Only the demo's clients, which play strangers and attackers
// (package dev), and `parley cert inspect`, which looks at what anybody presents,
// have others; layout_test.go holds that. It also holds what belongs to a
// connection and to no protocol: the listener that yields connections after their
// handshake, the dialer that keeps sessions, and the register of open connections
// that a withdrawn identity is cut off by.
//
// The peer is verified in VerifyConnection, by identity.Trust.Verify, on full
// and on resumed handshakes alike: crypto/tls does not call VerifyPeerCertificate
// for a resumed session, and does not look at the roots again under
// RequireAnyClientCert.
//
// It refuses to decide what a verified peer may do, and to skip verification
// for any reason.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// Errors of a handshake, beside those of identity.
var (
	ErrNoCertificate  = errors.New("the peer presented no certificate")
	ErrNoTrust        = errors.New("nothing is trusted yet")
	ErrUnexpectedPeer = errors.New("the peer is another service than the one that was called")
	ErrVersion        = errors.New("the connection is not TLS 1.3")
)

// Server is the configuration of a listener that workloads call. Credential and
// trust come from src at each handshake, so renewal and a change of trust need
// no new configuration; the time comes from clk. alpn are the application
// protocols in order of preference; with none, the peer's are ignored.
//
// A ticket resumes a session only under the trust epoch and the server's leaf
// that it was issued under, and only while the client's leaf lasts; any other
// ticket is declined without an error, and a full handshake follows.
func Server(src identity.Source, clk clock.Clock, alpn ...string) *tls.Config {
	return server(src, clk, (*identity.Trust).Verify, alpn)
}

// Inbound is Server for a sidecar's inbound, which also takes the probes of `parley
// verify`: a client that offers call.Probe, and nothing of alpn counts then, has to show a
// certificate for probes, which is of no use anywhere else. Whoever serves such a
// connection answers it by itself (see call.TLS.ALPN).
func Inbound(src identity.Source, clk clock.Clock, alpn ...string) *tls.Config {
	cfg := Server(src, clk, alpn...)
	// A configuration of its own, with ticket keys of its own: no session of a probe
	// is resumed as anything else.
	probes := server(src, clk, (*identity.Trust).VerifyProbe, []string{call.Probe})
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, call.Probe) {
			return probes, nil
		}
		return nil, nil
	}
	return cfg
}

// A verifier makes an identity of a chain, or refuses it.
type verifier func(*identity.Trust, []*x509.Certificate, time.Time) (identity.ID, error)

func server(src identity.Source, clk clock.Clock, by verifier, alpn []string) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: alpn,
		Time:       clk.Now,
		// Any certificate at all, because VerifyConnection verifies it: the
		// standard library knows neither SPIFFE nor bundles by trust domain.
		ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := current(src, clk.Now())
			if err != nil {
				return nil, err
			}
			return c.Certificate(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := verify(src, cs, clk.Now(), by)
			return err
		},
	}
	bindTickets(cfg, src, clk)
	return cfg
}

// verify is the one judgement of a peer, for both sides.
func verify(src identity.Source, cs tls.ConnectionState, now time.Time, by verifier) (identity.ID, error) {
	trust := src.Trust()
	switch {
	case trust == nil:
		return identity.ID{}, ErrNoTrust
	case cs.Version < tls.VersionTLS13:
		return identity.ID{}, ErrVersion
	case len(cs.PeerCertificates) == 0:
		return identity.ID{}, ErrNoCertificate
	}
	return by(trust, cs.PeerCertificates, now)
}

// current is src's credential while it lasts. An expired one is not presented:
// every peer would refuse it, and the reason would stand in the peer's log only.
func current(src identity.Source, now time.Time) (*identity.Credential, error) {
	c, err := src.Credential()
	if err != nil {
		return nil, fmt.Errorf("own credential: %w", err)
	}
	if now.After(c.NotAfter()) {
		return nil, fmt.Errorf("own credential of %s ended %s: %w", c.ID, c.NotAfter().UTC().Format(time.RFC3339), identity.ErrExpired)
	}
	return c, nil
}
