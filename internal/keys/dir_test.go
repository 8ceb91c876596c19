package keys_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/keys"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Another user may have put there a key that they know, or a link to what this
// user would then write over.
func TestCheckDir(t *testing.T) {
	t.Parallel()
	const other = 4711
	for name, tc := range map[string]struct {
		prepare func(dir string) error
		root    bool // only root can prepare it
		ok      bool
	}{
		"not there":             {func(dir string) error { return os.Remove(dir) }, false, true},
		"empty":                 {func(string) error { return nil }, false, true},
		"passed through":        {func(dir string) error { return os.Chmod(dir, 0o711) }, false, true},
		"everybody may write":   {func(dir string) error { return os.Chmod(dir, 0o1777) }, false, false},
		"a key in it":           {func(dir string) error { return os.WriteFile(dir+"/master.key", nil, 0o600) }, false, true},
		"a link of our own":     {func(dir string) error { return os.Symlink("/srv", dir+"/agent") }, false, true},
		"an open directory":     {func(dir string) error { return mkdir(dir+"/bin", 0o777) }, false, false},
		"an open file":          {func(dir string) error { return chmodded(dir+"/parley.db", 0o666) }, false, false},
		"another user's":        {func(dir string) error { return os.Lchown(dir, other, 0) }, true, false},
		"another user's key":    {func(dir string) error { return owned(dir+"/master.key", other) }, true, false},
		"another user's bin":    {func(dir string) error { return bin(dir+"/bin", other) }, true, false},
		"another user's link":   {func(dir string) error { return link(dir+"/ca.pem", other) }, true, false},
		"another group's, open": {func(dir string) error { return group(dir, 4711, 0o770) }, true, false},
		"another group reads":   {func(dir string) error { return group(dir, 4711, 0o750) }, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.root && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			dir := filepath.Join(t.TempDir(), "d")
			must(t, mkdir(dir, 0o700))
			must(t, tc.prepare(dir))
			err := keys.CheckDir(dir)
			if tc.ok {
				must(t, err)
			} else {
				wantFault(t, err, fault.DirUnusable, "--dir")
			}
		})
	}
}

func mkdir(path string, mode os.FileMode) error {
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func chmodded(path string, mode os.FileMode) error {
	if err := os.WriteFile(path, nil, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func owned(path string, uid int) error {
	if err := os.WriteFile(path, make([]byte, 32), 0o600); err != nil {
		return err
	}
	return os.Lchown(path, uid, 0)
}

func bin(path string, uid int) error {
	if err := mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Lchown(path, uid, 0)
}

func link(path string, uid int) error {
	if err := os.Symlink("/etc/passwd", path); err != nil {
		return err
	}
	return os.Lchown(path, uid, 0)
}

func group(path string, gid int, mode os.FileMode) error {
	if err := os.Lchown(path, -1, gid); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func TestADirectoryThatAnotherUserLinkedTo(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	must(t, mkdir(dir+"/real", 0o700))
	must(t, os.Symlink(dir+"/real", dir+"/link"))
	must(t, keys.CheckDir(dir+"/link"))
	must(t, os.Lchown(dir+"/link", 4711, 0))
	wantFault(t, keys.CheckDir(dir+"/link"), fault.DirUnusable)
}

func TestAMasterKeyOfAnotherUserIsRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "master.key")
	must(t, owned(path, 4711))
	_, _, err := keys.OpenMaster(path)
	wantFault(t, err, fault.KeyMode, "start over")
}

func TestWriteReplacesALink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "ca.pem")
	must(t, os.WriteFile(victim, []byte("precious"), 0o600))
	must(t, os.Symlink(victim, path))
	must(t, keys.WriteMode(path, []byte("root"), 0o644))
	if got, err := os.ReadFile(victim); err != nil || string(got) != "precious" {
		t.Errorf("what the link led to is %q, %v", got, err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("it is %v, %v", info.Mode(), err)
	}
}
