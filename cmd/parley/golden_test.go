package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// now is the time of every golden file.
var now = time.Date(2026, 11, 23, 18, 52, 8, 0, time.UTC)

type stopped struct{}

func (stopped) Now() time.Time { return now }

func (stopped) Sleep(ctx context.Context, _ time.Duration) error { <-ctx.Done(); return ctx.Err() }

// questions are commands with what the server answers them. In testdata/api each
// file is one reply.
var questions = []struct {
	name  string
	args  string
	reply string // file in testdata/api
	exit  int
}{
	{"status", "status", "status.json", 0},
	{"status_check", "status --check", "status.json", 1},
	{"status_wide", "status -o wide", "status.json", 0},
	{"status_empty", "status --check", "status_empty.json", 0},
	{"status_plaintext", "status --check", "status_plaintext.json", 1},
	{"why_denied", "why web payments POST /charge", "why_denied.json", 1},
	{"why_scope", "why edge web POST /shop/buy", "why_scope.json", 1},
	{"why_decision", "why 01K3Q8Z4M7QK2V9D3B6H8N5R1T", "why_decision.json", 1},
	{"why_failed", "why 01K3Q8Z4M7QK2V9D3B6H8N5R1T", "why_failed.json", 0},
	{"why_allowed", "why web orders GET /orders/7", "why_allowed.json", 0},
	{"verify", "verify", "verify_pass.json", 0},
	{"verify_fail", "verify web orders", "verify_fail.json", 1},
	{"verify_inconclusive", "verify", "verify_inconclusive.json", 3},
	{"verify_refused", "verify web orders", "verify_refused.json", 1},
	{"apply_dry_run", "apply -f testdata/mesh/parley.yaml --dry-run", "apply_dry_run.json", 0},
	{"apply_exit_code", "apply -f testdata/mesh/parley.yaml -n --exit-code", "apply_dry_run.json", 1},
	{"apply", "apply -f testdata/mesh/parley.yaml", "apply.json", 0},
	{"apply_not_running", "apply -f testdata/mesh/parley.yaml", "apply_not_running.json", 3},
	{"apply_partly", "apply -f testdata/mesh/parley.yaml", "apply_partly.json", 3},
	{"apply_errors", "apply -f testdata/mesh/parley.yaml", "apply_errors.json", 2},
	{"history", "config history", "revisions.json", 0},
	{"show", "config show 3", "revision.json", 0},
	{"diff", "config diff 3 4", "diff.json", 0},
	{"rollback", "config rollback 3", "apply.json", 0},
	{"key_create", "key create ci --scope orders.read", "new_key.json", 0},
	{"key_list", "key list", "keys.json", 0},
	{"key_revoke", "key revoke 4kZ9aQx3B0gT", "empty", 0},
	{"audit_search", "audit search --limit 3", "events.json", 0},
	{"audit_tail", "audit tail -n 3", "tail.json", 0},
	{"audit_follow", "audit tail -n 3 --follow", "tail.json", 0},
	{"audit_show", "audit show 01K3Q8Z4M7QK2V9D3B6H8N5R1T", "event.json", 0},
	{"audit_verify", "audit verify", "verified.json", 0},
	{"audit_verify_broken", "audit verify", "broken.json", 1},
	{"audit_show_pruned", "audit show 01K3Q8Z4M7QK2V9D3B6H8N5R1T", "pruned.json", 0},
	{"audit_search_pruned", "audit search", "events_pruned.json", 0},
	{"audit_verify_pruned", "audit verify", "verified_pruned.json", 0},
	{"audit_erase", "audit erase --subject alice", "erasable.json", 0},
	{"audit_erased", "audit erase --subject alice --yes", "erased.json", 0},
	{"audit_erase_nobody", "audit erase --subject nobody", "erasable_nobody.json", 0},
	{"cert_list", "cert list", "certificates.json", 0},
	{"ca_show", "ca show", "bundle.pem", 0},
	{"not_found", "config show 99", "not_found.json", 2},
	{"conflict", "apply -f testdata/mesh/parley.yaml --expect 3", "conflict.json", 1},
}

// looks are the ways in which an answer is given.
var looks = []struct {
	name string
	flag string
	tty  bool
	cols int
}{
	{"piped", "", false, 0},
	{"json", "--json", false, 0},
	{"100", "--color=never", true, 100},
	{"80", "--color=never", true, 80},
	{"50", "--color=never", true, 50},
	{"40", "--color=never", true, 40},
	{"color", "--color=always", true, 100},
	{"utf8", "--color=never", true, 80},
}

// TestAnswers runs every question in every look against a server of recorded
// replies and compares what is written with testdata/golden.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, q := range questions {
		t.Run(q.name, func(t *testing.T) {
			t.Parallel()
			socket := serve(t, q.reply)
			var got strings.Builder
			for _, l := range looks {
				out, errs, exit := ask(t, socket, strings.TrimSpace(q.args+" "+l.flag), l.name == "utf8", l.tty, l.cols)
				if exit != q.exit {
					t.Errorf("%s: exit code %d, want %d\n%s%s", l.name, exit, q.exit, out, errs)
				}
				if l.flag == "--json" {
					oneDocument(t, out, errs, strings.Contains(q.args, "tail"))
				}
				got.WriteString("=== " + l.name + "\n" + visible(out))
				if errs != "" {
					got.WriteString("--- standard error\n" + visible(errs))
				}
			}
			golden(t, q.name, got.String())
		})
	}
}

// oneDocument wants exactly one document on standard output, or one a line of a
// stream, and nothing on standard error.
func oneDocument(t *testing.T, out, errs string, stream bool) {
	t.Helper()
	n := 0
	for d := json.NewDecoder(strings.NewReader(out)); ; n++ {
		var doc struct {
			Version int
			Kind    string
			Data    json.RawMessage
		}
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil || doc.Version != 1 || doc.Kind == "" || len(doc.Data) == 0 {
			t.Fatalf("not a document: %v\n%s", err, out)
		}
	}
	if n == 0 || n > 1 && !stream || errs != "" {
		t.Errorf("%d documents, and on standard error %q", n, errs)
	}
}

// TestNarrow wants every table within its terminal.
func TestNarrow(t *testing.T) {
	t.Parallel()
	for _, q := range questions {
		switch q.name {
		case "status", "history", "key_list", "audit_search", "audit_tail", "audit_verify", "cert_list", "diff", "verify":
		default:
			continue
		}
		t.Run(q.name, func(t *testing.T) {
			t.Parallel()
			socket := serve(t, q.reply)
			for _, cols := range []int{60, 70, 80, 90, 100} {
				out, _, _ := ask(t, socket, q.args+" --color=never", false, true, cols)
				for line := range strings.Lines(out) {
					command := strings.HasPrefix(strings.TrimSpace(line), "parley ") // stays whole, to be pasted
					if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > cols && strings.HasPrefix(line, "  ") && !command {
						t.Errorf("%d columns in a terminal of %d: %s", n, cols, line)
					}
				}
			}
		})
	}
}

func ask(t *testing.T, socket, args string, utf8, tty bool, cols int) (out, errs string, exit int) {
	t.Helper()
	var o, e bytes.Buffer
	fields := append(strings.Fields(args), "--api", socket)
	a := &app{
		in: strings.NewReader(""), out: &o, err: &e, args: fields, clock: stopped{}, tty: tty, width: cols,
		getenv: func(name string) string {
			if utf8 && name == "LC_ALL" {
				return "C.UTF-8"
			}
			return ""
		},
	}
	exit = a.exit(t.Context(), a.execute(t.Context(), fields))
	return o.String(), e.String(), exit
}

// serve answers every request with one recorded reply; a problem has the status
// that it names.
func serve(t *testing.T, name string) (socket string) {
	t.Helper()
	var body []byte
	if name != "empty" {
		var err error
		if body, err = os.ReadFile(filepath.Join("testdata/api", name)); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "parley") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case bytes.Contains(body, []byte(`"faults": [`)):
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusBadRequest)
		case len(body) == 0:
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodPost && r.URL.Path == "/v1/keys":
			w.WriteHeader(http.StatusCreated)
		default:
			w.Header().Set("Content-Type", "application/json")
		}
		_, _ = w.Write(body)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return socket
}

// visible writes escape sequences so that a reviewer sees them.
func visible(s string) string { return strings.ReplaceAll(s, "\x1b", "<ESC>") }

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata/golden", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test -run TestAnswers -update writes it):\n%s", file, diff)
	}
}
