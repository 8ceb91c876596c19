package interop

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

// A tlog is a log that grows, and its export.
type tlog struct {
	dir, vkey string // the export, and the file of the public key
	key       *checkpoint.Signer
	tree      audit.Tree
}

func newTlog(t *testing.T) *tlog {
	t.Helper()
	key, err := checkpoint.GenerateKey(checkpoint.Origin("interop.example", "vm-1"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := &tlog{dir: filepath.Join(dir, "export"), vkey: filepath.Join(dir, "log.vkey"), key: key}
	if err := os.WriteFile(l.vkey, []byte(key.Verifier().String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// grow lets the log and its export have size entries.
func (l *tlog) grow(t *testing.T, size uint64) {
	t.Helper()
	w, err := tiles.OpenWriter(l.dir, l.key.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for n := w.Size(); n < size; n++ {
		body := fmt.Appendf(nil, `{"schema":1,"id":"%026d"}`, n)
		l.tree.Append(audit.LeafHash(body))
		if err := w.Append(body, audit.LeafHash(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(l.key.Sign(nil, size, l.tree.Root())); err != nil {
		t.Fatal(err)
	}
}

// fsck is what Tessera's fsck says of the export. It waits for ever on some that
// are not intact, so it gets a time in which it has to have said so.
func (l *tlog) fsck(t *testing.T, limit time.Duration) (accepted bool, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, suite(t, "github.com/transparency-dev/tessera/cmd/fsck"),
		"--storage_url=file://"+l.dir+"/", "--public_key="+l.vkey, "--ui=false", "--N=2")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return err == nil && strings.Contains(string(out), "Successfully fsck'd log with size"), fmt.Sprintf("%v\n%s", err, out)
}

// buildVerifier builds parley-audit-verify beside parley.
var buildVerifier = sync.OnceValue(func() error {
	build := exec.Command("go", "build", "-o", filepath.Dir(parleyBinary), "../cmd/parley-audit-verify")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build parley-audit-verify: %w\n%s", err, out)
	}
	return nil
})

// ours is the exit code of parley-audit-verify.
func (l *tlog) ours(t *testing.T) (code int, said string) {
	t.Helper()
	if err := buildVerifier(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(parleyBinary), "parley-audit-verify"), "--key", l.vkey, l.dir)
	out, _ := cmd.CombinedOutput() // its exit code is what is asked for
	return cmd.ProcessState.ExitCode(), string(out)
}

// What we export Tessera accepts, however it grew, and both of us accept it no
// longer with one bit changed.
func TestTesseraAcceptsAnExport(t *testing.T) {
	t.Parallel()
	l := newTlog(t)
	for _, size := range []uint64{1, 255, 256, 257, 1000, 70_000} {
		l.grow(t, size)
		if accepted, said := l.fsck(t, time.Minute); !accepted || !strings.Contains(said, fmt.Sprintf("size %d ", size)) {
			t.Fatalf("Tessera does not accept %d entries: %s", size, said)
		}
		if code, said := l.ours(t); code != 0 {
			t.Fatalf("we do not accept %d entries ourselves: exit %d\n%s", size, code, said)
		}
	}
	for _, name := range []string{"tile/entries/100", "tile/0/100", "tile/1/000", "tile/2/000.p/1", "tile/entries/273.p/112", "checkpoint"} {
		path := filepath.Join(l.dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if accepted, said := l.fsck(t, 5*time.Second); accepted {
			t.Errorf("%s: Tessera accepts a changed bit: %s", name, said)
		}
		if code, said := l.ours(t); code != 1 || !strings.Contains(said, name) {
			t.Errorf("%s: exit %d\n%s", name, code, said)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if accepted, said := l.fsck(t, time.Minute); !accepted {
		t.Errorf("it is as it was, and not accepted: %s", said)
	}
}

// A log that Tessera wrote, in two goes and with our key, is intact to us, and not
// with one bit changed.
func TestWeAcceptALogOfTesseras(t *testing.T) {
	t.Parallel()
	l := newTlog(t)
	work := filepath.Dir(l.dir)
	secret := filepath.Join(work, "log.key")
	if err := os.WriteFile(secret, l.key.Marshal(), 0o600); err != nil {
		t.Fatal(err)
	}
	for batch := range 2 {
		in := filepath.Join(work, fmt.Sprint("entries", batch))
		if err := os.Mkdir(in, 0o700); err != nil {
			t.Fatal(err)
		}
		for n := range 300 {
			if err := os.WriteFile(filepath.Join(in, fmt.Sprint(n)), fmt.Appendf(nil, "entry %d of %d", n, batch), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, suite(t, "github.com/transparency-dev/tessera/cmd/examples/posix-oneshot"),
			"--storage_dir="+l.dir, "--private_key="+secret, "--entries="+in+"/*")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if code, said := l.ours(t); code != 0 || !strings.Contains(said, "600 of 600 entries recomputed") {
		t.Fatalf("exit %d\n%s", code, said)
	}
	path := filepath.Join(l.dir, "tile/entries/001")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, said := l.ours(t); code != 1 || !strings.Contains(said, "entry 511: its leaf hash is not in the tree (tile/entries/001)") {
		t.Errorf("exit %d\n%s", code, said)
	}
}
