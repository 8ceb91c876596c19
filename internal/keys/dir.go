package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/parleymesh/parley/internal/fault"
)

// CheckDir refuses, as DirUnusable, a directory for secrets that another user may
// have prepared or may change: it and what is directly in it must belong to this
// user or to root, and nobody else may write to it. Links are judged by who made
// them. A directory that is not there passes.
func CheckDir(dir string) error {
	link, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return unusable(err, dir)
	}
	if err := private(dir, link); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return unusable(err, dir)
	}
	if err := private(dir, info); err != nil {
		return err
	}
	if !info.IsDir() {
		return nil // who wants to use it says so
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return unusable(err, dir)
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return unusable(err, dir)
		}
		if err := private(filepath.Join(dir, e.Name()), info); err != nil {
			return err
		}
	}
	return nil
}

// private refuses what is another user's, and files and directories that others
// may write. The group that this process makes files in is no other: where each
// user has one, files are made so that it may write.
func private(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	hint := fmt.Sprintf("if you know all that is in it: chown -R %d %s && chmod -R go-w %s; otherwise choose another: --dir /tmp/p", os.Geteuid(), quote(path), quote(path))
	if !ours(st) {
		return fault.New(fault.DirUnusable, hint, "%s belongs to user %d, who could have put there what Parley would trust", path, st.Uid)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil
	}
	mode := info.Mode().Perm()
	if mode&0o002 != 0 || mode&0o020 != 0 && int(st.Gid) != os.Getegid() {
		return fault.New(fault.DirUnusable, hint, "%s has mode %04o: others may change what Parley would trust", path, mode)
	}
	return nil
}

// ours says that a file is this user's or root's.
func ours(st *syscall.Stat_t) bool { return int(st.Uid) == os.Geteuid() || st.Uid == 0 }

func unusable(err error, dir string) error {
	return fault.Wrap(cause(err), fault.DirUnusable, "ls -ld "+quote(dir)+", or choose another: --dir /tmp/p", "the data directory %s cannot be used", dir)
}
