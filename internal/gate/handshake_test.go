package gate_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/identity"
)

// TestHandshakeReasonsOfRealHandshakes takes the errors from crypto/tls itself:
// for some it has only sentences, which may change with a Go release.
func TestHandshakeReasonsOfRealHandshakes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for name, tt := range map[string]struct {
		err    error
		reason string
	}{
		"plaintext":      {handshakeError(t, func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") }), gate.ReasonPlaintext},
		"no certificate": {handshakeError(t, func(c net.Conn) { clientHandshake(c, tls.VersionTLS13) }), gate.ReasonNoCertificate},
		"TLS 1.2":        {handshakeError(t, func(c net.Conn) { clientHandshake(c, tls.VersionTLS12) }), gate.ReasonTLSVersion},
		"slow":           {fmt.Errorf("read: %w", os.ErrDeadlineExceeded), gate.ReasonSlowHandshake},
		"two URIs":       {fmt.Errorf("peer: %w", identity.ErrURICount), gate.ReasonMalformedSVID},
		"foreign CA":     {fmt.Errorf("peer: %w", identity.ErrChain), "chain_untrusted"},
		"other":          {errors.New("reset"), gate.CodeHandshakeRefused},
	} {
		r := &call.Request{End: call.Inbound, Protocol: call.HTTP, Listener: "orders.inbound", Local: "orders", Start: start}
		if v := f.Refuse(r, gate.CodeHandshakeRefused, tt.err); v.Reason != tt.reason || v.ID == "" {
			t.Errorf("%s: reason %q of %q, want %q", name, v.Reason, tt.err, tt.reason)
		}
	}
}

// handshakeError is what a listener that wants a certificate says of a client.
func handshakeError(t *testing.T, client func(net.Conn)) error {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		defer theirs.Close()
		client(theirs)
	}()
	server := tls.Server(ours, serverConfig(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}))
	err = server.HandshakeContext(t.Context())
	if err == nil {
		t.Fatal("the handshake succeeded")
	}
	return err
}

func serverConfig(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert}
}

func clientHandshake(c net.Conn, version uint16) {
	client := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, MaxVersion: version})
	if client.Handshake() == nil {
		_, _ = client.Read(make([]byte, 1)) // the refusal comes with the first read
	}
}
