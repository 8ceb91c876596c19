package attest

import (
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Findings are the weaknesses of the selectors for this process: an executable
// selector says little where the service's own user may write the file, or a
// directory on the way to it, and so put any program in its place. A digest
// settles that.
func (w *Workload) Findings(want snapshot.RunsAs) []*fault.Fault {
	if want.Exe == "" || want.SHA256 != "" || w.Exe == "" {
		return nil
	}
	for path := w.Exe; ; path = filepath.Dir(path) {
		if w.mayWrite(path) {
			return []*fault.Fault{fault.New(fault.WritableByItself,
				"let another user, such as root, own the executable and every directory above it, or add sha256 to runs_as",
				"user %s, as which the service runs, may replace its own executable %q: it may write %q", named(w.UID, w.User), w.Exe, path)}
		}
		if path == "/" || path == "." {
			return nil
		}
	}
}

// mayWrite goes by owner and mode bits; the mode's group bits bound what an
// access control list grants. An owner may always change the mode. In a sticky
// directory only owners may replace what is there.
func (w *Workload) mayWrite(path string) bool {
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		return false
	}
	sticky := s.Mode&unix.S_IFMT == unix.S_IFDIR && s.Mode&unix.S_ISVTX != 0
	gid := int(s.Gid)
	switch {
	case w.UID == 0, int(s.Uid) == w.UID:
		return true
	case sticky:
		return false
	case gid == w.GID || slices.Contains(w.Groups, gid):
		return s.Mode&unix.S_IWGRP != 0
	}
	return s.Mode&unix.S_IWOTH != 0
}
