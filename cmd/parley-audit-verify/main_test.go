package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

const origin = "shop.example/vm-1"

// files are an export of ten entries, the proof of the fourth, the key and a pin of
// five entries, in a directory.
func files(t *testing.T) (dir, vkey string) {
	t.Helper()
	dir = t.TempDir()
	key, err := checkpoint.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	w, err := tiles.OpenWriter(filepath.Join(dir, "export"), origin)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var tree audit.Tree
	for n := range 10 {
		if n == 5 {
			put(t, filepath.Join(dir, "five.checkpoint"), key.Sign(nil, 5, tree.Root()))
		}
		tree.Append(audit.LeafHash(entry(n)))
		if err := w.Append(entry(n), audit.LeafHash(entry(n))); err != nil {
			t.Fatal(err)
		}
	}
	signed := key.Sign(nil, 10, tree.Root())
	if err := w.Finish(signed); err != nil {
		t.Fatal(err)
	}
	d, err := tiles.OpenDir(filepath.Join(dir, "export"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	hashes, err := tiles.Inclusion(t.Context(), d.Loader(10), 10, 3)
	if err != nil {
		t.Fatal(err)
	}
	proof := &tiles.ProofFile{Event: entry(3), Index: 3, Hashes: hashes, Checkpoint: signed}
	put(t, filepath.Join(dir, "event.tlog-proof"), proof.AppendText(nil))
	put(t, filepath.Join(dir, "log.vkey"), []byte(key.Verifier().String()+"\n"))
	return dir, key.Verifier().String()
}

func entry(n int) []byte {
	return fmt.Appendf(nil, `{"schema":1,"id":"%d","time":"2026-11-23T20:00:0%dZ"}`, n, n)
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// call runs the program with arguments in which DIR and KEY stand for what files
// made.
func call(t *testing.T, dir, vkey, args string) (code int, out, errs string) {
	t.Helper()
	words := strings.Fields(strings.NewReplacer("DIR", dir, "KEY", vkey).Replace(args))
	var o, e bytes.Buffer
	code = run(words, &o, &e)
	return code, strings.ReplaceAll(o.String(), dir, "DIR"), strings.ReplaceAll(e.String(), dir, "DIR")
}

func TestIntact(t *testing.T) {
	t.Parallel()
	dir, vkey := files(t)
	for _, args := range []string{
		"--key KEY DIR/export", "-key DIR/log.vkey DIR/export", "--key KEY --pin DIR/five.checkpoint DIR/export", "--key KEY DIR/event.tlog-proof", "--key KEY --pin DIR/export/checkpoint DIR/event.tlog-proof",
	} {
		code, out, errs := call(t, dir, vkey, args)
		if code != 0 || errs != "" || !strings.Contains(out, "\nintact: ") {
			t.Errorf("%s: exit %d\n%s%s", args, code, out, errs)
		}
		code, out, errs = call(t, dir, vkey, "--json "+args)
		var report struct {
			Intact bool   `json:"intact"`
			Origin string `json:"origin"`
		}
		if err := json.Unmarshal([]byte(out), &report); code != 0 || errs != "" || err != nil || !report.Intact || report.Origin != origin {
			t.Errorf("--json %s: exit %d, %v\n%s%s", args, code, err, out, errs)
		}
	}
	_, out, _ := call(t, dir, vkey, "--key KEY --pin DIR/five.checkpoint DIR/export")
	head, rest, _ := strings.Cut(out, "root ")
	want := "  ok  log         shop.example/vm-1, 10 entries, 2026-11-23T20:00:00Z to 2026-11-23T20:00:09Z\n  ok  checkpoint  signed by the log: "
	tail := "\n  ok  pin         DIR/five.checkpoint: the log begins with its 5 entries\n\nintact: 10 of 10 entries recomputed\n"
	if head != want || rest[64:] != tail {
		t.Errorf("%s", out)
	}
}

func TestNotIntact(t *testing.T) {
	t.Parallel()
	dir, vkey := files(t)
	bundle := filepath.Join(dir, "export/tile/entries/000.p/10")
	data, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	put(t, bundle, bytes.Replace(data, []byte(`"id":"4"`), []byte(`"id":"5"`), 1))
	code, out, _ := call(t, dir, vkey, "--key KEY DIR/export")
	if want := "NOT INTACT: 9 of 10 entries recomputed, and this is wrong:\n  NO  entry 4, between 2026-11-23T20:00:03Z and 2026-11-23T20:00:05Z: its leaf hash is not in the tree (tile/entries/000.p/10)\n"; code != 1 || !strings.HasSuffix(out, want) {
		t.Errorf("exit %d\n%s", code, out)
	}
	var report struct {
		Intact   bool `json:"intact"`
		Findings []struct {
			Kind    string         `json:"kind"`
			Entries map[string]int `json:"entries"`
			After   string         `json:"after"`
		} `json:"findings"`
	}
	code, out, _ = call(t, dir, vkey, "--json --key KEY DIR/export")
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 1 || report.Intact || len(report.Findings) != 1 ||
		report.Findings[0].Kind != "entry" || report.Findings[0].Entries["first"] != 4 || report.Findings[0].After != "2026-11-23T20:00:03Z" {
		t.Errorf("exit %d, %v\n%s", code, err, out)
	}
	proof := filepath.Join(dir, "event.tlog-proof")
	data, err = os.ReadFile(proof)
	if err != nil {
		t.Fatal(err)
	}
	put(t, proof, bytes.Replace(data, []byte("index 3"), []byte("index 4"), 1))
	if code, out, _ := call(t, dir, vkey, "--key KEY DIR/event.tlog-proof"); code != 1 || !strings.Contains(out, "NOT INTACT") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	dir, vkey := files(t)
	put(t, filepath.Join(dir, "large"), make([]byte, 1<<20))
	for args, want := range map[string]string{
		"":                                        "error: one export or proof is to be named, not 0\nhint: parley-audit-verify --help\n",
		"--key KEY DIR/export DIR/export":         "error: one export or proof is to be named, not 2\n",
		"--what DIR/export":                       "error: flag provided but not defined: -what\n",
		"DIR/export":                              "error: no public key of the log was given: without it anybody could have signed\nhint: give the log's public key",
		"--key DIR/none DIR/export":               `error: "DIR/none" is neither a file nor a public key`,
		"--key DIR/export DIR/export":             "error: read DIR/export: is a directory\n",
		"--key DIR/five.checkpoint DIR/export":    "error: DIR/five.checkpoint: not a list of public keys: line 1",
		"--key DIR/large DIR/export":              "error: DIR/large: it has more than the 65536 bytes that such a file may have\n",
		"--key KEY DIR/none":                      "error: stat DIR/none: no such file or directory\nhint: name the directory of an export, or a proof",
		"--key KEY DIR":                           "error: DIR is no export of a log: ",
		"--key KEY DIR/log.vkey":                  "error: DIR/log.vkey: not a proof of one event: ",
		"--key KEY DIR/large":                     "error: DIR/large: it has more than",
		"--key KEY --pin DIR/log.vkey DIR/export": "error: DIR/log.vkey: the pin is of no use here: not a signed checkpoint",
		"--key KEY --pin DIR/none DIR/export":     "error: open DIR/none: no such file or directory\n",
		"--key KEY --pin DIR/five.checkpoint DIR/event.tlog-proof": "error: DIR/five.checkpoint: the pin is of no use here: it is of 5 entries and the proof of 10",
	} {
		if code, out, errs := call(t, dir, vkey, args); code != 2 || out != "" || !strings.HasPrefix(errs, want) || !strings.Contains(errs, "hint: ") {
			t.Errorf("%s: exit %d\n%s%s\nwant\n%s", args, code, out, errs, want)
		}
	}
	if code, out, errs := call(t, dir, vkey, "--help"); code != 0 || out != usage || errs != "" {
		t.Errorf("--help: exit %d\n%s%s", code, out, errs)
	}
}

// It is worth what its imports are worth: the standard library, x/mod's notes and
// trees, and the audit log's own rooms.
func TestImports(t *testing.T) {
	t.Parallel()
	const module = "github.com/parleymesh/parley/"
	allowed := map[string]bool{
		"internal/audit": true, "internal/audit/checkpoint": true, "internal/audit/offline": true, "internal/audit/tiles": true, "internal/identity": true, "internal/visible": true,
		"golang.org/x/mod/sumdb/note": true, "golang.org/x/mod/sumdb/tlog": true,
	}
	seen := map[string]bool{}
	var visit func(dir string)
	visit = func(dir string) {
		seen[dir] = true
		sources, err := filepath.Glob(filepath.Join("../..", dir, "*.go"))
		if err != nil || len(sources) == 0 {
			t.Fatalf("%s: no sources, %v", dir, err)
		}
		for _, name := range sources {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range file.Imports {
				path, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				ours, isOurs := strings.CutPrefix(path, module)
				if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
					if path == "net" || strings.HasPrefix(path, "net/http") || path == "database/sql" || path == "os/exec" {
						t.Errorf("%s imports %s", name, path)
					}
					continue
				}
				if !allowed[ours] {
					t.Errorf("%s imports %s", name, path)
				} else if isOurs && !seen[ours] {
					visit(ours)
				}
			}
		}
	}
	visit("cmd/parley-audit-verify")
	if !seen["internal/audit/offline"] {
		t.Error("it does not even import the verifier")
	}
}
