package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// backdate is how far NotBefore lies in the past, so that a verifier whose clock
// is a little behind is served. Certificates count whole seconds: cut down, this
// is at most 30 s.
const backdate = 29 * time.Second

// makeRoot signs a root with its own key. It has no path length, so that a
// later root can be cross-signed.
func (a *Authority) makeRoot(key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	now := a.cfg.Clock.Now()
	t, err := a.signerTemplate(key.Public())
	if err != nil {
		return nil, err
	}
	t.NotBefore, t.NotAfter = now.Add(-backdate), now.Add(a.cfg.RootTTL)
	return a.signSigner(t, t, key.Public(), key)
}

// renewIntermediate makes an intermediate where there is none or less than half
// of its life is left. The caller holds mu or is alone.
func (a *Authority) renewIntermediate() error {
	now := a.cfg.Clock.Now()
	if is := a.issuing.Load(); is != nil {
		if err := a.checkClock(a.root, now); err != nil {
			return err
		}
		if now.Before(is.cert.NotBefore) {
			return a.checkClock(is.cert, now)
		}
		if !halfGone(is.cert, now) {
			return nil
		}
	}
	is, err := a.makeIntermediate(now)
	if err != nil {
		return err
	}
	if err := a.storeIntermediate(is); err != nil {
		return err
	}
	a.issuing.Store(is)
	a.made(is.cert, "intermediate made")
	return nil
}

// makeIntermediate is the only place that opens the root key.
func (a *Authority) makeIntermediate(now time.Time) (*issuer, error) {
	rootKey, err := a.openKey(rootKeyFile, rootPurpose)
	if err != nil {
		return nil, err
	}
	if !rootKey.PublicKey.Equal(a.root.PublicKey) {
		return nil, a.corrupt(rootKeyFile)
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	t, err := a.signerTemplate(key.Public())
	if err != nil {
		return nil, err
	}
	t.MaxPathLenZero = true
	t.NotBefore = later(now.Add(-backdate), a.root.NotBefore)
	t.NotAfter = earlier(now.Add(a.cfg.IntermediateTTL), a.root.NotAfter)
	cert, err := a.signSigner(t, a.root, key.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	return &issuer{cert, key}, nil
}

// current is the intermediate to sign with at now. One that is past its half is
// replaced here, so that a server which never restarts does not run out; while
// that fails, the old one serves until it ends.
func (a *Authority) current(now time.Time) (*issuer, error) {
	is := a.issuing.Load()
	if halfGone(is.cert, now) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !now.Before(a.notUntil) {
			if err := a.renewIntermediate(); err != nil {
				a.notUntil = now.Add(retry)
				a.cfg.Logger.Error("intermediate not replaced", "error", err, "ends", is.cert.NotAfter)
			}
		}
		is = a.issuing.Load()
	}
	return is, a.checkClock(is.cert, now)
}

// signerTemplate is what root and intermediate have in common. The name is made
// of the key's identifier: two signers of one name would be two candidates for
// every path.
func (a *Authority) signerTemplate(pub crypto.PublicKey) (*x509.Certificate, error) {
	ski, err := keyIdentifier(pub)
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"Parley"}, SerialNumber: hex.EncodeToString(ski)},
		URIs:                  []*url.URL{uri(a.cfg.TrustDomain.ID())},
		SubjectKeyId:          ski,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil
}

// signSigner signs and then checks what was made as any verifier would.
func (a *Authority) signSigner(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign a signing certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sign a signing certificate: %w", err)
	}
	if parent == t {
		parent = cert
	}
	if err := cert.CheckSignatureFrom(parent); err != nil {
		return nil, fmt.Errorf("sign a signing certificate: %w", err)
	}
	if err := identity.CheckSigner(cert, a.cfg.TrustDomain); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "the authority made a signing certificate that it may not use")
	}
	return cert, nil
}

func (a *Authority) made(cert *x509.Certificate, message string) {
	a.cfg.Logger.Info(message, "trust_domain", a.cfg.TrustDomain.String(), "serial", identity.Serial(cert), "ends", cert.NotAfter)
	if a.cfg.Made != nil {
		a.cfg.Made(cert)
	}
}

// halfGone says that less than half of cert's life is left at now.
func halfGone(cert *x509.Certificate, now time.Time) bool {
	return cert.NotAfter.Sub(now) < cert.NotAfter.Sub(cert.NotBefore)/2
}

// newSerial is 128 random bits, well within the 20 bytes of RFC 5280 section
// 4.1.2.2, never zero.
func newSerial() *big.Int {
	b := make([]byte, 16)
	for {
		rand.Read(b) // never fails (crypto/rand)
		if n := new(big.Int).SetBytes(b); n.Sign() > 0 {
			return n
		}
	}
}

// keyIdentifier is RFC 7093 section 2 method 1: the leftmost 160 bits of the
// SHA-256 of the public key's bits.
func keyIdentifier(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("key identifier: %w", err)
	}
	bits, err := publicKeyBits(der)
	if err != nil {
		return nil, fmt.Errorf("key identifier: %w", err)
	}
	sum := sha256.Sum256(bits)
	return sum[:20], nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
