package server

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/keys"
)

// hashFile holds the secret of the keyed hashes in the audit log, sealed, and not in
// the database: who has that alone cannot guess at what is hashed there.
const (
	hashFile    = "audit.hash"
	hashPurpose = "secret of the audit log's keyed hashes"
)

func (c *Config) hashPath() string { return filepath.Join(c.Dir, hashFile) }

// openHashSecret reads the secret of keyed hashes, or makes a fresh one, which is not
// kept yet.
func openHashSecret(master *keys.Master, path string) (secret []byte, fresh bool, err error) {
	secret, err = master.Open(path, hashPurpose)
	if errors.Is(err, fs.ErrNotExist) {
		secret = make([]byte, 32)
		rand.Read(secret) // never returns an error (crypto/rand)
		return secret, true, nil
	}
	return secret, false, err
}

// keepHashSecret keeps a fresh secret, unless another one was there before.
func (s *Server) keepHashSecret(ctx context.Context, secret []byte) error {
	hashed, err := s.store.Hashed(ctx)
	if err != nil {
		return err
	}
	if hashed {
		return hashesGone(s.cfg.hashPath())
	}
	return s.master.Seal(s.cfg.hashPath(), hashPurpose, secret)
}

// hashesGone is that the secret is not there by which something was hashed.
func hashesGone(path string) error {
	return fault.New(fault.KeyUnreadable, "restore "+path+" from the backup",
		"the file %s is gone, and the audit log has hashes that were made with the key in it", path)
}
