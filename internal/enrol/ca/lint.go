package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// The extensions that a leaf has, all of them and no other (RFC 5280 section
// 4.2.1), with whether they are critical.
func leafExtensions() map[string]bool {
	return map[string]bool{
		"2.5.29.14": false, // subject key identifier
		"2.5.29.35": false, // authority key identifier
		"2.5.29.15": true,  // key usage
		"2.5.29.19": true,  // basic constraints
		"2.5.29.17": true,  // subject alternative name: critical, the subject is empty
		"2.5.29.37": false, // extended key usage
	}
}

// lint reads a signed leaf as a stranger would and says the first thing that is
// not what want asked for or what X509-SVID.md and RFC 5280 allow.
func lint(leaf, parent *x509.Certificate, want Template) error {
	id, err := identity.LeafID(leaf)
	if err != nil {
		return err
	}
	pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case id != want.ID:
		return fmt.Errorf("the name is %s", id)
	case !ok || !pub.Equal(want.PublicKey):
		return errors.New("the public key is another")
	case leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		return errors.New("the key usage is not digitalSignature alone")
	case !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) || len(leaf.UnknownExtKeyUsage) > 0:
		return errors.New("the extended key usage is not serverAuth and clientAuth")
	case !leaf.BasicConstraintsValid || leaf.IsCA:
		return errors.New("the basic constraints are missing or say CA")
	case len(leaf.Subject.Names) != 0 || len(leaf.EmailAddresses) != 0:
		return errors.New("there is a name that nobody asked for")
	case leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() > 128:
		return errors.New("the serial number is not a positive number of 128 bits")
	}
	return errors.Join(lintTimes(leaf, parent, want), lintIssuer(leaf, parent), lintNames(leaf, want), lintExtensions(leaf, leafExtensions()))
}

func lintTimes(leaf, parent *x509.Certificate, want Template) error {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if leaf.NotBefore.Before(parent.NotBefore) || leaf.NotAfter.After(parent.NotAfter) {
		return errors.New("it outlives its intermediate")
	}
	if life <= 0 || life > want.TTL+backdate+time.Second {
		return fmt.Errorf("it lives for %s", life)
	}
	return nil
}

func lintIssuer(leaf, parent *x509.Certificate) error {
	if !bytes.Equal(leaf.RawIssuer, parent.RawSubject) || len(leaf.SubjectKeyId) == 0 ||
		!bytes.Equal(leaf.AuthorityKeyId, parent.SubjectKeyId) {
		return errors.New("issuer and key identifiers do not fit")
	}
	return leaf.CheckSignatureFrom(parent)
}

func lintNames(leaf *x509.Certificate, want Template) error {
	if !slices.Equal(leaf.DNSNames, want.DNSNames) || !slices.EqualFunc(leaf.IPAddresses, want.IPs, net.IP.Equal) {
		return errors.New("the DNS names or IP addresses are others")
	}
	return nil
}

func lintExtensions(leaf *x509.Certificate, expected map[string]bool) error {
	for _, e := range leaf.Extensions {
		critical, ok := expected[e.Id.String()]
		if !ok || critical != e.Critical {
			return fmt.Errorf("the extension %s is not expected, or not as critical %t", e.Id, e.Critical)
		}
		delete(expected, e.Id.String())
	}
	if len(expected) > 0 {
		return errors.New("an extension is missing")
	}
	return nil
}

// dnsName admits host names in lower case (RFC 1123 section 2.1), with *. before
// them for a wildcard: what the mesh file admits as a host. How wide a wildcard is
// wise is the administrator's judgement, in a private trust domain.
func dnsName(name string) bool {
	rest := strings.TrimPrefix(name, "*.")
	if len(rest) > 253 || net.ParseIP(rest) != nil {
		return false
	}
	for l := range strings.SplitSeq(rest, ".") {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}
