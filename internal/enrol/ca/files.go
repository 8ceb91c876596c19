package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
)

// The files of an authority. rootCert is written last of the first three and
// says that the authority exists: without it nothing was ever released. The
// intermediate stands beside its key in one sealed file, so that no crash can
// part them.
const (
	rootKeyFile      = "root.key"
	jwtKeyFile       = "jwt.key"
	rootCertFile     = "root.pem"
	intermediateFile = "intermediate.sealed"
)

// What each file is sealed for: one cannot be put in the place of another.
const (
	rootPurpose         = "enrol/ca root key"
	jwtPurpose          = "enrol/ca jwt key"
	intermediatePurpose = "enrol/ca intermediate"
)

// maxPEM bounds root.pem, in bytes.
const maxPEM = 64 << 10

// lockDir makes dir where it is missing and takes it for this process, so that
// two that start at once do not each create an authority.
func lockDir(dir string) (unlock func(), err error) {
	hint := "ls -ld " + filepath.Dir(dir) + " " + dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(cause(err), fault.KeyUnwritable, hint, "the authority's folder %s cannot be made", dir)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fault.Wrap(cause(err), fault.KeyUnreadable, hint, "the authority's folder %s cannot be opened", dir)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fault.Wrap(err, fault.KeyUnreadable, hint, "the authority's folder %s cannot be locked", dir)
	}
	return func() { f.Close() }, nil // closing unlocks
}

// cause drops the operation and path that package os adds: the fault names the
// path already.
func cause(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

func (a *Authority) path(name string) string { return filepath.Join(a.cfg.Dir, name) }

// loadOrCreate sets root, jwt and bundle.
func (a *Authority) loadOrCreate() (created bool, err error) {
	a.root, err = a.readRoot()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := a.create(); err != nil {
			return false, err
		}
		return true, nil
	case err != nil:
		return false, err
	}
	if err := a.checkClock(a.root, a.cfg.Clock.Now()); err != nil {
		return false, err
	}
	if a.jwt, err = a.openKey(jwtKeyFile, jwtPurpose); err != nil {
		return false, err
	}
	return false, a.setBundle()
}

// readRoot reads the root's certificate and checks that it is ours to serve.
func (a *Authority) readRoot() (*x509.Certificate, error) {
	path := a.path(rootCertFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(cause(err), fault.KeyUnreadable, "ls -l "+path, "the root certificate %s cannot be read", path)
	}
	block, rest := pem.Decode(data)
	if len(data) > maxPEM || block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, a.corrupt(rootCertFile)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil || root.CheckSignatureFrom(root) != nil || len(root.URIs) != 1 {
		return nil, a.corrupt(rootCertFile)
	}
	if a.cfg.TrustDomain.IsZero() { // whichever it is
		if a.cfg.TrustDomain, err = identity.ParseTrustDomain(root.URIs[0].Host); err != nil {
			return nil, a.corrupt(rootCertFile)
		}
	}
	if td := root.URIs[0].Host; td != a.cfg.TrustDomain.String() {
		return nil, fault.New(fault.CAForeign,
			"set trust_domain back to "+td+", or choose another data directory for "+a.cfg.TrustDomain.String(),
			"the authority in %s belongs to the trust domain %q, not to %q", a.cfg.Dir, td, a.cfg.TrustDomain)
	}
	if identity.CheckSigner(root, a.cfg.TrustDomain) != nil {
		return nil, a.corrupt(rootCertFile)
	}
	return root, nil
}

// Domain is the trust domain of the authority in dir, zero where there is none yet.
func Domain(dir string) (identity.TrustDomain, error) {
	a := &Authority{cfg: Config{Dir: dir}}
	if _, err := a.readRoot(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return identity.TrustDomain{}, err
	}
	return a.cfg.TrustDomain, nil
}

// create makes root and JWT key. What a crashed creation left behind is
// overwritten; an intermediate without a root is what somebody damaged.
func (a *Authority) create() error {
	if _, err := os.Lstat(a.path(intermediateFile)); !errors.Is(err, fs.ErrNotExist) {
		return a.corrupt(rootCertFile)
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	if a.jwt, err = newKey(); err != nil {
		return err
	}
	root, err := a.makeRoot(key)
	if err != nil {
		return err
	}
	if err := a.sealKey(rootKeyFile, rootPurpose, key); err != nil {
		return err
	}
	if err := a.sealKey(jwtKeyFile, jwtPurpose, a.jwt); err != nil {
		return err
	}
	path := a.path(rootCertFile)
	if err := keys.Write(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})); err != nil {
		return fault.Wrap(cause(err), fault.KeyUnwritable, "ls -ld "+a.cfg.Dir, "the root certificate %s cannot be written", path)
	}
	a.root = root
	a.made(root, "root made")
	return a.setBundle()
}

// loadIntermediate sets issuing, or leaves it empty where there is none yet.
func (a *Authority) loadIntermediate() error {
	data, err := a.cfg.Master.Open(a.path(intermediateFile), intermediatePurpose)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	certBlock, rest := pem.Decode(data)
	keyBlock, _ := pem.Decode(rest)
	if certBlock == nil || keyBlock == nil {
		return a.corrupt(intermediateFile)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return a.corrupt(intermediateFile)
	}
	key, ok := parseKey(keyBlock.Bytes)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) || cert.CheckSignatureFrom(a.root) != nil ||
		identity.CheckSigner(cert, a.cfg.TrustDomain) != nil {
		return a.corrupt(intermediateFile)
	}
	a.issuing.Store(&issuer{cert, key})
	return nil
}

func (a *Authority) storeIntermediate(is *issuer) error {
	der, err := x509.MarshalPKCS8PrivateKey(is.key)
	if err != nil {
		return err
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: is.cert.Raw})
	data = append(data, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	return a.cfg.Master.Seal(a.path(intermediateFile), intermediatePurpose, data)
}

func (a *Authority) sealKey(name, purpose string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return a.cfg.Master.Seal(a.path(name), purpose, der)
}

func (a *Authority) openKey(name, purpose string) (*ecdsa.PrivateKey, error) {
	der, err := a.cfg.Master.Open(a.path(name), purpose)
	if err != nil {
		return nil, err
	}
	key, ok := parseKey(der)
	if !ok {
		return nil, a.corrupt(name)
	}
	return key, nil
}

func parseKey(der []byte) (*ecdsa.PrivateKey, bool) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	key, ok := parsed.(*ecdsa.PrivateKey)
	return key, err == nil && ok && key.Curve == elliptic.P256()
}

func (a *Authority) corrupt(name string) error {
	return fault.New(fault.KeyCorrupt, "restore the whole folder "+a.cfg.Dir+" from the backup",
		"%s does not fit the other files of the authority: it is damaged, missing, or from another authority", a.path(name))
}
