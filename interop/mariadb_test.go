package interop

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// startMariaDB runs a server of its own, as the user mysql, until the test ends.
func startMariaDB(t *testing.T) (port int) {
	t.Helper()
	dir := shortDir(t)
	run(t, "chown", "mysql", dir)
	data := filepath.Join(dir, "data")
	run(t, need(t, "mariadb-install-db"), "--no-defaults", "--user=mysql", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db")
	port = freePort(t)
	background(t, need(t, "mariadbd", "/usr/sbin/mariadbd"), "--no-defaults", "--user=mysql", "--datadir="+data, "--socket="+filepath.Join(dir, "sock"),
		"--bind-address=127.0.0.1", fmt.Sprintf("--port=%d", port), "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0")
	for range 400 {
		if _, err := greeting(port); err == nil {
			return port
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("mariadbd does not greet")
	return 0
}

// greeting connects, says nothing, and reads the server's first packet: three bytes
// of length, a number, and the version of the protocol, which is 10.
func greeting(port int) (time.Duration, error) {
	began := time.Now()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(began.Add(10 * time.Second))
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		return 0, err
	}
	body := make([]byte, binary.LittleEndian.Uint16(head))
	if _, err := io.ReadFull(c, body); err != nil {
		return 0, err
	}
	if len(body) < 8 || body[0] != 10 || !strings.Contains(string(body), "MariaDB") {
		return 0, fmt.Errorf("no greeting of MariaDB: %q", body)
	}
	return time.Since(began), nil
}

const mariaMesh = `
trust_domain: interop.example
services:
  shop:
    runs_as: {exe: %[1]s}
    calls: [{to: db, listen: "127.0.0.1:%[3]d"}]
  tester:
    runs_as: {exe: %[2]s}
    calls: [{to: db, listen: "127.0.0.1:%[4]d"}]
  db:
    runs_as: {user: mysql}
    inbound: {listen: "127.0.0.1:%[5]d", app: "127.0.0.1:%[6]d", protocol: tcp}
    allow:
      - {from: [shop, tester]}
`

// TestAServerThatSpeaksFirst is MariaDB behind a TCP sidecar: its greeting comes
// through two sidecars without a byte of the client, and without waiting for one.
func TestAServerThatSpeaksFirst(t *testing.T) {
	client, port := need(t, "mariadb"), startMariaDB(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shop, tester := freePort(t), freePort(t)
	r := start(t, fmt.Sprintf(mariaMesh, client, self, shop, tester, freePort(t), port))
	began := time.Now()
	const rounds = 20
	var direct, through []time.Duration
	for range rounds {
		for way, at := range map[int]*[]time.Duration{port: &direct, tester: &through} {
			d, err := greeting(way)
			if err != nil {
				t.Fatal(err)
			}
			*at = append(*at, d)
		}
	}
	slices.Sort(direct)
	slices.Sort(through)
	t.Logf("the greeting takes %s directly and %s through two sidecars (medians), at most %s", direct[rounds/2], through[rounds/2], through[rounds-1])
	// Whoever waits for the client to tell its protocol waits for seconds.
	if through[rounds/2] > direct[rounds/2]+250*time.Millisecond || through[rounds-1] > 2*time.Second {
		t.Errorf("the greeting is delayed: %v directly, %v through two sidecars", direct, through)
	}
	for _, end := range []string{"outbound", "inbound"} {
		var seen []*audit.Event
		r.until("every greeting is on record at the "+end+" end", func() bool {
			seen = slices.DeleteFunc(r.list(api.ListEventsParams{From: "tester", To: "db", Since: began}), func(e *audit.Event) bool { return e.Call == nil || e.Call.End != end })
			return len(seen) >= rounds
		})
		for _, e := range seen {
			if e.Call.BytesIn != 0 || e.Call.BytesOut < 50 || e.Outcome != audit.Allowed {
				t.Errorf("on record at the %s end: %s, %d bytes in, %d out", end, e.Outcome, e.Call.BytesIn, e.Call.BytesOut)
			}
		}
	}
	sql := "create database s; create table s.t (a int); insert into s.t values (6), (36); select sum(a) from s.t"
	if got := run(t, client, "--no-defaults", "--host=127.0.0.1", fmt.Sprintf("--port=%d", shop), "--user=root", "--skip-ssl", "-N", "-B", "-e", sql); strings.TrimSpace(got) != "42" {
		t.Errorf("mariadb got %q", got)
	}
}
