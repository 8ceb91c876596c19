package identity

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
)

// Errors of LeafID, one a rule of X509-SVID.md; crypto/x509 checks none of them.
var (
	ErrAltNames   = errors.New("the certificate's subject alternative names cannot be read")
	ErrURICount   = errors.New("an X509-SVID has exactly one URI name")
	ErrLeafIsCA   = errors.New("an X509-SVID leaf is not a CA certificate")
	ErrLeafUsage  = errors.New("an X509-SVID leaf has digitalSignature and neither keyCertSign nor cRLSign")
	ErrLeafNoPath = errors.New("an X509-SVID leaf's ID has a path")
	ErrLeafEKU    = errors.New("an X509-SVID leaf's extended key usage holds both serverAuth and clientAuth")
	ErrSigner     = errors.New("a signing certificate is a CA with keyCertSign and an ID without a path")
)

// The object identifiers of two extensions (RFC 5280 sections 4.2.1.3 and 4.2.1.6).
var (
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// tagURI is the choice uniformResourceIdentifier of a GeneralName (RFC 5280
// section 4.2.1.6).
const tagURI = 6

// LeafID is the SPIFFE ID of a parsed leaf certificate after every structural
// check of X509-SVID.md sections 2 to 5. It says nothing about who signed it.
func LeafID(leaf *x509.Certificate) (ID, error) {
	uris, err := uriNames(leaf)
	if err != nil {
		return ID{}, err
	}
	if len(uris) != 1 {
		return ID{}, ErrURICount
	}
	id, err := ParseID(uris[0])
	if err != nil {
		return ID{}, err
	}
	switch {
	case id.Path() == "":
		return ID{}, ErrLeafNoPath
	case leaf.IsCA:
		return ID{}, ErrLeafIsCA
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0,
		leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0,
		!keyUsageCritical(leaf):
		return ID{}, ErrLeafUsage
	}
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 &&
		(!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth)) {
		return ID{}, ErrLeafEKU
	}
	return id, nil
}

// CheckSigner applies the rules for intermediates and roots (X509-SVID.md
// sections 2 and 4): CA, keyCertSign, and, where it has a URI name, exactly one
// that is td's own ID.
func CheckSigner(cert *x509.Certificate, td TrustDomain) error {
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return ErrSigner
	}
	uris, err := uriNames(cert)
	if err != nil || len(uris) > 1 {
		return ErrSigner
	}
	if len(uris) == 1 && uris[0] != td.ID().String() {
		return ErrSigner
	}
	return nil
}

// uriNames reads the URI names from the extension's own bytes. The URIs that
// crypto/x509 offers went through net/url, which normalises: an upper-case
// scheme comes back in lower case, an empty fragment not at all.
func uriNames(cert *x509.Certificate) (uris []string, err error) {
	for _, e := range cert.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return nil, ErrAltNames
		}
		for _, n := range names {
			if n.Class == asn1.ClassContextSpecific && n.Tag == tagURI {
				uris = append(uris, string(n.Bytes))
			}
		}
	}
	return uris, nil
}

func keyUsageCritical(cert *x509.Certificate) bool {
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidKeyUsage) {
			return e.Critical
		}
	}
	return false
}
