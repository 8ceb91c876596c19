package enrol

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// Probes say which host may have certificates for probes as whom, while `parley
// verify` runs. They are data, replaced as a whole.
type Probes map[string]map[identity.ID]bool

// SetProbes replaces who may have certificates for probes; nil is nobody, which is
// so except while a verification runs.
func (r *Registrar) SetProbes(p Probes) {
	next := make(Probes, len(p))
	for host, ids := range p {
		next[host] = maps.Clone(ids)
	}
	r.probes.Store(&next)
}

// IssueProbe gives host a certificate for probes as id over the public key of csr,
// with the one flaw that is asked for. Its chain is as that of Issue, and so are its
// refusals and records. A ban does not matter: that the certificate is refused for
// it is what is tried.
func (r *Registrar) IssueProbe(ctx context.Context, host string, id identity.ID, flaw ca.Flaw, csr []byte) ([]*x509.Certificate, error) {
	p, reason, err := r.decideProbe(host, id, flaw)
	if err != nil {
		return nil, r.refuse(ctx, KindProbe, host, id, reason, err)
	}
	pub, err := publicKey(csr)
	if err != nil {
		return nil, r.refuse(ctx, KindProbe, host, id, reasonRequest, err)
	}
	chain, err := r.cfg.Authority.SignProbe(ca.ProbeTemplate{ID: p.id, Second: p.second, PublicKey: pub, Flaw: p.flaw})
	if err != nil {
		return nil, fmt.Errorf("issue a probe as %s: %w", id, err)
	}
	leaf := chain[0]
	rec := Record{
		Serial: identity.Serial(leaf), ID: id, NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(),
		Fingerprint: identity.Fingerprint(leaf), Host: host, Kind: KindProbe,
	}
	e := r.event(KindProbe, host, id)
	e.Action, e.Outcome = audit.SVIDIssued, audit.Success
	e.Object.Serial, e.Object.NotAfter = rec.Serial, rec.NotAfter
	if flaw != ca.NoFlaw {
		e.Message = "flawed on purpose: " + string(flaw)
	}
	if err := r.cfg.Registry.Issue(ctx, rec, e); err != nil {
		return nil, fmt.Errorf("issue a probe as %s: not recorded, so not released: %w", id, err)
	}
	// As with release: the verification may have ended while the registry wrote.
	if _, reason, err := r.decideProbe(host, id, flaw); err != nil {
		return nil, r.refuse(ctx, KindProbe, host, id, reason, err)
	}
	return chain, nil
}

// A probePermission is Permission for certificates for probes; only decideProbe makes
// one.
type probePermission struct {
	id, second identity.ID
	flaw       ca.Flaw
}

func (r *Registrar) decideProbe(host string, id identity.ID, flaw ca.Flaw) (p probePermission, reason string, err error) {
	probes := *r.probes.Load()
	if id.IsZero() || !probes[host][id] {
		return p, reasonProbe, fault.New(fault.NotSubject, "", "no verification runs in which host %q calls as %q", host, id)
	}
	p = probePermission{id: id, flaw: flaw}
	if flaw == ca.TwoNames {
		if p.second, err = identity.StrangerID(id.TrustDomain()); err != nil {
			return p, reasonProbe, err
		}
	}
	return p, "", nil
}
