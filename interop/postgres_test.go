package interop

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// asUser runs a program as another user of this machine.
func asUser(t testing.TB, user, name string, args ...string) (string, error) {
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
// a renewal of both ends' certificates: connections outlive the certificates that
// they were made with, and new ones use the new certificates.
func TestPostgresBehindASidecar(t *testing.T) {
	port, bin := startPostgres(t)
	out := freePort(t)
	r := start(t, fmt.Sprintf(postgresMesh, out, freePort(t), port))
	conn := []string{"-h", "127.0.0.1", "-p", fmt.Sprint(out), "-U", "postgres"}
	pg := func(program string, args ...string) string {
		t.Helper()
		got, err := asUser(t, "postgres", filepath.Join(bin, program), append(slices.Clone(conn), args...)...)
		if err != nil {
			t.Fatalf("%s: %v\n%s", program, err, got)
		}
		return got
	}
	if got := pg("psql", "-Atc", "select 6 * 7", "postgres"); strings.TrimSpace(got) != "42" {
		t.Fatalf("psql got %q", got)
	}
	pg("pgbench", "-i", "-q", "postgres")

	before, began := r.serials(), time.Now()
	// Beside the eight that stay connected, two connect anew for each transaction.
	anew := make(chan string, 1)
	go func() {
		got, err := asUser(t, "postgres", filepath.Join(bin, "pgbench"), append(slices.Clone(conn), "-n", "-S", "-C", "-c", "2", "-T", "10", "postgres")...)
		if err != nil {
			got += err.Error() + ": ERROR"
		}
		anew <- got
	}()
	stay := pg("pgbench", "-c", "8", "-T", "10", "postgres")
	for name, got := range map[string]string{"pgbench -c 8": stay, "pgbench -C": <-anew} {
		if !strings.Contains(got, "number of failed transactions: 0 (0.000%)") || strings.Contains(got, "ERROR") || strings.Contains(got, "FATAL") {
			t.Errorf("%s:\n%s", name, got)
		}
		t.Log(got)
	}
	after := r.serials()
	pg("psql", "-Atc", "select 1", "postgres")
	for _, service := range []string{"report", "db"} {
		if before[service] == after[service] {
			t.Errorf("%s still has certificate %s: no renewal was crossed", service, before[service])
		}
	}
	r.crossed(began, before, after)
}

// serials are those of the certificates that the services have now.
func (r *running) serials() map[string]string {
	r.t.Helper()
	st, err := r.api.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	all := map[string]string{}
	for _, s := range st.Services {
		all[s.Name] = s.Serial
	}
	return all
}

// crossed holds the record to what the run was for: eight connections made with
// the certificates of before that ended well after those were renewed, connections
// made anew all the time, and the last one made with the certificates of after.
func (r *running) crossed(began time.Time, before, after map[string]string) {
	r.t.Helper()
	for _, end := range []string{"outbound", "inbound"} {
		old, anew, last := 0, 0, (*audit.Event)(nil)
		r.until("the last connection is on record at the "+end+" end", func() bool {
			old, anew, last = 0, 0, nil
			for _, e := range r.list(api.ListEventsParams{From: "report", To: "db", Since: began}) {
				if e.Call == nil || e.Call.End != end {
					continue
				}
				if e.Outcome != audit.Allowed || e.Call.Error != "" {
					r.t.Errorf("%s: %s, %q", end, e.Outcome, e.Call.Error)
				}
				// What this end saw of the other one, and whose certificate that was.
				seen, service := e.TLS, "report"
				if end == "outbound" {
					seen, service = e.UpstreamTLS, "db"
				}
				whole := e.Call.Duration > (9 * time.Second).Microseconds()
				switch {
				case whole && seen.PeerSerial == before[service]:
					old++
				case seen.PeerSerial != before[service]:
					anew++
				}
				if seen.PeerSerial == after[service] && !whole {
					last = e
				}
			}
			return last != nil && old >= 8
		})
		if old != 8 || anew < 10 {
			r.t.Errorf("%s: %d connections outlived their certificates, want 8; %d were made with later ones", end, old, anew)
		}
	}
}
