package identity

import (
	"crypto/x509"
	"errors"
	"slices"
)

// Errors of LeafID, one a rule of X509-SVID.md; crypto/x509 checks none of them.
var (
	ErrURICount   = errors.New("an X509-SVID has exactly one URI name")
	ErrLeafIsCA   = errors.New("an X509-SVID leaf is not a CA certificate")
	ErrLeafUsage  = errors.New("an X509-SVID leaf has digitalSignature and neither keyCertSign nor cRLSign")
	ErrLeafNoPath = errors.New("an X509-SVID leaf's ID has a path")
	ErrLeafEKU    = errors.New("an X509-SVID leaf's extended key usage holds both serverAuth and clientAuth")
	ErrSigner     = errors.New("a signing certificate is a CA with keyCertSign and an ID without a path")
)

// LeafID is the SPIFFE ID of a leaf certificate after every structural check of
// X509-SVID.md sections 2 to 5. It says nothing about who signed it.
func LeafID(leaf *x509.Certificate) (ID, error) {
	if len(leaf.URIs) != 1 {
		return ID{}, ErrURICount
	}
	id, err := ParseID(leaf.URIs[0].String())
	if err != nil {
		return ID{}, err
	}
	switch {
	case id.Path() == "":
		return ID{}, ErrLeafNoPath
	case leaf.IsCA || !leaf.BasicConstraintsValid && leaf.MaxPathLen > 0:
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
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0 || len(cert.URIs) > 1 {
		return ErrSigner
	}
	if len(cert.URIs) == 1 && cert.URIs[0].String() != td.ID().String() {
		return ErrSigner
	}
	return nil
}

func keyUsageCritical(cert *x509.Certificate) bool {
	for _, e := range cert.Extensions {
		if e.Id.Equal([]int{2, 5, 29, 15}) {
			return e.Critical
		}
	}
	return false
}
