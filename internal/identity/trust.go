package identity

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Errors of Trust.
var (
	ErrUntrustedDomain = errors.New("no bundle for the trust domain")
	ErrBanned          = errors.New("the identity is banned")
	ErrNotMember       = errors.New("the identity is not in the mesh")
	ErrChain           = errors.New("the certificate chain does not lead to a trusted root")
	ErrExpired         = errors.New("the certificate has expired")
	ErrNotYetValid     = errors.New("the certificate is not valid yet")
	ErrChainTooLong    = errors.New("the certificate chain is too long")
)

// maxChain bounds the certificates that a peer may present.
const maxChain = 6

// A Bundle is what one trust domain trusts: roots for X509-SVIDs and keys for
// JWT-SVIDs. An empty bundle trusts nothing. It is immutable.
type Bundle struct {
	TrustDomain TrustDomain
	// Roots sign the trust domain's X509-SVIDs.
	Roots []*x509.Certificate
	// JWTKeys verify its JWT-SVIDs, by key id.
	JWTKeys map[string]crypto.PublicKey
	// Sequence grows with every change (SPIFFE_Trust_Domain_and_Bundle.md 4.1.1).
	Sequence uint64
}

// Trust is the bundles, the members and the bans as one immutable value with an
// epoch: whoever holds one decides by one state of the world.
type Trust struct {
	// Epoch grows with every change of content within one process; a TLS ticket
	// of another epoch is declined.
	Epoch uint64
	// Bundles by trust domain; never merged.
	Bundles map[TrustDomain]*Bundle
	// Members are the identities that the mesh file names; nobody else
	// completes a handshake, whatever certificate it holds.
	Members map[ID]bool
	// AnyMember admits whomever a bundle vouches for, and so leaves Members
	// unread: for a process that is not told who the members are and decides
	// about each caller itself, which is the SDK.
	AnyMember bool
	// Banned identities are refused even where they are members.
	Banned map[ID]bool
}

// Admit says whether id may take part at all; policy comes after.
func (t *Trust) Admit(id ID) error {
	switch {
	case t.Banned[id]:
		return fmt.Errorf("%s: %w", id, ErrBanned)
	case !t.AnyMember && !t.Members[id]:
		return fmt.Errorf("%s: %w", id, ErrNotMember)
	}
	return nil
}

// Verify checks a whole presented chain, leaf first, at now: every SPIFFE rule,
// the signatures up to a root of the bundle of the leaf's own trust domain, the
// times, and Admit. It returns the leaf's ID: the only place in the program
// where a certificate becomes an identity. Beside an error the ID is at most what
// the certificate claims, for the record of the refusal.
//
// A certificate for probes is refused: see VerifyProbe.
func (t *Trust) Verify(chain []*x509.Certificate, now time.Time) (ID, error) {
	if len(chain) == 0 {
		return ID{}, ErrNoCredential
	}
	if IsProbe(chain[0]) {
		id, _ := LeafID(chain[0]) // for the record
		return id, ErrProbe
	}
	return t.verify(chain, now)
}

func (t *Trust) verify(chain []*x509.Certificate, now time.Time) (ID, error) {
	if len(chain) > maxChain {
		return ID{}, ErrChainTooLong
	}
	leaf := chain[0]
	id, err := LeafID(leaf)
	if err != nil {
		return ID{}, err
	}
	switch {
	case now.After(leaf.NotAfter):
		return id, fmt.Errorf("%s ended %s: %w", id, leaf.NotAfter.UTC().Format(time.RFC3339), ErrExpired)
	case now.Before(leaf.NotBefore):
		return id, fmt.Errorf("%s begins %s: %w", id, leaf.NotBefore.UTC().Format(time.RFC3339), ErrNotYetValid)
	}
	bundle := t.Bundles[id.TrustDomain()]
	if bundle == nil || bundle.TrustDomain != id.TrustDomain() {
		return id, fmt.Errorf("%s: %w", id.TrustDomain(), ErrUntrustedDomain)
	}
	if err := bundle.verifyChain(chain, now); err != nil {
		return id, err
	}
	return id, t.Admit(id)
}

// verifyChain builds and checks the path; the SPIFFE rules for signers hold on
// every certificate of it.
func (b *Bundle) verifyChain(chain []*x509.Certificate, now time.Time) error {
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range b.Roots {
		roots.AddCert(r)
	}
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrChain, err)
	}
	for _, path := range paths {
		if err = checkPathSigners(path, b.TrustDomain); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", ErrChain, err)
}

// checkPathSigners wants at least one signer: x509.Verify is content with a leaf
// that stands among the roots itself, and so was never signed by a CA.
func checkPathSigners(path []*x509.Certificate, td TrustDomain) error {
	if len(path) < 2 {
		return ErrSigner
	}
	for _, signer := range path[1:] {
		if err := CheckSigner(signer, td); err != nil {
			return err
		}
	}
	return nil
}
