package keys_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/keys"
)

func open(t testing.TB, path string) *keys.Master {
	t.Helper()
	m, _, err := keys.OpenMaster(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// wantFault checks the code, and that the hint has all of hints in it.
func wantFault(t testing.TB, err error, code fault.Code, hints ...string) {
	t.Helper()
	var f *fault.Fault
	if !errors.As(err, &f) || f.Code != code {
		t.Fatalf("got %v, want a fault %s", err, code)
	}
	for _, h := range hints {
		if !strings.Contains(f.Hint, h) {
			t.Errorf("the hint %q lacks %q", f.Hint, h)
		}
	}
}

func TestOpenMasterCreatesOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "master.key")
	m, created, err := keys.OpenMaster(path)
	if err != nil || !created {
		t.Fatalf("created %t, %v", created, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 || info.Size() != 32 {
		t.Errorf("the file is %v, %d bytes, %v", info.Mode(), info.Size(), err)
	}
	sealed := filepath.Join(filepath.Dir(path), "x")
	if err := m.Seal(sealed, "p", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	again, created, err := keys.OpenMaster(path)
	if err != nil || created {
		t.Fatalf("again: created %t, %v", created, err)
	}
	if got, err := again.Open(sealed, "p"); err != nil || string(got) != "secret" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestOpenMasterRace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "master.key")
	const n = 50
	var wg sync.WaitGroup
	masters, made := make([]*keys.Master, n), make([]bool, n)
	for i := range n {
		wg.Go(func() {
			var err error
			if masters[i], made[i], err = keys.OpenMaster(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	creators := 0
	for i, m := range masters {
		if made[i] {
			creators++
		}
		sealed := filepath.Join(dir, fmt.Sprintf("sealed-%d", i))
		if err := m.Seal(sealed, "p", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := masters[0].Open(sealed, "p"); err != nil {
			t.Fatalf("two keys: %v", err)
		}
	}
	if creators != 1 {
		t.Errorf("%d of %d say that they created the key", creators, n)
	}
	onlySealed(t, dir, n+1)
}

// onlySealed checks that no temporary file is left.
func onlySealed(t *testing.T, dir string, want int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != want {
		t.Errorf("%d files, want %d: %v", len(entries), want, entries)
	}
}

func TestOpenMasterRefuses(t *testing.T) {
	t.Parallel()
	whole := bytes.Repeat([]byte{7}, 32)
	tests := []struct {
		name  string
		make  func(path string) error
		code  fault.Code
		hints []string
	}{
		{"group may read", func(p string) error { return write(p, whole, 0o640) }, fault.KeyMode, []string{"chmod 600 ", "master.key"}},
		{"others may read", func(p string) error { return write(p, whole, 0o604) }, fault.KeyMode, []string{"chmod 600 "}},
		{"group may write", func(p string) error { return write(p, whole, 0o620) }, fault.KeyMode, []string{"chmod 600 "}},
		{"short", func(p string) error { return write(p, whole[:31], 0o600) }, fault.KeyCorrupt, []string{"backup"}},
		{"long", func(p string) error { return write(p, append(whole, 7), 0o600) }, fault.KeyCorrupt, []string{"backup"}},
		{"empty", func(p string) error { return write(p, nil, 0o600) }, fault.KeyCorrupt, []string{"backup"}},
		{"folder", func(p string) error { return os.Mkdir(p, 0o700) }, fault.KeyUnreadable, nil},
		{"pipe", func(p string) error { return syscall.Mkfifo(p, 0o600) }, fault.KeyUnreadable, nil},
		{"no folder", func(p string) error { return os.Remove(filepath.Dir(p)) }, fault.KeyUnwritable, []string{"mkdir -m 700 -p "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "d", "master.key")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := tt.make(path); err != nil {
				t.Fatal(err)
			}
			before := state(path)
			_, created, err := keys.OpenMaster(path)
			wantFault(t, err, tt.code, tt.hints...)
			if created || !strings.Contains(err.Error(), path) {
				t.Errorf("created %t, %v", created, err)
			}
			if after := state(path); after != before {
				t.Errorf("the file was %s and is %s", before, after)
			}
		})
	}
}

// state is what a change of the file would change.
func state(path string) string {
	info, err := os.Lstat(path)
	if err != nil {
		return "missing"
	}
	return fmt.Sprint(info.Mode(), info.Size(), info.ModTime())
}

func write(path string, data []byte, mode fs.FileMode) error {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func TestUnreadable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root reads every file")
	}
	path := filepath.Join(t.TempDir(), "master.key")
	open(t, path)
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	_, _, err := keys.OpenMaster(path)
	wantFault(t, err, fault.KeyUnreadable, "chown ", "chmod 600 ")
}

func TestSealReplacesWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := open(t, filepath.Join(dir, "master.key"))
	path := filepath.Join(dir, "x")
	for _, text := range []string{"first", "", strings.Repeat("long", 1000), "last"} {
		if err := m.Seal(path, "p", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := m.Open(path, "p"); err != nil || string(got) != text {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if raw, _ := os.ReadFile(path); bytes.Contains(raw, []byte("last")) {
		t.Error("the plaintext is on disk")
	}
	onlySealed(t, dir, 2)
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := open(t, filepath.Join(dir, "master.key"))
	path := filepath.Join(dir, "x")
	if err := m.Seal(path, "root key", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		master  *keys.Master
		purpose string
		data    []byte
	}{
		{"another purpose", m, "jwt key", sealed},
		{"no purpose", m, "", sealed},
		{"another master key", open(t, filepath.Join(dir, "other.key")), "root key", sealed},
		{"empty", m, "root key", nil},
		{"not sealed", m, "root key", []byte("secret")},
		{"cut", m, "root key", sealed[:len(sealed)-1]},
		{"longer", m, "root key", append(bytes.Clone(sealed), 0)},
		{"magic only", m, "root key", sealed[:16]},
		{"oversized", m, "root key", append(bytes.Clone(sealed), make([]byte, 2<<20)...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "x")
			if err := write(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := tt.master.Open(path, tt.purpose)
			wantFault(t, err, fault.KeyCorrupt, "backup")
			if got != nil {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestEveryBitIsAuthenticated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := open(t, filepath.Join(dir, "master.key"))
	path := filepath.Join(dir, "x")
	if err := m.Seal(path, "p", []byte("s")); err != nil {
		t.Fatal(err)
	}
	sealed, _ := os.ReadFile(path)
	for i := range len(sealed) * 8 {
		sealed[i/8] ^= 1 << (i % 8)
		if err := os.WriteFile(path, sealed, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Open(path, "p"); err == nil {
			t.Fatalf("bit %d may be changed", i)
		}
		sealed[i/8] ^= 1 << (i % 8)
	}
}

func TestSealFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := open(t, filepath.Join(dir, "master.key"))
	wantFault(t, m.Seal(filepath.Join(dir, "missing", "x"), "p", nil), fault.KeyUnwritable, "mkdir")
	wantFault(t, m.Seal(filepath.Join(dir, "x"), "p", make([]byte, 65<<20)), fault.Internal)
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	wantFault(t, m.Seal(filepath.Join(dir, "d"), "p", nil), fault.KeyUnwritable)
	onlySealed(t, dir, 2)
}

func TestOpenMissing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := open(t, filepath.Join(dir, "master.key"))
	_, err := m.Open(filepath.Join(dir, "it's gone"), "p")
	wantFault(t, err, fault.KeyUnreadable, `'`+dir+`/it'\''s gone'`)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist", err)
	}
}

func TestMasterShowsNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "master.key")
	m := open(t, path)
	if got := fmt.Sprintf("%v %s", m, m); got != "[master key] [master key]" {
		t.Errorf("got %q", got)
	}
	if got := m.LogValue().String(); got != "[master key]" {
		t.Errorf("got %q", got)
	}
}

func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	m := open(f, filepath.Join(dir, "master.key"))
	path := filepath.Join(dir, "x")
	if err := m.Seal(path, "p", []byte("s")); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("parley-sealed-1\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := m.Open(path, "p")
		if err == nil && !bytes.Equal(data, good) {
			t.Fatalf("opened as %q", got)
		}
	})
}
