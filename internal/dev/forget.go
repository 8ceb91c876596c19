package dev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/parleymesh/parley/internal/fault"
)

// marker is the first file that Parley makes in a data directory, and no name that
// anybody else would choose.
const marker = "parley.db.lock"

// Forget removes what Parley wrote into dir, and nothing else: a mistyped --dir
// costs nobody their files. It refuses a directory that holds anything else, and
// one that another process uses. A directory that is not there is forgotten.
func Forget(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return unforgettable(err, dir)
	}
	ours := false
	for _, e := range entries {
		if !owns(e.Name()) {
			return fault.New(fault.Usage, "remove it yourself, or name another --dir",
				"%s holds %q, which Parley did not put there: nothing was removed", dir, e.Name())
		}
		ours = ours || e.Name() == marker
	}
	if !ours {
		return fault.New(fault.Usage, "remove it yourself, or name another --dir",
			"%s is no data directory of Parley (it holds no %s): nothing was removed", dir, marker)
	}
	unlock, err := lock(filepath.Join(dir, marker))
	if err != nil {
		return err
	}
	defer unlock()
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return unforgettable(err, dir)
		}
	}
	return nil
}

// owns says whether a name is one that Parley makes, or has made for a moment
// (".master.key.123").
func owns(name string) bool {
	if hidden, ok := strings.CutPrefix(name, "."); ok {
		name = strings.TrimRight(hidden, "0123456789")
		name = strings.TrimSuffix(name, ".")
	}
	return slices.Contains([]string{
		"agent", "api.sock", "audit.hash", "audit.heads", "audit.key", "bin", "buyer.key", "ca", "ca.pem", "issuer.key", "issuer.pem", "master.key", "parley.db", marker, "parley.db-journal", "parley.db-shm", "parley.db-wal",
		"parley.yaml", "reader.key", "workload.sock",
	}, name)
}

// lock takes the database's lock for as long as its directory is being removed.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, unforgettable(err, filepath.Dir(path))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fault.New(fault.StoreBusy, "stop it first, or name another --dir", "another process uses %s: nothing was removed", filepath.Dir(path))
	}
	return func() { f.Close() }, nil
}

func unforgettable(err error, dir string) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return fault.Wrap(at.Err, fault.DirUnusable, "ls -l "+quote(dir), "%s cannot be removed", at.Path)
	}
	return err
}
