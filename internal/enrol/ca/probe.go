package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// ProbeTTL is the life of a certificate for probes.
const ProbeTTL = 5 * time.Minute

// A Flaw is what is wrong with a certificate for probes, one thing and no other.
type Flaw string

// The flaws.
const (
	NoFlaw      Flaw = ""
	Expired     Flaw = "expired"       // it has ended
	NotYetValid Flaw = "not_yet_valid" // it has not begun
	WrongUsage  Flaw = "wrong_usage"   // it is no client's: its extended key usage is serverAuth alone
	TwoNames    Flaw = "two_names"     // it names two identities
)

// A ProbeTemplate is everything that a certificate for probes says.
type ProbeTemplate struct {
	// ID is its name, and Second the further one where the flaw is TwoNames.
	ID, Second identity.ID
	// PublicKey is as in Template.
	PublicKey crypto.PublicKey
	Flaw      Flaw
}

// SignProbe signs a certificate for the probes of `parley verify` and returns it
// with its intermediate, leaf first. Flawed or not, it has the critical extension
// identity.OIDProbe, by which it is refused everywhere but on the path of probes,
// and its time is minutes. Like X509-SVIDs it is linted before it is signed and
// after.
func (a *Authority) SignProbe(t ProbeTemplate) ([]*x509.Certificate, error) {
	now := a.cfg.Clock.Now()
	if t.ID.TrustDomain() != a.cfg.TrustDomain || t.ID.Path() == "" {
		return nil, fault.New(fault.CertUnusable, "", "%q is no workload of %s", t.ID, a.cfg.TrustDomain)
	}
	if err := CheckKey(t.PublicKey); err != nil {
		return nil, fault.Wrap(err, fault.CertUnusable, "", "a probe as %s", t.ID)
	}
	is, err := a.current(now)
	if err != nil {
		return nil, err
	}
	tbs, err := probeLeaf(t, now)
	if err != nil {
		return nil, err
	}
	trial := *is.cert
	trial.PublicKey = a.lintKey.Public()
	if _, err := signProbe(tbs, &trial, t, a.lintKey, now); err != nil {
		return nil, err
	}
	leaf, err := signProbe(tbs, is.cert, t, is.key, now)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{leaf, is.cert}, nil
}

// probeLeaf is what is signed for t.
func probeLeaf(t ProbeTemplate, now time.Time) (*x509.Certificate, error) {
	ski, err := keyIdentifier(t.PublicKey)
	if err != nil {
		return nil, err
	}
	tbs := &x509.Certificate{
		SerialNumber:          newSerial(),
		URIs:                  []*url.URL{uri(t.ID)},
		SubjectKeyId:          ski,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		ExtraExtensions:       []pkix.Extension{{Id: identity.OIDProbe(), Critical: true, Value: asn1.NullBytes}},
	}
	tbs.NotBefore, tbs.NotAfter = probeTimes(t.Flaw, now)
	switch t.Flaw {
	case NoFlaw, Expired, NotYetValid:
	case WrongUsage:
		tbs.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case TwoNames:
		if t.Second.TrustDomain() != t.ID.TrustDomain() || t.Second.Path() == "" || t.Second == t.ID {
			return nil, fault.New(fault.CertUnusable, "", "a probe of two names wants a second one, not %q", t.Second)
		}
		tbs.URIs = append(tbs.URIs, uri(t.Second))
	default:
		return nil, fault.New(fault.CertUnusable, "", "a probe has no flaw %q", string(t.Flaw))
	}
	return tbs, nil
}

// probeTimes are far enough from now that no clock of a mesh that works is in doubt.
func probeTimes(f Flaw, now time.Time) (notBefore, notAfter time.Time) {
	now = now.Truncate(time.Second)
	switch f {
	case Expired:
		return now.Add(-2 * ProbeTTL), now.Add(-ProbeTTL)
	case NotYetValid:
		return now.Add(ProbeTTL), now.Add(2 * ProbeTTL)
	}
	return now.Add(-backdate), now.Add(ProbeTTL)
}

func signProbe(tbs, parent *x509.Certificate, want ProbeTemplate, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	leaf, err := create(tbs, parent, want.PublicKey, key, want.ID)
	if err != nil {
		return nil, err
	}
	if err := lintProbe(leaf, parent, want, now); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "the probe's certificate for %s fails its lint", want.ID)
	}
	return leaf, nil
}

// lintProbe reads a signed certificate as a stranger would. It holds what keeps it
// from being good for anything, the extension, that it is no CA's and its times, and
// that nothing is wrong with it but its flaw.
func lintProbe(leaf, parent *x509.Certificate, want ProbeTemplate, now time.Time) error {
	pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	names, usage := []string{want.ID.String()}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	switch want.Flaw {
	case TwoNames:
		names = append(names, want.Second.String())
	case WrongUsage:
		usage = usage[:1]
	}
	switch {
	case !identity.IsProbe(leaf):
		return errors.New("the extension for probes is missing")
	case !ok || !pub.Equal(want.PublicKey):
		return errors.New("the public key is another")
	case leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		return errors.New("it could sign certificates")
	case !slices.Equal(leaf.ExtKeyUsage, usage) || len(leaf.UnknownExtKeyUsage) > 0:
		return errors.New("the extended key usage is another")
	case !slices.EqualFunc(leaf.URIs, names, func(u *url.URL, name string) bool { return u.String() == name }):
		return errors.New("the names are others")
	case len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses)+len(leaf.Subject.Names) > 0:
		return errors.New("there is a name that nobody asked for")
	}
	extensions := leafExtensions()
	extensions[identity.OIDProbe().String()] = true
	return errors.Join(lintProbeTimes(leaf, want.Flaw, now), lintIssuer(leaf, parent), lintExtensions(leaf, extensions))
}

func lintProbeTimes(leaf *x509.Certificate, flaw Flaw, now time.Time) error {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if life <= 0 || life > ProbeTTL+backdate+time.Second || leaf.NotAfter.After(now.Add(2*ProbeTTL)) {
		return fmt.Errorf("it lives for %s, until %s", life, stamp(leaf.NotAfter))
	}
	if leaf.NotAfter.Before(now) != (flaw == Expired) || leaf.NotBefore.After(now) != (flaw == NotYetValid) {
		return fmt.Errorf("it begins %s and ends %s", stamp(leaf.NotBefore), stamp(leaf.NotAfter))
	}
	return nil
}
