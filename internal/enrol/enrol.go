// Package enrol is the registrar: the one place where somebody asks for an
// identity, is decided upon, is issued to and is recorded, in that order.
//
// It refuses to issue what it could not record, to take anything but a public
// key from who asks, and to issue to anybody whom the revision does not name.
package enrol

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// JWTTTL is the longest life of a JWT-SVID: it is a bearer token, and good for
// whoever reads it.
const JWTTTL = 5 * time.Minute

// The bounds of the audiences of one JWT-SVID: how many, and the length of each
// in bytes.
const (
	maxAudiences = 8
	maxAudience  = 512
)

// Config is what a Registrar works with. Every field is needed.
type Config struct {
	Authority *ca.Authority
	Registry  Registry
	Joins     Joins
	Clock     clock.Clock
	Logger    *slog.Logger
	// Host names this server in events.
	Host string
}

// A Registrar issues to the subjects of the current revision and to nobody else.
// It is safe for concurrent use.
type Registrar struct {
	cfg      Config
	subjects atomic.Pointer[map[identity.ID]Subject]
	banned   atomic.Pointer[map[identity.ID]bool]
	probes   atomic.Pointer[Probes]
	joins    audit.Throttle[string]  // refused joins, by reason
	refusals audit.Throttle[refusal] // of issuance
}

// New is a Registrar that knows no subject yet and so refuses everybody.
func New(cfg Config) *Registrar {
	r := &Registrar{cfg: cfg}
	r.SetSubjects(nil)
	r.SetProbes(nil)
	return r
}

// SetSubjects replaces who may be issued to. Nothing that a subject has lost is
// released once it has returned, but to whom the release was already under way.
func (r *Registrar) SetSubjects(subjects []Subject) {
	next := make(map[identity.ID]Subject, len(subjects)+1)
	if own, err := r.server(); err == nil { // too long a trust domain has no server
		next[own.ID] = own
	}
	for _, s := range subjects {
		next[s.ID] = s.clone()
	}
	r.subjects.Store(&next)
}

// SetBanned replaces who may not be issued to, whatever the revision says.
func (r *Registrar) SetBanned(banned []identity.ID) {
	next := make(map[identity.ID]bool, len(banned))
	for _, id := range banned {
		next[id] = true
	}
	r.banned.Store(&next)
}

// Bundle is what verifies everything that is issued.
func (r *Registrar) Bundle() *identity.Bundle { return r.cfg.Authority.Bundle() }

// Issue gives host an X509-SVID for id over the public key of csr, a DER PKCS #10
// request, of which nothing else is used. The chain is leaf first, without the
// root. A refusal is recorded and is a NotSubject or CertUnusable fault; nothing
// is released that the registry did not commit.
func (r *Registrar) Issue(ctx context.Context, host string, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	p, reason, err := r.decide(host, id)
	if err != nil {
		return nil, r.refuse(ctx, KindX509, host, id, reason, err)
	}
	pub, err := publicKey(csr)
	if err != nil {
		return nil, r.refuse(ctx, KindX509, host, id, reasonRequest, err)
	}
	return r.issueTo(ctx, host, p, pub)
}

// issueTo signs, records and then releases.
func (r *Registrar) issueTo(ctx context.Context, host string, p Permission, pub crypto.PublicKey) ([]*x509.Certificate, error) {
	chain, err := r.signX509(p, pub)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	rec := Record{
		Serial: identity.Serial(leaf), ID: p.subject.ID, NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(),
		Fingerprint: identity.Fingerprint(leaf), Host: host, Kind: KindX509,
	}
	if err := r.release(ctx, p, rec); err != nil {
		return nil, err
	}
	return chain, nil
}

// IssueJWT gives host a JWT-SVID for id, for audience; it lives as long as the
// subject's certificates, and JWTTTL at most. Refusals and records are as with
// Issue.
func (r *Registrar) IssueJWT(ctx context.Context, host string, id identity.ID, audience []string) (string, time.Time, error) {
	p, reason, err := r.decide(host, id)
	if err != nil {
		return "", time.Time{}, r.refuse(ctx, KindJWT, host, id, reason, err)
	}
	if err := checkAudience(audience); err != nil {
		return "", time.Time{}, r.refuse(ctx, KindJWT, host, id, reasonAudience, err)
	}
	token, expires, err := r.signJWT(p, audience)
	if err != nil {
		return "", time.Time{}, err
	}
	sum := sha256.Sum256([]byte(token))
	rec := Record{
		Serial: hex.EncodeToString(sum[:16]), ID: id, NotBefore: r.cfg.Clock.Now().UTC(), NotAfter: expires,
		Fingerprint: hex.EncodeToString(sum[:]), Host: host, Kind: KindJWT,
	}
	if err := r.release(ctx, p, rec); err != nil {
		return "", time.Time{}, err
	}
	return token, expires, nil
}

func checkAudience(audience []string) error {
	if len(audience) == 0 || len(audience) > maxAudiences {
		return fault.New(fault.CertUnusable, "", "a JWT-SVID has 1 to %d audiences, not %d", maxAudiences, len(audience))
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudience || !utf8.ValidString(a) {
			return fault.New(fault.CertUnusable, "", "an audience is 1 to %d bytes of UTF-8", maxAudience)
		}
	}
	return nil
}
