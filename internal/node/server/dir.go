package server

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
)

// What a data directory holds.
const (
	databaseFile = "parley.db"
	masterFile   = "master.key"
	authorityDir = "ca"
)

// checkDir makes the data directory, or refuses one that another user could have
// prepared, and one of which a part is gone: a new master key would open nothing of
// it. Where it is existing, so must the database be: a new one would begin a second
// history under the same authority. Both are there before the authority is made, so
// that no crash leaves a directory like that.
func checkDir(dir string) (existing bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, dirUnusable(err, dir)
	}
	if err := keys.CheckDir(dir); err != nil {
		return false, err
	}
	entries, err := os.ReadDir(filepath.Join(dir, authorityDir))
	if err != nil || len(entries) == 0 {
		return false, nil // nothing was made yet; what cannot be read is named by who opens it
	}
	master := filepath.Join(dir, masterFile)
	if _, err := os.Lstat(master); errors.Is(err, fs.ErrNotExist) {
		return true, fault.New(fault.KeyUnreadable, "restore "+master+" from the backup, or start over with another data directory",
			"the master key %s is gone, and what it sealed is there", master)
	}
	return true, nil
}

// Domain is the realm of the data directory dir: the one that its authority has, or
// for a new one the one called name.
func Domain(dir, name string) (identity.TrustDomain, error) {
	have, err := ca.Domain(filepath.Join(dir, authorityDir))
	if err != nil || !have.IsZero() && (name == "" || name == have.String()) {
		return have, err
	}
	if name == "" {
		return have, fault.New(fault.Usage, "parley server --trust-domain shop.example", "the data directory %s is new: say which trust domain it is to serve", dir)
	}
	td, err := identity.ParseTrustDomain(name)
	if err != nil {
		return td, fault.Wrap(err, fault.Usage, "parley server --trust-domain shop.example", "--trust-domain cannot be %q", name)
	}
	return td, nil // another one than the authority's is refused by who opens that
}

// dirUnusable is why the data directory cannot be made.
func dirUnusable(err error, dir string) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	return fault.Wrap(err, fault.DirUnusable, "ls -ld "+filepath.Dir(dir)+", or choose another: --dir /tmp/p", "the data directory %s cannot be made", dir)
}
