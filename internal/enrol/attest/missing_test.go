package attest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// write makes a file under dir and returns its path.
func write(t *testing.T, dir, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMissingSelectors(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	run := write(t, dir, "orders", "\x7fELF", 0o755)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(run, link); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		want snapshot.RunsAs
		text []string // none: nothing is missing
	}{
		"all there":          {snapshot.RunsAs{User: "root", Group: "root", Exe: run}, nil},
		"numbers":            {snapshot.RunsAs{User: "4711", Group: "4711"}, nil},
		"a digest":           {snapshot.RunsAs{SHA256: "00"}, nil},
		"user":               {snapshot.RunsAs{User: "nosuchuser"}, []string{"there is no user nosuchuser"}},
		"group":              {snapshot.RunsAs{Group: "nosuchgroup"}, []string{"there is no group nosuchgroup"}},
		"executable":         {snapshot.RunsAs{Exe: run + "x"}, []string{"there is no file \"" + run + "x\""}},
		"below a file":       {snapshot.RunsAs{Exe: run + "/x"}, []string{"there is no file"}},
		"a directory":        {snapshot.RunsAs{Exe: dir}, []string{"is no file that can be run"}},
		"not executable":     {snapshot.RunsAs{Exe: write(t, dir, "data", "", 0o644)}, []string{"is no file that can be run"}},
		"a link":             {snapshot.RunsAs{Exe: link}, []string{"is a link, and what runs is \"" + run + "\""}},
		"a script":           {snapshot.RunsAs{Exe: write(t, dir, "script", "#!/bin/sh\n", 0o755)}, []string{"is a script"}},
		"an empty file":      {snapshot.RunsAs{Exe: write(t, dir, "empty", "", 0o755)}, nil},
		"several":            {snapshot.RunsAs{User: "nosuchuser", Group: "root", Exe: run + "x"}, []string{"no user nosuchuser, and there is no file"}},
		"names the service":  {snapshot.RunsAs{User: "nosuchuser"}, []string{"can be orders: "}},
		"quotes what it can": {snapshot.RunsAs{Exe: "/no\nsuch"}, []string{`"/no\nsuch"`}},
	} {
		f := attest.Missing("orders", tc.want)
		if (f == nil) != (tc.text == nil) {
			t.Errorf("%s: got %v", name, f)
			continue
		}
		for _, text := range tc.text {
			if f.Code != fault.SelectorMissing || !strings.Contains(f.Message, text) || !strings.Contains(f.Hint, "runs_as of orders") {
				t.Errorf("%s: got %v (%s), want %s", name, f, f.Hint, text)
			}
		}
	}
}

// What is missing today may be there tomorrow.
func TestMissingExecutableAppears(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	want := snapshot.RunsAs{Exe: filepath.Join(dir, "orders")}
	if attest.Missing("orders", want) == nil {
		t.Error("a file that is not there is not missed")
	}
	write(t, dir, "orders", "\x7fELF", 0o755)
	if f := attest.Missing("orders", want); f != nil {
		t.Error(f)
	}
}

func TestMissingUnit(t *testing.T) {
	t.Parallel()
	first, second, empty := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "none")
	write(t, first, "orders.service", "", 0o644)
	write(t, second, "web@.service", "", 0o644)
	write(t, second, "session-3.scope", "", 0o644)
	if err := os.Symlink("orders.service", filepath.Join(first, "alias.service")); err != nil {
		t.Fatal(err)
	}
	for unit, want := range map[string]string{
		"": "", "init.scope": "", "orders.service": "", "alias.service": "", "web@1.service": "", "session-3.scope": "",
		"ordrs.service": "there is no unit ordrs.service", "web.service": "there is no unit web.service", "orders@1.service": "there is no unit orders@1.service",
	} {
		if got := attest.MissingUnit(unit, first, []string{empty, first, second}); got != want {
			t.Errorf("%s: got %q, want %q", unit, got, want)
		}
	}
	if got := attest.MissingUnit("orders.service", empty, []string{first}); !strings.Contains(got, "systemd does not run here") {
		t.Errorf("without systemd: %q", got)
	}
}
