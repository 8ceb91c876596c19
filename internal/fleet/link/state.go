package link

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
)

// The files of a State, and what each is sealed as.
const (
	keyFile     = "join.key"
	hostFile    = "host.sealed"
	updateFile  = "update.sealed"
	svidDir     = "svid"
	keySeal     = "agent join key"
	hostSeal    = "agent host"
	updateSeal  = "agent update"
	svidSeal    = "agent svid "
	svidEnding  = ".sealed"
	maxFileName = 200
)

// A State is what an agent keeps on disk, sealed: who it is, what it last ran by,
// and the credentials of its services. By it an agent that starts while no server
// answers serves as before.
type State struct {
	dir    string
	master *keys.Master
}

// OpenState opens the state in dir, which exists.
func OpenState(dir string) (*State, error) {
	master, _, err := keys.OpenMaster(filepath.Join(dir, "master.key"))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, svidDir), 0o700); err != nil {
		return nil, fault.Wrap(err, fault.DirUnusable, "ls -ld "+dir, "the agent's directory %s cannot be used", dir)
	}
	return &State{dir, master}, nil
}

// A Host is an agent that has joined.
type Host struct {
	Name       string
	Addresses  []string
	Credential *identity.Credential
	Bundle     *identity.Bundle
}

// wireHost is a Host on disk.
type wireHost struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Key       []byte   `json:"key"` // PKCS #8
	Chain     [][]byte `json:"chain"`
	Bundle    *Bundle  `json:"bundle"`
}

// JoinKey is the key that a join is made with: kept before it is used, so that an
// answer that is lost can be asked for again.
func (s *State) JoinKey() (crypto.Signer, error) {
	path := filepath.Join(s.dir, keyFile)
	der, err := s.master.Open(path, keySeal)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
		if der, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			return nil, fmt.Errorf("keep the key: %w", err)
		}
		return key, s.master.Seal(path, keySeal, der)
	}
	if err != nil {
		return nil, err
	}
	return parseKey(der)
}

func parseKey(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("read a kept key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("read a kept key: it cannot sign")
	}
	return signer, nil
}

// SaveHost keeps h, and forgets the key of its join.
func (s *State) SaveHost(h *Host) error {
	w := wireHost{Name: h.Name, Addresses: h.Addresses, Chain: RawChain(h.Credential.Chain)}
	var err error
	if w.Key, err = x509.MarshalPKCS8PrivateKey(h.Credential.Key); err != nil {
		return fmt.Errorf("keep the agent's credential: %w", err)
	}
	if w.Bundle, err = NewBundle(h.Bundle); err != nil {
		return err
	}
	if err := s.seal(hostFile, hostSeal, w); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(s.dir, keyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the key of the join: %w", err)
	}
	return nil
}

// Host is the agent that has joined, nil where none has.
func (s *State) Host() (*Host, error) {
	var w wireHost
	if found, err := s.open(hostFile, hostSeal, &w); !found {
		return nil, err
	}
	bundle, err := w.Bundle.Bundle()
	if err != nil {
		return nil, err
	}
	credential, err := credentialOf(w.Chain, w.Key)
	if err != nil {
		return nil, err
	}
	return &Host{Name: w.Name, Addresses: w.Addresses, Credential: credential, Bundle: bundle}, nil
}

func credentialOf(chain [][]byte, key []byte) (*identity.Credential, error) {
	certs, err := parseChain(chain)
	if err != nil {
		return nil, err
	}
	signer, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	return identity.NewCredential(certs, signer)
}

// SaveUpdate keeps the update that is in force.
func (s *State) SaveUpdate(u *Update) error {
	w, err := NewWireUpdate(u)
	if err != nil {
		return err
	}
	return s.seal(updateFile, updateSeal, w)
}

// Update is the update that was in force, nil where there was none, or one that
// this program does not understand whole.
func (s *State) Update() (*Update, error) {
	var w WireUpdate
	if found, err := s.open(updateFile, updateSeal, &w); !found {
		return nil, err
	}
	return w.Update()
}

// wireSVID is a service's credential on disk.
type wireSVID struct {
	Key   []byte   `json:"key"`
	Chain [][]byte `json:"chain"`
}

// svidPath is the file of id: its name with slashes as dots, which no two IDs of
// the mesh share, since neither names of services nor of gateways have a dot.
func svidPath(id identity.ID) (string, error) {
	name := strings.ReplaceAll(id.Name(), "/", ".")
	if name == "" || len(name) > maxFileName || name[0] == '.' {
		return "", fmt.Errorf("keep the credential of %s: no file can be called that", id)
	}
	return filepath.Join(svidDir, name+svidEnding), nil
}

// Save keeps the credential of a service or gateway, in the place of its last.
func (s *State) Save(c *identity.Credential) error {
	path, err := svidPath(c.ID)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.Key)
	if err != nil {
		return fmt.Errorf("keep the credential of %s: %w", c.ID, err)
	}
	return s.seal(path, svidSeal+c.ID.String(), wireSVID{Key: key, Chain: RawChain(c.Chain)})
}

// Load is the kept credential of id, nil where there is none.
func (s *State) Load(id identity.ID) (*identity.Credential, error) {
	path, err := svidPath(id)
	if err != nil {
		return nil, err
	}
	var w wireSVID
	if found, err := s.open(path, svidSeal+id.String(), &w); !found {
		return nil, err
	}
	return credentialOf(w.Chain, w.Key)
}

// Forget removes the kept credential of id.
func (s *State) Forget(id identity.ID) error {
	path, err := svidPath(id)
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(s.dir, path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the credential of %s: %w", id, err)
	}
	return nil
}

func (s *State) seal(name, purpose string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	return s.master.Seal(filepath.Join(s.dir, name), purpose, data)
}

func (s *State) open(name, purpose string, v any) (found bool, err error) {
	data, err := s.master.Open(filepath.Join(s.dir, name), purpose)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := decodeStrict(data, v); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return true, nil
}
