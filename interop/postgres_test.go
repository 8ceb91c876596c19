package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// asUser runs a program as another user of this machine.
func asUser(t *testing.T, user, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(need(t, "runuser", "/sbin/runuser"), append([]string{"-u", user, "--", name}, args...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// startPostgres runs a server of its own, as the user postgres, until the test ends.
func startPostgres(t *testing.T) (port int, bin string) {
	t.Helper()
	bin = filepath.Dir(need(t, "/usr/lib/postgresql/*/bin/postgres"))
	dir := shortDir(t)
	run(t, "chown", "postgres", dir)
	data := filepath.Join(dir, "data")
	if out, err := asUser(t, "postgres", filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "--no-sync"); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	port = freePort(t)
	opts := fmt.Sprintf("-p %d -k %s -c listen_addresses=127.0.0.1 -c fsync=off", port, dir)
	if out, err := asUser(t, "postgres", filepath.Join(bin, "pg_ctl"), "-D", data, "-w", "-l", filepath.Join(dir, "log"), "-o", opts, "start"); err != nil {
		t.Fatalf("pg_ctl: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := asUser(t, "postgres", filepath.Join(bin, "pg_ctl"), "-D", data, "-m", "immediate", "stop"); err != nil {
			t.Errorf("stop postgres: %v\n%s", err, out)
		}
	})
	return port, bin
}

const postgresMesh = `
trust_domain: interop.example
leaf_ttl: 12s
services:
  report:
    runs_as: {user: postgres}
    calls: [{to: db, listen: "127.0.0.1:%[1]d"}]
  db:
    runs_as: {user: postgres}
    inbound: {listen: "127.0.0.1:%[2]d", app: "127.0.0.1:%[3]d", protocol: tcp}
    allow:
      - {from: [report]}
`

// TestPostgresBehindASidecar uses it with psql and drives it with pgbench across
// a renewal: connections outlive the certificates that they were made with.
func TestPostgresBehindASidecar(t *testing.T) {
	port, bin := startPostgres(t)
	out := freePort(t)
	r := start(t, fmt.Sprintf(postgresMesh, out, freePort(t), port))
	conn := []string{"-h", "127.0.0.1", "-p", fmt.Sprint(out), "-U", "postgres"}

	got, err := asUser(t, "postgres", filepath.Join(bin, "psql"), append(conn, "-Atc", "select 6 * 7", "postgres")...)
	if err != nil || strings.TrimSpace(got) != "42" {
		t.Fatalf("psql: %v\n%s", err, got)
	}
	if got, err := asUser(t, "postgres", filepath.Join(bin, "pgbench"), append(conn, "-i", "-q", "postgres")...); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, got)
	}
	began := time.Now()
	got, err = asUser(t, "postgres", filepath.Join(bin, "pgbench"), append(conn, "-c", "8", "-T", "10", "postgres")...)
	if err != nil || !strings.Contains(got, "number of failed transactions: 0 (0.000%)") || strings.Contains(got, "ERROR") {
		t.Fatalf("pgbench: %v\n%s", err, got)
	}
	t.Log(got)
	renewed := r.events(1, api.ListEventsParams{Action: string(audit.SVIDIssued), Since: began})
	if len(renewed) == 0 {
		t.Error("no certificate was renewed during the run")
	}
	// psql, pgbench -i and eight clients, besides pgbench's own first connections.
	for _, end := range []string{"inbound", "outbound"} {
		n := 0
		for _, e := range r.events(20, api.ListEventsParams{From: "report", To: "db"}) {
			if e.Call != nil && e.Call.End == end && e.Outcome == audit.Allowed {
				n++
			}
		}
		if n < 10 {
			t.Errorf("%d connections on record at the %s end, want 10 at least", n, end)
		}
	}
}

// TestAnotherUserAndAnotherProgramAreRefused holds outbound listener and Workload
// API to who connects, not to where from.
func TestAnotherUserAndAnotherProgramAreRefused(t *testing.T) {
	curl, app := need(t, "curl"), startNginx(t)
	out := freePort(t)
	mesh := fmt.Sprintf(nginxMesh, curl, out, freePort(t), app)
	mesh = strings.Replace(mesh, fmt.Sprintf("{exe: %s}", curl), fmt.Sprintf("{exe: %s, user: root}", curl), 1)
	r := start(t, mesh)
	url := fmt.Sprintf("http://127.0.0.1:%d/public/a", out)
	if got := run(t, curl, "-s", url); !strings.Contains(got, "nginx saw") {
		t.Fatalf("the service itself got %q", got)
	}
	other := filepath.Join(shortDir(t), "curl2")
	run(t, "cp", curl, other)
	run(t, "chmod", "755", other)
	for name, got := range map[string]string{
		"another user":    must(asUser(t, "nobody", curl, "-s", "-i", url)),
		"another program": run(t, other, "-s", "-i", url),
	} {
		if !strings.Contains(got, " 403 ") || strings.Contains(got, "nginx saw") {
			t.Errorf("%s got:\n%s", name, got)
			continue
		}
		e := r.events(1, api.ListEventsParams{Action: string(audit.ProcessRefused)})
		if id := header(got, "Parley-Decision"); !hasID(e, id) {
			t.Errorf("%s: decision %q is not on record", name, id)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(shortDir(t), "client")
	run(t, "cp", self, mine)
	run(t, "chmod", "755", mine)
	for name, cmd := range map[string]*exec.Cmd{
		"another user":    exec.Command(need(t, "runuser", "/sbin/runuser"), "-u", "nobody", "--", mine),
		"another program": exec.Command(mine),
	} {
		cmd.Dir = "/"
		cmd.Env = []string{"PARLEY_INTEROP_ROLE=fetch", "SPIFFE_ENDPOINT_SOCKET=unix://" + r.socket()}
		got, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(got), "PermissionDenied") {
			t.Errorf("Workload API, %s: %v\n%s", name, err, got)
		}
	}
	if e := r.events(2, api.ListEventsParams{Action: string(audit.WorkloadRefused)}); len(e) < 2 {
		t.Errorf("%d refusals of the Workload API on record, want 2", len(e))
	}
}

func must(out string, _ error) string { return out }

func hasID(events []*audit.Event, id string) bool {
	for _, e := range events {
		if e.ID == id {
			return true
		}
	}
	return false
}
