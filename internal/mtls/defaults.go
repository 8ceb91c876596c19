package mtls

import (
	"crypto/tls"
	"time"
)

// Application protocols (RFC 7301; RFC 9112, RFC 9113 section 3.2).
const (
	HTTP1 = "http/1.1"
	HTTP2 = "h2"
	// Fleet is what servers and agents speak, Join how a host becomes one.
	Fleet = "parley-fleet/1"
	Join  = "parley-join/1"
)

// Limits of connections where a caller states none.
const (
	// HandshakeTimeout is the time from accepting a connection to its first
	// application byte being welcome.
	HandshakeTimeout = 10 * time.Second
	// DialTimeout is the time to connect and shake hands as a client.
	DialTimeout = 5 * time.Second
	// MaxHandshakes is how many handshakes a listener has under way at once.
	MaxHandshakes = 512
)

// The key exchanges are those of crypto/tls, hybrid post-quantum ones first:
// CurvePreferences stays empty so that the list grows with the Go release. The
// cipher suites of TLS 1.3 are all AEAD and not configurable.

// edgeCiphers are the suites of TLS 1.2 with ECDHE and an AEAD, every other one
// being open to passive decryption by a stolen key or to padding oracles. Go's
// own default still offers CBC.
func edgeCiphers() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}
