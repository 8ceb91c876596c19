package mtls

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
)

// Edge is the configuration of a listener that the outside world calls: TLS 1.3,
// or 1.2 with ECDHE and an AEAD, and no client certificate. cert is asked at
// each handshake; where it fails, so does the handshake.
func Edge(cert func() (*tls.Certificate, error), alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   edgeCiphers(),
		NextProtos:     alpn,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert() },
	}
}

// fileCheck is how often certificate files are looked at again.
const fileCheck = 5 * time.Second

// Files are a certificate and its key on disk, read again when either changes.
// It is safe for concurrent use.
type Files struct {
	certFile, keyFile string
	clk               clock.Clock

	mu      sync.Mutex // guards what follows
	cert    *tls.Certificate
	stamp   [2]stamp
	checked time.Time
}

type stamp struct {
	size    int64
	changed time.Time
}

// OpenFiles reads PEM files. The error is a *fault.Fault.
func OpenFiles(certFile, keyFile string, clk clock.Clock) (*Files, error) {
	f := &Files{certFile: certFile, keyFile: keyFile, clk: clk, checked: clk.Now()}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// Certificate is the newest pair that could be read. Files that were replaced
// by something unusable leave the last good pair in place.
func (f *Files) Certificate() (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.clk.Now(); now.Sub(f.checked) >= fileCheck {
		f.checked = now
		if s, err := f.stat(); err == nil && s != f.stamp {
			_ = f.load() // half-written files settle by the next look
		}
	}
	return f.cert, nil
}

// load requires f.mu, or that nobody else has f.
func (f *Files) load() error {
	// The stamp is taken before the contents: a change in between is then seen
	// at the next look.
	s, err := f.stat()
	if err != nil {
		return fault.Wrap(err, fault.KeyUnreadable, "check the path and who may read it", "cannot read the edge certificate")
	}
	cert, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
	if err != nil {
		if os.IsPermission(err) {
			return fault.Wrap(err, fault.KeyUnreadable, "let the agent's user read "+f.keyFile, "cannot read the edge certificate")
		}
		return fault.Wrap(err, fault.CertUnusable, "compare the files: openssl x509 -noout -pubkey -in "+f.certFile, "cannot use the edge certificate %s", f.certFile)
	}
	f.cert, f.stamp = &cert, s
	return nil
}

func (f *Files) stat() (s [2]stamp, err error) {
	for i, name := range []string{f.certFile, f.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return s, fmt.Errorf("look at the certificate: %w", err)
		}
		s[i] = stamp{info.Size(), info.ModTime()}
	}
	return s, nil
}
