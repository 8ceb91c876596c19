package server

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/store"
)

// logKeyFile holds the key that signs the server's audit log, sealed: it is not in the
// database, whose owner could otherwise write the log anew, and is none of the
// authority's.
const (
	logKeyFile    = "audit.key"
	logKeyPurpose = "key of the audit log"
)

// openLogKey gives the store the key of its log. One is made for a log that was never
// signed; where one that was has none, or another, somebody has to say which of the two
// is the right one.
func (s *Server) openLogKey(ctx context.Context) error {
	path := filepath.Join(s.cfg.Dir, logKeyFile)
	pinned, signed, err := s.store.Signed(ctx)
	if err != nil {
		return err
	}
	secret, err := s.master.Open(path, logKeyPurpose)
	if errors.Is(err, fs.ErrNotExist) {
		if signed {
			return fault.New(fault.KeyUnreadable, "restore "+path+" from the backup, or start over with another data directory",
				"the key of the audit log %s is gone, and the database has what it signed", path)
		}
		return s.makeLogKey(ctx, path)
	}
	if err != nil {
		return err
	}
	key, err := checkpoint.ParseSigner(secret)
	if err != nil {
		return fault.Wrap(err, fault.KeyCorrupt, "restore "+path+" from the backup", "%s does not hold the key of an audit log", path)
	}
	if key.Name() != s.origin() {
		return fault.New(fault.KeyUnreadable, "restore "+path+" and the database from the same backup",
			"the key %s is of the audit log %s, and the database has %s", path, key.Name(), s.origin())
	}
	if err := s.store.UseKey(ctx, key); !errors.Is(err, store.ErrOwnKey) {
		return err
	}
	return fault.New(fault.KeyUnreadable, "restore "+path+" and the database from the same backup",
		"the key %s is another than the one that signed the audit log in the database: %s", path, pinned)
}

func (s *Server) makeLogKey(ctx context.Context, path string) error {
	key, err := checkpoint.GenerateKey(s.origin())
	if err != nil {
		return err
	}
	if err := s.master.Seal(path, logKeyPurpose, key.Marshal()); err != nil {
		return err
	}
	s.cfg.Logger.Info("key of the audit log made; keep a copy of the public one elsewhere: parley audit keys", "key", key.Verifier().String())
	return s.store.UseKey(ctx, key)
}

// origin is the name under which the server's log is signed.
func (s *Server) origin() string {
	return checkpoint.Origin(s.cfg.TrustDomain.String(), s.store.LogName())
}
