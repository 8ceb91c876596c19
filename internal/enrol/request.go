package enrol

import (
	"crypto"
	"crypto/x509"

	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
)

// maxCSR is the longest certificate request that is read, in bytes: an RSA key of
// 8192 bits and its signature take 3 KB.
const maxCSR = 16 << 10

// publicKey is the one thing taken from a certificate request. Its self-signature
// proves that who asks holds the private key; the names and extensions that it
// asks for are not looked at, since who asks may write what they like there.
// The key is judged before the signature, so that an outsized one costs nothing.
func publicKey(csr []byte) (crypto.PublicKey, error) {
	if len(csr) > maxCSR {
		return nil, fault.New(fault.CertUnusable, "", "a certificate request has at most %d bytes", maxCSR)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fault.New(fault.CertUnusable, "", "the certificate request cannot be read")
	}
	if err := ca.CheckKey(req.PublicKey); err != nil {
		return nil, fault.Wrap(err, fault.CertUnusable, "", "the certificate request's key is refused")
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fault.New(fault.CertUnusable, "", "the certificate request is not signed with its own key")
	}
	return req.PublicKey, nil
}
