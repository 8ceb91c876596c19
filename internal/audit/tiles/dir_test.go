package tiles_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

const origin = "shop.example/vm-1"

// entry is the body of entry n of every log of these tests: entries of lengths that
// differ, and some that are empty.
func entry(n uint64) []byte {
	if n%97 == 5 {
		return nil
	}
	return bytes.Repeat(fmt.Appendf(nil, "%08x", n), 1+int(n%13))
}

func logKey(t testing.TB, name string) *checkpoint.Signer {
	t.Helper()
	key, err := checkpoint.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// export writes the entries from where the export in dir ends up to size.
func export(t testing.TB, dir string, key *checkpoint.Signer, size uint64) audit.Hash {
	t.Helper()
	w, err := tiles.OpenWriter(dir, origin)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var tree audit.Tree
	for n := range size {
		tree.Append(audit.LeafHash(entry(n)))
		if n < w.Size() {
			continue
		}
		if err := w.Append(entry(n), audit.LeafHash(entry(n))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(key.Sign(nil, size, tree.Root())); err != nil {
		t.Fatal(err)
	}
	return tree.Root()
}

// files are the regular files below dir.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && strings.HasSuffix(name, ".p") {
				if entries, _ := os.ReadDir(filepath.Join(dir, name)); len(entries) == 0 {
					t.Errorf("%s is empty", name)
				}
			}
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		all[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestExport(t *testing.T) {
	t.Parallel()
	key := logKey(t, origin)
	for _, size := range []uint64{0, 1, 255, 256, 257, 512, 1000} {
		dir := filepath.Join(t.TempDir(), "new", "export")
		root := export(t, dir, key, size)
		d, err := tiles.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		signed, err := d.Checkpoint()
		if err != nil {
			t.Fatal(err)
		}
		n, err := checkpoint.Open(signed, key.Verifier())
		if err != nil || n.Size != size || n.Root != root {
			t.Fatalf("size %d: the checkpoint is %v, %v", size, n, err)
		}
		if got, err := tiles.Root(t.Context(), d.Loader(size), size); err != nil || got != root {
			t.Fatalf("size %d: the root of its tiles is %x, %v", size, got, err)
		}
		if got, err := tiles.Root(t.Context(), d.Loader(size), size/2); err != nil || got != export(t, t.TempDir(), key, size/2) {
			t.Fatalf("size %d: half of it has the root %x, %v", size, got, err)
		}
		wanted := map[string]bool{"checkpoint": true}
		for level := 0; level < 3; level++ {
			for n := uint64(0); tiles.At(size, level, n).Width > 0; n++ {
				wanted[tiles.At(size, level, n).Path()] = true
			}
		}
		index := uint64(0)
		for n := uint64(0); tiles.At(size, 0, n).Width > 0; n++ {
			width := tiles.At(size, 0, n).Width
			wanted[tiles.BundlePath(n, width)] = true
			entries, err := d.Bundle(n, width)
			if err != nil || len(entries) != width {
				t.Fatalf("size %d: bundle %d: %d entries, %v", size, n, len(entries), err)
			}
			for _, e := range entries {
				if !bytes.Equal(e, entry(index)) {
					t.Fatalf("size %d: entry %d is %x", size, index, e)
				}
				index++
			}
		}
		for name := range files(t, dir) {
			if !wanted[name] {
				t.Errorf("size %d: there is %s", size, name)
			}
			delete(wanted, name)
		}
		if len(wanted) > 0 || index != size {
			t.Errorf("size %d: missing are %v; %d entries", size, wanted, index)
		}
	}
}

// However often an export is continued, it is the one that is written at once.
func TestContinueAnExport(t *testing.T) {
	t.Parallel()
	key := logKey(t, origin)
	dir, once := t.TempDir(), t.TempDir()
	for _, size := range []uint64{0, 0, 1, 200, 200, 256, 400, 512, 513, 1100} {
		export(t, dir, key, size)
		clear := filepath.Join(once, fmt.Sprint(size))
		export(t, clear, key, size)
		if got, want := fmt.Sprint(files(t, dir)), fmt.Sprint(files(t, clear)); got != want {
			t.Fatalf("continued to %d it is another", size)
		}
	}
}

// An export that broke off is at its older checkpoint, and is continued from there.
func TestAnInterruptedExport(t *testing.T) {
	t.Parallel()
	key := logKey(t, origin)
	for _, before := range []uint64{0, 300} {
		dir := t.TempDir()
		if before > 0 {
			export(t, dir, key, before)
		}
		w, err := tiles.OpenWriter(dir, origin)
		if err != nil {
			t.Fatal(err)
		}
		for n := w.Size(); n < 900; n++ {
			if err := w.Append(entry(n), audit.LeafHash(entry(n))); err != nil {
				t.Fatal(err)
			}
		}
		w.Close() // and no Finish
		if before > 0 {
			d, err := tiles.OpenDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if root, err := tiles.Root(t.Context(), d.Loader(before), before); err != nil || root != export(t, t.TempDir(), key, before) {
				t.Errorf("what its checkpoint speaks of is %x, %v", root, err)
			}
			d.Close()
		}
		export(t, dir, key, 700) // the log need not have got as far as before
		d, err := tiles.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if root, err := tiles.Root(t.Context(), d.Loader(700), 700); err != nil || root != export(t, t.TempDir(), key, 700) {
			t.Errorf("continued: root %x, %v", root, err)
		}
	}
}

// After Finish the same Writer goes on.
func TestFinishTwice(t *testing.T) {
	t.Parallel()
	key, dir := logKey(t, origin), t.TempDir()
	w, err := tiles.OpenWriter(dir, origin)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var tree audit.Tree
	for n := range uint64(600) {
		tree.Append(audit.LeafHash(entry(n)))
		if err := w.Append(entry(n), audit.LeafHash(entry(n))); err != nil {
			t.Fatal(err)
		}
		if n%77 == 0 || n == 599 {
			if err := w.Finish(key.Sign(nil, n+1, tree.Root())); err != nil {
				t.Fatal(err)
			}
		}
	}
	once := t.TempDir()
	export(t, once, key, 600)
	if fmt.Sprint(files(t, dir)) != fmt.Sprint(files(t, once)) {
		t.Error("it is another than one written at once")
	}
}

func TestFinishRefusesAnotherCheckpoint(t *testing.T) {
	t.Parallel()
	key, dir := logKey(t, origin), t.TempDir()
	root := export(t, dir, key, 300)
	before := fmt.Sprint(files(t, dir))
	w, err := tiles.OpenWriter(dir, origin)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Append(entry(300), leaf(7)); err != nil {
		t.Fatal(err)
	}
	for name, signed := range map[string][]byte{
		"another log":  logKey(t, "shop.example/vm-2").Sign(nil, 301, root),
		"another size": key.Sign(nil, 300, root),
		"another root": key.Sign(nil, 301, root),
	} {
		if err := w.Finish(signed); !errors.Is(err, tiles.ErrDiffers) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.Finish([]byte("nothing")); !errors.Is(err, checkpoint.ErrMalformed) {
		t.Errorf("no checkpoint: %v", err)
	}
	if err := w.Append(make([]byte, audit.MaxEvent+1), leaf(8)); !errors.Is(err, audit.ErrTooLong) {
		t.Errorf("an entry that is too long: %v", err)
	}
	if got := fmt.Sprint(files(t, dir)); got != before {
		t.Error("the export has changed")
	}
}

func TestOpenWriterRefuses(t *testing.T) {
	t.Parallel()
	key := logKey(t, origin)
	tests := map[string]struct {
		spoil func(dir string) error
		want  error
	}{
		"another log": {func(dir string) error {
			return put(dir, "checkpoint", string(logKey(t, "other").Sign(nil, 300, leaf(1))))
		}, tiles.ErrForeign},
		"no checkpoint": {func(dir string) error { return put(dir, "checkpoint", "a file of somebody's") }, tiles.ErrForeign},
		"other files": {func(dir string) error {
			return errors.Join(os.Remove(dir+"/checkpoint"), put(dir, "letter.txt", "dear"))
		}, tiles.ErrForeign},
		"another root":      {func(dir string) error { return put(dir, "checkpoint", string(key.Sign(nil, 300, leaf(1)))) }, tiles.ErrDamaged},
		"a tile is missing": {func(dir string) error { return os.RemoveAll(dir + "/tile/1") }, tiles.ErrDamaged},
		"a tile is short":   {func(dir string) error { return os.Truncate(dir+"/tile/0/001.p/44", 31) }, tiles.ErrDamaged},
		"a tile is another": {func(dir string) error { return put(dir, "tile/0/001.p/44", strings.Repeat("x", 44*32)) }, tiles.ErrDamaged},
		"no bundle":         {func(dir string) error { return os.RemoveAll(dir + "/tile/entries/001.p") }, tiles.ErrDamaged},
		"a bundle is short": {func(dir string) error { return os.Truncate(dir+"/tile/entries/001.p/44", 100) }, tiles.ErrDamaged},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			export(t, dir, key, 300)
			if err := tt.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := tiles.OpenWriter(dir, origin); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tiles.OpenWriter(file, origin); err == nil {
		t.Error("a file became an export")
	}
}

func put(dir, name, data string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600)
}

// What is private in a body leaves the house with no export and no proof.
func TestNothingPrivateIsExported(t *testing.T) {
	t.Parallel()
	const committed, private = `{"schema":1,"caller":{"person":"x"}}`, `{"schema":1,"caller":{"person":"x"},"private":{"salt":"AAAA","subject":"alice"}}`
	leaf := audit.LeafHash([]byte(private))
	if leaf != audit.LeafHash([]byte(committed)) {
		t.Fatal("the private part is in the leaf")
	}
	key, dir := logKey(t, origin), t.TempDir()
	w, err := tiles.OpenWriter(dir, origin)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var tree audit.Tree
	tree.Append(leaf)
	signed := key.Sign(nil, 1, tree.Root())
	if err := errors.Join(w.Append([]byte(private), leaf), w.Finish(signed)); err != nil {
		t.Fatal(err)
	}
	d, err := tiles.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if entries, err := d.Bundle(0, 1); err != nil || string(entries[0]) != committed {
		t.Errorf("exported: %s, %v", entries, err)
	}
	proof := &tiles.ProofFile{Event: []byte(private), Checkpoint: signed}
	got, err := tiles.ParseProofFile(proof.AppendText(nil))
	if err != nil || string(got.Event) != committed {
		t.Errorf("proved: %+v, %v", got, err)
	}
	// Nor is one read that has it.
	whole := base64.StdEncoding.EncodeToString([]byte(private))
	text := strings.Replace(string(proof.AppendText(nil)), base64.StdEncoding.EncodeToString([]byte(committed)), whole, 1)
	if _, err := tiles.ParseProofFile([]byte(text)); !errors.Is(err, tiles.ErrProofFile) {
		t.Errorf("a proof with a private part: %v", err)
	}
}

// A full tile stands in for the partial one that it has grown out of.
func TestAFullTileStandsIn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	export(t, dir, logKey(t, origin), 300)
	d, err := tiles.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	data, err := d.Tile(tiles.At(100, 0, 0))
	if err != nil || len(data) != 3200 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	entries, err := d.Bundle(0, 100)
	if err != nil || len(entries) != 100 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

// An export is somebody else's directory: it may hold anything.
func TestHostileDirectories(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, make([]byte, 3200), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(path string) error{
		"nothing":            func(string) error { return nil },
		"a link out of it":   func(path string) error { return os.Symlink(secret, path) },
		"a named pipe":       func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a directory":        func(path string) error { return os.Mkdir(path, 0o700) },
		"a giant":            func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) },
		"one byte too many":  func(path string) error { return os.WriteFile(path, make([]byte, 3201), 0o600) },
		"one byte too few":   func(path string) error { return os.WriteFile(path, make([]byte, 3199), 0o600) },
		"an endless device":  func(path string) error { return os.Symlink("/dev/zero", path) },
		"a link to a device": func(path string) error { return os.Symlink("../../../../../../../dev/zero", path) },
	} {
		dir := t.TempDir()
		for _, d := range []string{"/tile/0/000.p", "/tile/entries/000.p"} {
			if err := os.MkdirAll(dir+d, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := plant(dir + d + "/100"); err != nil {
				t.Fatal(err)
			}
		}
		if err := plant(dir + "/checkpoint"); err != nil {
			t.Fatal(err)
		}
		d, err := tiles.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Tile(tiles.At(100, 0, 0)); err == nil {
			t.Errorf("%s: it is a tile", name)
		}
		if _, err := d.Bundle(0, 100); err == nil {
			t.Errorf("%s: it is a bundle", name)
		}
		if signed, err := d.Checkpoint(); err == nil && !strings.HasPrefix(name, "one byte") {
			t.Errorf("%s: it is a checkpoint of %d bytes", name, len(signed))
		}
		d.Close()
	}
}

func TestParseBundle(t *testing.T) {
	t.Parallel()
	var bundle []byte
	for n := range uint64(20) {
		bundle, _ = tiles.AppendEntry(bundle, entry(n))
	}
	if entries, err := tiles.ParseBundle(bundle, 20); err != nil || len(entries) != 20 || !bytes.Equal(entries[19], entry(19)) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for i := range bundle {
		if _, err := tiles.ParseBundle(bundle[:i], 20); !errors.Is(err, tiles.ErrBundle) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	for _, width := range []int{0, 19, 21, 256} {
		if _, err := tiles.ParseBundle(bundle, width); !errors.Is(err, tiles.ErrBundle) {
			t.Errorf("as %d entries: %v", width, err)
		}
	}
}

func FuzzParseBundle(f *testing.F) {
	var bundle []byte
	for n := range uint64(20) {
		bundle, _ = tiles.AppendEntry(bundle, entry(n))
	}
	f.Add(bundle, 20)
	f.Add(bundle[:len(bundle)-1], 20)
	f.Fuzz(func(t *testing.T, data []byte, width int) {
		entries, err := tiles.ParseBundle(data, width)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			if again, err = tiles.AppendEntry(again, e); err != nil {
				t.Fatal(err)
			}
		}
		if len(entries) != max(width, 0) || !bytes.Equal(again, data) {
			t.Fatalf("%d entries of %d, which are %d bytes of %d", len(entries), width, len(again), len(data))
		}
	})
}
