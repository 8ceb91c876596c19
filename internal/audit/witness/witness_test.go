package witness_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/witness"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/mod/sumdb/tlog"
)

const origin = "shop.example/vm-server-3c02f39c"

// A log is a growing tree with all its hashes.
type log struct {
	t      *testing.T
	signer *checkpoint.Signer
	hashes []tlog.Hash
	size   int64
}

func newLog(t *testing.T) *log {
	t.Helper()
	return &log{t: t, signer: key(t, origin)}
}

func key(t *testing.T, name string) *checkpoint.Signer {
	t.Helper()
	s, err := checkpoint.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ReadHashes implements tlog.HashReader.
func (l *log) ReadHashes(indexes []int64) (out []tlog.Hash, err error) {
	for _, i := range indexes {
		out = append(out, l.hashes[i])
	}
	return out, nil
}

func (l *log) grow(n int, what string) {
	l.t.Helper()
	for range n {
		more, err := tlog.StoredHashes(l.size, fmt.Appendf(nil, "%s %d", what, l.size), l)
		if err != nil {
			l.t.Fatal(err)
		}
		l.hashes = append(l.hashes, more...)
		l.size++
	}
}

// fork is another log with the first n entries and the key of l.
func (l *log) fork(n int64) *log {
	return &log{t: l.t, signer: l.signer, hashes: append([]tlog.Hash(nil), l.hashes[:tlog.StoredHashIndex(0, n)]...), size: n}
}

func (l *log) note() []byte {
	l.t.Helper()
	root, err := tlog.TreeHash(l.size, l)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.signer.Sign(nil, uint64(l.size), audit.Hash(root))
}

func (l *log) proof(from uint64) (out []audit.Hash) {
	l.t.Helper()
	if from == 0 || int64(from) > l.size {
		return nil
	}
	p, err := tlog.ProveTree(l.size, int64(from), l)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, h := range p {
		out = append(out, audit.Hash(h))
	}
	return out
}

type fixed struct{ clock.System }

func (fixed) Now() time.Time { return time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC) }

// open is a witness on dir, always the same one.
func open(t *testing.T, dir string, signer *checkpoint.Signer) *witness.Witness {
	t.Helper()
	w, err := witness.Open(dir, signer, fixed{})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (l *log) show(w *witness.Witness) ([]byte, error) {
	l.t.Helper()
	size := w.Seen("server")
	return w.Take("server", l.note(), l.signer.Verifier(), l.proof(size))
}

func TestALogThatGrows(t *testing.T) {
	t.Parallel()
	dir, own, l := filepath.Join(t.TempDir(), "pins"), key(t, "shop.example/host"), newLog(t)
	for i := range 40 {
		w := open(t, dir, own) // each time after a start
		cosigned, err := l.show(w)
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if size := w.Seen("server"); size != uint64(l.size) {
			t.Fatalf("step %d: seen %d", i, size)
		}
		n, err := checkpoint.Open(cosigned, l.signer.Verifier(), own.Witness())
		if err != nil || len(n.Cosignatures) != 1 || !n.Cosignatures[0].Time.Equal(fixed{}.Now()) {
			t.Fatalf("step %d: cosigned %v, %v", i, n, err)
		}
		if len(w.Forks()) != 0 {
			t.Fatal(w.Forks())
		}
		l.grow(i%7, "entry")
	}
	kept, err := os.ReadFile(filepath.Join(dir, "server.pin"))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := checkpoint.Unverified(kept); err != nil || c.Origin != origin {
		t.Errorf("%v, %v", c, err)
	}
}

func TestALogThatIsNotWhatItWas(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		shown func(l *log) ([]byte, *checkpoint.Signer, []audit.Hash)
		why   string
	}{
		"an older backup": {func(l *log) ([]byte, *checkpoint.Signer, []audit.Hash) {
			return l.fork(60).note(), l.signer, nil
		}, "shorter"},
		"its tail rewritten, with the key": {func(l *log) ([]byte, *checkpoint.Signer, []audit.Hash) {
			f := l.fork(99)
			f.grow(1, "rewritten")
			return f.note(), l.signer, nil
		}, "another root at the same length"},
		"a backup that went on": {func(l *log) ([]byte, *checkpoint.Signer, []audit.Hash) {
			f := l.fork(60)
			f.grow(70, "rewritten")
			return f.note(), l.signer, f.proof(100)
		}, "did not grow from that"},
		"grown, and no proof": {func(l *log) ([]byte, *checkpoint.Signer, []audit.Hash) {
			l.grow(1, "entry")
			return l.note(), l.signer, nil
		}, "did not grow from that"},
		"grown, and the proof of another size": {func(l *log) ([]byte, *checkpoint.Signer, []audit.Hash) {
			l.grow(28, "entry")
			return l.note(), l.signer, l.proof(99)
		}, "did not grow from that"},
		"a proof without end": {func(l *log) ([]byte, *checkpoint.Signer, []audit.Hash) {
			l.grow(1, "entry")
			return l.note(), l.signer, make([]audit.Hash, 1<<20)
		}, "longer than any"},
		"another log": {func(*log) ([]byte, *checkpoint.Signer, []audit.Hash) {
			other := key(t, "shop.example/vm-server-00000000")
			return other.Sign(nil, 200, audit.Hash{}), other, nil
		}, "another log"},
		"another key": {func(l *log) ([]byte, *checkpoint.Signer, []audit.Hash) {
			l.signer = key(t, origin)
			return l.note(), l.signer, nil
		}, "another key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, own, l := t.TempDir(), key(t, "shop.example/host"), newLog(t)
			l.grow(100, "entry")
			w := open(t, dir, own)
			if _, err := l.show(w); err != nil {
				t.Fatal(err)
			}
			good := l.note()
			note, signer, proof := tt.shown(l)
			for range 2 { // and after a start
				var fork *witness.Fork
				got, err := w.Take("server", note, signer.Verifier(), proof)
				if !errors.As(err, &fork) || got != nil || !strings.Contains(err.Error(), tt.why) {
					t.Fatalf("%q, %v", got, err)
				}
				if fork.Pinned.Size != 100 || fork.Origin != origin || !fork.Seen.Equal(fixed{}.Now()) || fork.Shown.Root == fork.Pinned.Root && tt.why != "another key" {
					t.Errorf("%+v", fork)
				}
				if size := w.Seen("server"); size != 100 {
					t.Errorf("pinned at %d", size)
				}
				w = open(t, dir, own)
				if all := w.Forks(); len(all) != 1 || all[0].Shown != fork.Shown || all[0].Pinned != fork.Pinned {
					t.Errorf("after a start: %v", all)
				}
			}
			evidence, err := os.ReadFile(filepath.Join(dir, "server.fork"))
			if err != nil || !bytes.Equal(evidence, note) {
				t.Errorf("the evidence: %v\n%s", err, evidence)
			}
			if signer == l.signer && tt.why != "another key" { // the true log is still taken
				if _, err := w.Take("server", good, l.signer.Verifier(), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// What is not even a checkpoint of that key says nothing about the log.
func TestWhatIsNoEvidence(t *testing.T) {
	t.Parallel()
	w, l := open(t, t.TempDir(), key(t, "shop.example/host")), newLog(t)
	l.grow(3, "entry")
	if _, err := l.show(w); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"nothing": nil, "noise": []byte("x"), "unsigned": key(t, origin).Sign(nil, 1, audit.Hash{})} {
		var fork *witness.Fork
		if _, err := w.Take("server", data, l.signer.Verifier(), nil); err == nil || errors.As(err, &fork) || len(w.Forks()) > 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPinsThatAreDamaged(t *testing.T) {
	t.Parallel()
	for _, suffix := range []string{".pin", ".vkey", ".fork"} {
		for name, harm := range map[string]func(path string) error{
			"emptied": func(path string) error { return os.Truncate(path, 0) },
			"flooded": func(path string) error { return os.Truncate(path, 1<<20) },
			"changed": func(path string) error {
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				text[len(text)/2] ^= 0x80
				return os.WriteFile(path, text, 0o600)
			},
		} {
			t.Run(name+suffix, func(t *testing.T) {
				t.Parallel()
				dir, own, l := t.TempDir(), key(t, "shop.example/host"), newLog(t)
				l.grow(3, "entry")
				w := open(t, dir, own)
				if _, err := l.show(w); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Take("server", l.fork(2).note(), l.signer.Verifier(), nil); err == nil {
					t.Fatal("a fork was taken")
				}
				if err := harm(filepath.Join(dir, "server"+suffix)); err != nil {
					t.Fatal(err)
				}
				_, err := witness.Open(dir, own, fixed{})
				if known := fault.All(err); len(known) != 1 || known[0].Code != fault.LogBroken || !strings.Contains(err.Error(), ".pin is damaged") {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

// A disk that fails pins nothing, and is no fork.
func TestADiskThatFails(t *testing.T) {
	t.Parallel()
	dir, l := filepath.Join(t.TempDir(), "pins"), newLog(t)
	w := open(t, dir, key(t, "shop.example/host"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	l.grow(1, "entry")
	var fork *witness.Fork
	if got, err := l.show(w); err == nil || errors.As(err, &fork) || got != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if size := w.Seen("server"); size != 0 {
		t.Errorf("pinned at %d", size)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := l.show(w); err != nil {
		t.Error(err)
	}
}
