package enrol

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// A Permission says that one subject may be issued to now. Only decide makes one,
// and only signX509 and signJWT, which need one, call the authority: no way of
// asking leads to a signature around the decision. The zero Permission permits
// nothing.
type Permission struct{ subject Subject }

// decide is the decision: the current revision names id and lets it run on host,
// or not. reason is the code of a refusal.
func (r *Registrar) decide(host string, id identity.ID) (p Permission, reason string, err error) {
	s, ok := (*r.subjects.Load())[id]
	switch {
	case !ok || id.IsZero():
		return Permission{}, reasonUnknown, fault.New(fault.NotSubject, "parley status",
			"%q is no service or gateway of the current revision", id)
	case r.isBanned(id):
		return Permission{}, reasonBanned, fault.New(fault.NotSubject, "see who is, and why: parley ban", "%q is banned", id)
	case !s.allows(host):
		return Permission{}, reasonHost, fault.New(fault.NotSubject, "add the host to runs_on of "+id.Name()+", if it is to run there",
			"%q does not run on host %q", id, host)
	}
	return Permission{s}, "", nil
}

// holds says whether p would still be given, with the same names and life.
func (r *Registrar) holds(p Permission) bool {
	s, ok := (*r.subjects.Load())[p.subject.ID]
	return ok && s.equal(p.subject) && !r.isBanned(p.subject.ID)
}

func (r *Registrar) isBanned(id identity.ID) bool {
	banned := r.banned.Load()
	return banned != nil && (*banned)[id]
}

func (r *Registrar) signX509(p Permission, pub crypto.PublicKey) ([]*x509.Certificate, error) {
	if p.subject.ID.IsZero() {
		return nil, fault.New(fault.Internal, "", "a certificate was asked for without a permission")
	}
	s := p.subject
	chain, err := r.cfg.Authority.SignX509(ca.Template{ID: s.ID, PublicKey: pub, TTL: s.TTL, DNSNames: s.DNSNames, IPs: s.IPs})
	if err != nil {
		return nil, fmt.Errorf("issue to %s: %w", s.ID, err)
	}
	return chain, nil
}

func (r *Registrar) signJWT(p Permission, audience []string) (string, time.Time, error) {
	if p.subject.ID.IsZero() {
		return "", time.Time{}, fault.New(fault.Internal, "", "a token was asked for without a permission")
	}
	token, expires, err := r.cfg.Authority.SignJWT(p.subject.ID, audience, min(JWTTTL, p.subject.TTL))
	if err != nil {
		return "", time.Time{}, fmt.Errorf("issue to %s: %w", p.subject.ID, err)
	}
	return token, expires, nil
}
