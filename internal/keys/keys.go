// Package keys keeps secrets on disk: the master key, and files sealed under it.
// Everything else that is secret on disk is inside a sealed file.
//
// It refuses to use a master key that others may read or have made, to overwrite
// one, a directory that others may change, and to return a byte of a sealed file that does not authenticate.
package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/parleymesh/parley/internal/fault"
)

// masterSize is the length of a master key file, in bytes.
const masterSize = 32

// A Master seals and opens files. It is safe for concurrent use and never shows
// its key.
type Master struct{ aead cipher.AEAD }

// OpenMaster reads the master key at path, 32 bytes that nobody but the owner
// may read, who is this user or root, and makes it if there is none; created says which. Of several
// processes that make it at once one wins, and all return its key. The folder
// must exist. Errors are faults: KeyUnreadable, KeyMode, KeyCorrupt (a wrong
// length) and KeyUnwritable.
func OpenMaster(path string) (m *Master, created bool, err error) {
	secret, err := readMaster(path)
	if errors.Is(err, fs.ErrNotExist) {
		if created, err = createMaster(path); err != nil {
			return nil, false, err
		}
		secret, err = readMaster(path)
	}
	if err != nil {
		return nil, false, err
	}
	m, err = newMaster(secret)
	clear(secret)
	return m, created, err
}

// String keeps the key out of formatted output.
func (*Master) String() string { return "[master key]" }

// LogValue keeps the key out of logs.
func (m *Master) LogValue() slog.Value { return slog.StringValue(m.String()) }

// newMaster derives the sealing key, so that other uses of the same master key
// can never share it.
func newMaster(secret []byte) (*Master, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "parley sealed file v1", masterSize)
	if err != nil {
		return nil, fmt.Errorf("derive the sealing key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive the sealing key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive the sealing key: %w", err)
	}
	return &Master{aead}, nil
}

// readMaster judges the open file, not the path, so that nobody can swap it in
// between.
func readMaster(path string) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, unreadable(err, path)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, unreadable(err, path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fault.New(fault.KeyMode, "chmod 600 "+quote(path),
			"the master key %s has mode %04o: others than its owner may use it", path, mode)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && !ours(st) {
		return nil, fault.New(fault.KeyMode, "do not use it: start over with another data directory, or restore "+quote(path)+" from the backup",
			"the master key %s belongs to user %d, who knows it", path, st.Uid)
	}
	secret, err := readAtMost(f, masterSize)
	if err != nil {
		return nil, unreadable(err, path)
	}
	if len(secret) != masterSize {
		return nil, fault.New(fault.KeyCorrupt, "restore "+quote(path)+" from the backup: what it sealed opens with no other key",
			"the master key %s does not have %d bytes", path, masterSize)
	}
	return secret, nil
}

// createMaster puts a new key at path and never in the place of another: the
// complete file is linked to its name, which fails where the name is taken.
func createMaster(path string) (created bool, err error) {
	secret := make([]byte, masterSize)
	rand.Read(secret) // never fails (crypto/rand)
	defer clear(secret)
	temp, err := writeTemp(path, secret)
	if err != nil {
		return false, unwritable(err, path)
	}
	defer os.Remove(temp)
	err = os.Link(temp, path)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return false, unwritable(err, path)
	}
	return true, nil
}
