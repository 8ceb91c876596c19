package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// The server's data as somebody has it who holds all of it: the database and the
// keys, the sealed heads too.
func saved(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(shortDir(t), "saved")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// put replaces the server's data with what was saved.
func put(t *testing.T, saved, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"master.key", "parley.db", "audit.heads", "audit.key"} { // CopyFS keeps no modes
		if err := os.Chmod(filepath.Join(dir, secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "ca"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for began := time.Now(); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("not in 30 s: %s", what)
		}
	}
}

// Whoever holds the server, its database, its keys and its heads can put an older
// state back, and write another past behind it that verifies: a host that has seen
// the first one says so, in its own log, in the status and in `audit verify`.
func TestAServerThatTakesBackItsPast(t *testing.T) {
	t.Parallel()
	for name, rewrite := range map[string]int{"an older backup": 0, "another past, longer than the first": 12} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := startFleet(t)
			dir := hostConfig(t, shortDir(t), f.token("a"))
			host(t, dir)
			f.agree("at first")
			halt(t, f.Node)
			older := saved(t, f.dir)
			f.mesh = startWith(t, f.cfg)
			for i := range 3 {
				f.change(i)
			}
			f.agree("before")
			halt(t, f.Node)
			put(t, older, f.dir)
			f.mesh = startWith(t, f.cfg)
			for i := range rewrite {
				f.change(100 + i)
			}
			waitFor(t, "the host has seen it", func() bool {
				return slices.ContainsFunc(f.status().Findings, func(x api.Finding) bool { return x.Code == string(fault.LogForked) })
			})
			v, err := f.api.Verify(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			said := ""
			for _, l := range v.Logs {
				said += l.Fault + l.Contradiction
			}
			if v.Intact || !strings.Contains(said, "host a says: the log two.example/srv-server-") || !strings.Contains(said, "seen on "+time.Now().UTC().Format("2006-01-02")) {
				t.Errorf("intact %v: %s", v.Intact, said)
			}
			l, err := f.api.Events(t.Context(), api.ListEventsParams{Action: string(audit.Forked)})
			if err != nil || len(l.Items) != 1 {
				t.Fatalf("%d events, %v", len(l.Items), err)
			}
			if e, err := audit.Decode(l.Items[0].Event); err != nil || e.Host != "a" || e.Reason != "fork_server" || e.Object.Name == "" {
				t.Errorf("recorded %s, %v", l.Items[0].Event, err)
			}
			for _, file := range []string{"server.pin", "server.fork"} {
				if _, err := os.Stat(filepath.Join(dir.Dir, "agent", "log", "pins", file)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// change makes the server record something.
func (f *fleet) change(i int) {
	f.t.Helper()
	f.apply(strings.Replace(f.text, "leaf_ttl: 10s", fmt.Sprintf("leaf_ttl: %ds", 20+i), 1))
}

// agree waits until the log verifies and host a has pinned all of it.
func (f *fleet) agree(when string) {
	f.t.Helper()
	waitFor(f.t, when+": a is connected", func() bool {
		st := f.status()
		return slices.ContainsFunc(st.Hosts, func(h api.HostStatus) bool { return h.Name == "a" && h.State == api.StateOK })
	})
	v, err := f.api.Verify(f.t.Context()) // the host looks at the log with that
	if err != nil || !v.Intact {
		f.t.Fatalf("%s: %+v, %v", when, v, err)
	}
}
