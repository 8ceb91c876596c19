package mtls

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/parleymesh/parley/internal/clock"
)

// Web is the configuration of a client of servers outside of the mesh: TLS 1.3, or
// 1.2 with ECDHE and an AEAD, and no certificate of ours. The server's certificate
// is verified for the name that was dialled, against roots, or against those of
// the host where roots is nil.
func Web(roots *x509.CertPool, clk clock.Clock) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		CipherSuites: edgeCiphers(),
		RootCAs:      roots,
		Time:         clk.Now,
		NextProtos:   []string{HTTP1},
	}
}
