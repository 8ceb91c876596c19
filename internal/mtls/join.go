package mtls

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// ErrPin says that a server's chain does not end in the root that was pinned.
var ErrPin = errors.New("the server's root is not the one that the join token names")

// A Pin is the SHA-256 of a root's public key (its SubjectPublicKeyInfo).
type Pin [sha256.Size]byte

// PinOf is the pin of a root.
func PinOf(root *x509.Certificate) Pin { return sha256.Sum256(root.RawSubjectPublicKeyInfo) }

// Control is the configuration of a server's listener, whose three kinds of client
// are told apart by what they ask to speak (RFC 7301): agents (Fleet) and
// administrators (HTTP2, HTTP1) prove an identity, as with Server; a host that has
// none yet (Join) proves nothing here, and its connection is good for joining only.
// To the last the chain is shown with root, by which it knows its server.
func Control(src identity.Source, root *x509.Certificate, clk clock.Clock) *tls.Config {
	full := Server(src, clk, Fleet, HTTP1)
	join := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{Join},
		Time:                   clk.Now,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := current(src, clk.Now())
			if err != nil {
				return nil, err
			}
			cert := *c.Certificate()
			cert.Certificate = append(append([][]byte(nil), cert.Certificate...), root.Raw)
			return &cert, nil
		},
	}
	outer := full.Clone()
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == Join {
			return join, nil
		}
		return full, nil
	}
	return outer
}

// Joining is the configuration of a host that joins: it knows nothing but the pin
// of the trust domain's root and whom it calls. The chain must hold that root, and
// lead to it. learned is given the root once the server is verified; it is called
// within the handshake, once.
func Joining(pin Pin, server identity.ID, clk clock.Clock, learned func(root *x509.Certificate)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{Join},
		Time:       clk.Now,
		// Not a skip, as in Dialer: VerifyConnection judges the chain, by the pin.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			root, err := verifyPinned(cs, pin, server, clk)
			if err != nil {
				return &refusal{err: err}
			}
			learned(root)
			return nil
		},
	}
}

func verifyPinned(cs tls.ConnectionState, pin Pin, server identity.ID, clk clock.Clock) (*x509.Certificate, error) {
	n := len(cs.PeerCertificates)
	switch {
	case cs.Version < tls.VersionTLS13:
		return nil, ErrVersion
	case n < 2:
		return nil, ErrPin
	case cs.NegotiatedProtocol != Join:
		return nil, ErrUnexpectedPeer
	}
	root := cs.PeerCertificates[n-1]
	if found := PinOf(root); subtle.ConstantTimeCompare(found[:], pin[:]) != 1 {
		return nil, ErrPin
	}
	td := server.TrustDomain()
	trust := &identity.Trust{
		Bundles: map[identity.TrustDomain]*identity.Bundle{td: {TrustDomain: td, Roots: []*x509.Certificate{root}}},
		Members: map[identity.ID]bool{server: true},
	}
	_, err := trust.Verify(cs.PeerCertificates[:n-1], clk.Now())
	return root, err
}
