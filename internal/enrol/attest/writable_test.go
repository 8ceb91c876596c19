package attest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

func TestFindsAnExecutableThatItsServiceMayReplace(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const uid, gid, other = 4711, 4712, 4713
	for name, tc := range map[string]struct {
		fileOwner, fileGroup int
		file                 os.FileMode
		dirOwner, dirGroup   int
		dir                  os.FileMode
		want                 bool
	}{
		"root's":                    {0, 0, 0o755, 0, 0, 0o755, false},
		"root's, setuid":            {0, 0, 0o755 | os.ModeSetuid, 0, 0, 0o755, false},
		"its own, read-only":        {uid, 0, 0o555, 0, 0, 0o755, true},
		"its group's":               {0, gid, 0o775, 0, 0, 0o755, true},
		"its group's, read-only":    {0, gid, 0o757, 0, 0, 0o755, false},
		"a supplementary group's":   {0, other, 0o775, 0, 0, 0o755, true},
		"another group's":           {0, 99, 0o775, 0, 0, 0o755, false},
		"everybody's":               {0, 0, 0o757, 0, 0, 0o755, true},
		"its directory":             {0, 0, 0o755, uid, 0, 0o755, true},
		"its group's directory":     {0, 0, 0o755, 0, gid, 0o775, true},
		"everybody's directory":     {0, 0, 0o755, 0, 0, 0o777, true},
		"everybody's, but sticky":   {0, 0, 0o755, 0, 0, 0o777 | os.ModeSticky, false},
		"its own in a sticky one":   {uid, 0, 0o755, 0, 0, 0o777 | os.ModeSticky, true},
		"its own directory, sticky": {0, 0, 0o755, uid, 0, 0o777 | os.ModeSticky, true},
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "bin")
		exe := filepath.Join(dir, "orders")
		must(t, os.Mkdir(dir, 0o755))
		must(t, os.WriteFile(exe, nil, 0o755))
		must(t, os.Chown(exe, tc.fileOwner, tc.fileGroup))
		must(t, os.Chmod(exe, tc.file))
		must(t, os.Chown(dir, tc.dirOwner, tc.dirGroup))
		must(t, os.Chmod(dir, tc.dir))
		must(t, os.Chmod(parent, 0o755))
		w := attest.Account{UID: uid, GID: gid, Groups: []int{other}}
		got := w.Findings(snapshot.RunsAs{Exe: exe})
		if (len(got) == 1 && got[0].Code == fault.WritableByItself) != tc.want {
			t.Errorf("%s: got %v, want a finding: %v", name, got, tc.want)
		}
		if got := w.Findings(snapshot.RunsAs{Exe: exe, SHA256: "00"}); len(got) > 0 {
			t.Errorf("%s, pinned by digest: got %v", name, got)
		}
	}
}

func TestAccountOf(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"root", "0"} {
		if a, ok := attest.AccountOf(name); !ok || a.UID != 0 || a.GID != 0 || a.User != "root" {
			t.Errorf("%s: %+v, %t", name, a, ok)
		}
	}
	for _, name := range []string{"", "no-such-user", "4294967290", "-1"} {
		if a, ok := attest.AccountOf(name); ok {
			t.Errorf("%q: %+v", name, a)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
