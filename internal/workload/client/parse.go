package client

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// Limits of one message.
const (
	maxSVIDs   = 64
	maxBundles = 256
	maxCerts   = 64 // of one bundle
)

// EnvSocket is where the environment says that the API is, in the variable that
// SPIFFE_Workload_Endpoint.md section 4 names; empty where it says nothing.
func EnvSocket() string { return os.Getenv("SPIFFE_ENDPOINT_SOCKET") }

// ParseSocket is the path of a SPIFFE_ENDPOINT_SOCKET
// (SPIFFE_Workload_Endpoint.md section 4): unix:// and an absolute path, with
// nothing else. TCP is refused: the other end could not be attested.
func ParseSocket(socket string) (path string, err error) {
	const hint = "set SPIFFE_ENDPOINT_SOCKET=unix:///path/to/workload.sock"
	if socket == "" {
		return "", fault.New(fault.Usage, hint, "the Workload API's socket is not set")
	}
	u, err := url.Parse(socket)
	switch {
	case err != nil:
		return "", fault.Wrap(err, fault.Usage, hint, "the Workload API's socket is not a URI")
	case u.Scheme == "tcp":
		return "", fault.New(fault.Usage, hint, "the Workload API's socket %q is TCP: only a Unix socket says which process is at its other end", socket)
	case u.Scheme != "unix":
		return "", fault.New(fault.Usage, hint, "the Workload API's socket %q does not start with unix://", socket)
	case u.Opaque != "" || u.Host != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", fault.New(fault.Usage, hint, "the Workload API's socket %q is not unix:// and an absolute path", socket)
	case !filepath.IsAbs(u.Path) || filepath.Clean(u.Path) != u.Path || u.Path == "/":
		return "", fault.New(fault.Usage, hint, "the Workload API's socket %q does not name a file by a clean absolute path", socket)
	}
	return u.Path, nil
}

// parse reads the server's full state. The first SVID is the process's. The
// trust keeps prev's epoch while its content is the same.
func parse(msg *workloadpb.X509SVIDResponse, prev *state) (*state, error) {
	if len(msg.Svids) == 0 || len(msg.Svids) > maxSVIDs || len(msg.FederatedBundles) > maxBundles {
		return nil, fmt.Errorf("the Workload API's answer has %d SVIDs and %d bundles", len(msg.Svids), len(msg.FederatedBundles))
	}
	cred, err := credential(msg.Svids[0])
	if err != nil {
		return nil, fmt.Errorf("the Workload API's SVID is unusable: %w", err)
	}
	trust := &identity.Trust{Epoch: 1, AnyMember: true, Bundles: map[identity.TrustDomain]*identity.Bundle{}}
	own, err := roots(cred.ID.TrustDomain(), msg.Svids[0].Bundle)
	if err != nil {
		return nil, err
	}
	for name, der := range msg.FederatedBundles {
		id, err := identity.ParseID(name)
		if err == nil && id.Path() != "" {
			err = fmt.Errorf("%s is no trust domain", id)
		}
		if err != nil {
			return nil, fmt.Errorf("the Workload API's bundle: %w", err)
		}
		if trust.Bundles[id.TrustDomain()], err = roots(id.TrustDomain(), der); err != nil {
			return nil, err
		}
	}
	trust.Bundles[own.TrustDomain] = own // a federated bundle never replaces it
	if prev != nil {
		trust.Epoch = prev.trust.Epoch
		if !same(trust, prev.trust) {
			trust.Epoch++
		} else {
			trust = prev.trust
		}
	}
	return &state{credential: cred, trust: trust}, nil
}

func credential(svid *workloadpb.X509SVID) (*identity.Credential, error) {
	chain, err := x509.ParseCertificates(svid.X509Svid)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(svid.X509SvidKey)
	if err != nil {
		return nil, errors.New("the private key is not PKCS #8") // never what it is
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key cannot sign")
	}
	cred, err := identity.NewCredential(chain, signer)
	if err != nil {
		return nil, err
	}
	if cred.ID.String() != svid.SpiffeId {
		return nil, fmt.Errorf("it is called otherwise than the certificate's %s", cred.ID)
	}
	return cred, nil
}

// roots is a bundle; none at all is a bundle that trusts nothing.
func roots(td identity.TrustDomain, der []byte) (*identity.Bundle, error) {
	certs, err := x509.ParseCertificates(der)
	if err != nil {
		return nil, fmt.Errorf("the Workload API's bundle of %s: %w", td, err)
	}
	if len(certs) > maxCerts {
		return nil, fmt.Errorf("the Workload API's bundle of %s has %d certificates", td, len(certs))
	}
	return &identity.Bundle{TrustDomain: td, Roots: certs}, nil
}

func same(a, b *identity.Trust) bool {
	if len(a.Bundles) != len(b.Bundles) {
		return false
	}
	for td, x := range a.Bundles {
		y := b.Bundles[td]
		if y == nil || len(x.Roots) != len(y.Roots) {
			return false
		}
		for i := range x.Roots {
			if !bytes.Equal(x.Roots[i].Raw, y.Roots[i].Raw) {
				return false
			}
		}
	}
	return true
}
