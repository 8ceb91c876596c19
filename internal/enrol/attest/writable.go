package attest

import (
	"os/user"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// An Account is whom processes run as.
type Account struct {
	UID, GID int
	Groups   []int  // the supplementary ones
	User     string // the name of UID, empty where it has none
}

// Account is whom the process runs as.
func (w *Workload) Account() Account { return Account{w.UID, w.GID, w.Groups, w.User} }

// AccountOf is the account of a user of this host, by name or number.
func AccountOf(name string) (a Account, ok bool) {
	u, err := user.Lookup(name)
	if _, numeric := number(name); numeric {
		u, err = user.LookupId(name)
	}
	if err != nil {
		return Account{}, false
	}
	a.User = u.Username
	groups, _ := u.GroupIds() // without them less is found, and nothing wrong
	for _, g := range groups {
		if n, ok := number(g); ok {
			a.Groups = append(a.Groups, n)
		}
	}
	uid, ok1 := number(u.Uid)
	gid, ok2 := number(u.Gid)
	a.UID, a.GID = uid, gid
	return a, ok1 && ok2
}

// Findings are the weaknesses of the selectors for such processes: an executable
// selector says little where the service's own user may write the file, or a
// directory on the way to it, and so put any program in its place. A digest
// settles that.
func (a Account) Findings(want snapshot.RunsAs) []*fault.Fault {
	if want.Exe == "" || want.SHA256 != "" {
		return nil
	}
	for path := want.Exe; ; path = filepath.Dir(path) {
		if a.mayWrite(path) {
			return []*fault.Fault{fault.New(fault.WritableByItself,
				"let another user, such as root, own the executable and every directory above it, or add sha256 to runs_as",
				"user %s, as which the service runs, may replace its own executable %q: it may write %q", named(a.UID, a.User), want.Exe, path)}
		}
		if path == "/" || path == "." {
			return nil
		}
	}
}

// mayWrite goes by owner and mode bits; the mode's group bits bound what an
// access control list grants. An owner may always change the mode. In a sticky
// directory only owners may replace what is there.
func (a Account) mayWrite(path string) bool {
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		return false
	}
	sticky := s.Mode&unix.S_IFMT == unix.S_IFDIR && s.Mode&unix.S_ISVTX != 0
	gid := int(s.Gid)
	switch {
	case a.UID == 0, int(s.Uid) == a.UID:
		return true
	case sticky:
		return false
	case gid == a.GID || slices.Contains(a.Groups, gid):
		return s.Mode&unix.S_IWGRP != 0
	}
	return s.Mode&unix.S_IWOTH != 0
}
