package dev

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/mtls"
)

// Where the shop's issuer is, for development and tests only: it serves its
// metadata and its one public key on loopback, and signs nothing by itself. Tokens
// are made by whoever may read the data directory, with `parley dev token`.
const (
	issuerKey     = "issuer.key"   // sealed
	issuerCert    = "issuer.pem"   // what its clients have to trust
	issuerPurpose = "dev issuer 1" // of the sealing
)

// Claims of a token for the shop, where nothing else is said.
const (
	ShopAudience = "shop"
	ShopSubject  = "alice"
	shopClient   = "parley-dev"
)

// TokenTTL is how long a token for development lives, MaxTokenTTL the longest.
const (
	TokenTTL    = 5 * time.Minute
	MaxTokenTTL = 24 * time.Hour
)

// A signer is what makes tokens of the shop's issuer.
type signer struct {
	URL string `json:"url"`
	Key []byte `json:"key"` // of ECDSA P-256, SEC 1

	key *ecdsa.PrivateKey
	kid string
}

// newSigner is the signer of the data directory for an issuer at url, with the key
// of the last start if there was one.
func newSigner(dir, url string) (*signer, error) {
	s, err := openSigner(dir)
	if errors.Is(err, fs.ErrNotExist) {
		s = &signer{}
		s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, err
	}
	s.URL = url
	if s.Key, err = x509.MarshalECPrivateKey(s.key); err != nil {
		return nil, err
	}
	if s.kid, err = jose.KeyID(s.key.Public()); err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	master, _, err := keys.OpenMaster(filepath.Join(dir, "master.key"))
	if err != nil {
		return nil, err
	}
	return s, master.Seal(filepath.Join(dir, issuerKey), issuerPurpose, text)
}

// openSigner opens what newSigner sealed.
func openSigner(dir string) (*signer, error) {
	master, created, err := keys.OpenMaster(filepath.Join(dir, "master.key"))
	if err != nil {
		return nil, err
	}
	if created {
		return nil, fs.ErrNotExist
	}
	text, err := master.Open(filepath.Join(dir, issuerKey), issuerPurpose)
	if err != nil {
		return nil, err
	}
	s := &signer{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("the issuer's key: %w", err)
	}
	if s.key, err = x509.ParseECPrivateKey(s.Key); err != nil {
		return nil, fmt.Errorf("the issuer's key: %w", err)
	}
	s.kid, err = jose.KeyID(s.key.Public())
	return s, err
}

// sign makes an access token (RFC 9068).
func (s *signer) sign(t identity.Token, now time.Time) (string, error) {
	t.Issuer, t.ClientID = s.URL, shopClient
	return jose.SignAccess(s.key, s.kid, t, now)
}

// Token makes an access token of the issuer that keeps its key in dir: for
// Subject, Audiences and Scopes of t, good for ttl.
func Token(dir string, t identity.Token, ttl time.Duration, clk clock.Clock) (string, error) {
	if _, err := os.Lstat(filepath.Join(dir, issuerKey)); errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.NotFound, "start the shop first, which makes one: parley dev", "there is no issuer of tokens in %s", dir)
	}
	s, err := openSigner(dir)
	if err != nil {
		return "", err
	}
	now := clk.Now()
	t.Expires = now.Add(ttl)
	return s.sign(t, now)
}

// startIssuer serves the issuer's metadata and key on loopback.
func (m *Mesh) startIssuer(ctx context.Context) error {
	s, err := newSigner(m.Dir, m.IssuerURL())
	if err != nil {
		return err
	}
	cert, err := selfSigned(filepath.Join(m.Dir, issuerCert))
	if err != nil {
		return err
	}
	set, err := jose.MarshalKey(s.kid, &s.key.PublicKey)
	if err != nil {
		return err
	}
	metadata, err := json.Marshal(map[string]any{
		"issuer": s.URL, "jwks_uri": s.URL + "/jwks", "response_types_supported": []string{},
		"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", serveJSON(metadata))
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", serveJSON(metadata))
	mux.HandleFunc("GET /jwks", serveJSON(set))
	addr := fmt.Sprintf("127.0.0.1:%d", m.Base+offIssuer)
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fault.Wrap(err, fault.PortOccupied, "see who it is: ss -tlnp", "another process listens on %s", addr)
	}
	config := mtls.Edge(func() (*tls.Certificate, error) { return cert, nil }, mtls.HTTP1)
	m.signer, m.issuer = s, &http.Server{Handler: mux, ReadHeaderTimeout: callTimeout, ErrorLog: log.New(io.Discard, "", 0)}
	front := mtls.NewListener(l, config, mtls.ListenerConfig{Clock: m.clock})
	go func() { _ = m.issuer.Serve(front) }() // ends with Stop
	return nil
}

func serveJSON(body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body) // the client went away
	}
}

// selfSigned is a certificate for loopback that is new at each start, and written
// to path for those who are to trust it.
func selfSigned(path string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// The window is wide so that no clock has to be asked: nobody but this start
	// has the key.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), BasicConstraintsValid: true, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if err := keys.Write(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})); err != nil {
		return nil, fault.Wrap(err, fault.DirUnusable, "", "%s cannot be written", path)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// IssuerURL is the shop's issuer of tokens, as it stands in iss.
func (m *Mesh) IssuerURL() string { return fmt.Sprintf("https://localhost:%d", m.Base+offIssuer) }

// shopToken is a token for the tour; forged is signed by a key that is not the
// issuer's and is called by its name.
func (m *Mesh) shopToken(audience, scope string, forged bool) (string, error) {
	s := *m.signer
	if forged {
		var err error
		if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return "", err
		}
	}
	now := m.clock.Now()
	return s.sign(identity.Token{
		Subject: ShopSubject, Audiences: []string{audience}, Scopes: []string{scope}, Expires: now.Add(TokenTTL),
	}, now)
}
