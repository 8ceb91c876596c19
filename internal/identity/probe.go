package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
	"time"
)

// ErrProbe says that a certificate is for probes of `parley verify`, and was shown
// elsewhere.
var ErrProbe = errors.New("the certificate is for probes of parley verify only")

// ErrNoProbe says that a probe came with a certificate that is not for probes.
var ErrNoProbe = errors.New("a probe shows a certificate that is for probes only")

// OIDProbe is the extension, always critical, that makes a certificate one for
// probes: whoever does not know it has to refuse the certificate (RFC 5280 section
// 4.2), and of Parley only Trust.VerifyProbe knows it. Its value is an ASN.1 NULL.
// The arc is the one that RFC 5612 keeps free of everybody's.
func OIDProbe() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 7, 1}
}

// VerifyID is whom `parley verify` calls as where it is nobody's service: a member
// of every mesh that no rule names, whose only certificates are for probes.
func VerifyID(td TrustDomain) (ID, error) { return NewID(td, own+"verify") }

// StrangerID is an identity of the trust domain that is in no mesh, for probes.
func StrangerID(td TrustDomain) (ID, error) { return NewID(td, own+"stranger") }

// IsProbe says that cert is one for probes. One whose extension is not critical is,
// too: it is for nothing else, and not for probes either, since others would take it.
func IsProbe(cert *x509.Certificate) bool {
	oid := OIDProbe()
	return slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oid) })
}

// VerifyProbe is Verify for the path of probes, which takes certificates for probes
// and no others.
func (t *Trust) VerifyProbe(chain []*x509.Certificate, now time.Time) (ID, error) {
	if len(chain) == 0 {
		return ID{}, ErrNoCredential
	}
	leaf, oid := *chain[0], OIDProbe()
	if !slices.ContainsFunc(leaf.UnhandledCriticalExtensions, oid.Equal) {
		id, _ := LeafID(&leaf) // for the record
		return id, ErrNoProbe
	}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(leaf.UnhandledCriticalExtensions), oid.Equal)
	return t.verify(append([]*x509.Certificate{&leaf}, chain[1:]...), now)
}
