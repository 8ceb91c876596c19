package mtls

import (
	"crypto/tls"
	"encoding/hex"
	"net"
	"strings"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
)

// exporterLabel makes call.TLS.Connection (RFC 8446 section 7.5).
const exporterLabel = "EXPORTER-parley-connection"

// Facts are the peer and the protection of a connection. After a completed
// handshake of a mesh connection the peer's ID is verified; for one that was
// refused it is what the certificate claims.
func Facts(cs tls.ConnectionState) (call.Peer, call.TLS) {
	var peer call.Peer
	if len(cs.PeerCertificates) > 0 {
		leaf := cs.PeerCertificates[0]
		id, err := identity.LeafID(leaf)
		if err != nil {
			id = identity.ID{}
		}
		peer = call.Peer{ID: id, Serial: identity.Serial(leaf), Fingerprint: identity.Fingerprint(leaf), NotAfter: leaf.NotAfter, Leaf: leaf}
	}
	if !cs.HandshakeComplete {
		return peer, call.TLS{}
	}
	facts := call.TLS{
		Version: strings.TrimPrefix(tls.VersionName(cs.Version), "TLS "),
		Cipher:  tls.CipherSuiteName(cs.CipherSuite),
		ALPN:    cs.NegotiatedProtocol,
		Resumed: cs.DidResume,
	}
	if cs.CurveID != 0 {
		facts.Group = cs.CurveID.String()
	}
	// TLS 1.2 without the extended master secret exports nothing (RFC 7627
	// section 5.4): the field stays empty.
	if key, err := cs.ExportKeyingMaterial(exporterLabel, nil, 16); err == nil {
		facts.Connection = hex.EncodeToString(key)
	}
	return peer, facts
}

// ConnFacts is Facts for a connection of this package's Listener or Dialer,
// computed once a connection; for any other *tls.Conn it computes them, and for
// another connection both are zero.
func ConnFacts(c net.Conn) (call.Peer, call.TLS) {
	if w := unwrap(c); w != nil {
		return w.peer, w.tls
	}
	if t, ok := c.(*tls.Conn); ok {
		return Facts(t.ConnectionState())
	}
	return call.Peer{}, call.TLS{}
}
