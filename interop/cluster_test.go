package interop

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	storetest "github.com/parleymesh/parley/internal/store/xtest"
)

// A cluster is a PostgreSQL server of a test's own, run as the user postgres on a
// loopback port and on a socket.
type cluster struct {
	t         testing.TB
	bin, dir  string
	port      int
	databases atomic.Int64
}

// password is the one of the user parley: a canary, which nothing may print.
const password = "c4n4ry/p@ss:w?rd%"

// newCluster makes a cluster and starts it. Text is ordered as people do, in which
// "a-b" comes after "aa": an order that Parley must not lean on. Where conf is
// empty the user postgres comes in by the socket, others with their password.
func newCluster(t testing.TB, conf ...string) *cluster {
	t.Helper()
	dir := shortDir(t)
	c := &cluster{t: t, bin: filepath.Dir(need(t, "/usr/lib/postgresql/*/bin/postgres")), dir: dir, port: freePort(t)}
	run(t, "chown", "postgres", dir)
	c.must("initdb", "-D", c.data(), "--auth-local=trust", "--auth-host=scram-sha-256", "-E", "UTF8",
		"--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en", "--no-sync")
	conf = append([]string{fmt.Sprintf("port=%d", c.port), "listen_addresses='127.0.0.1'", "unix_socket_directories='" + dir + "'", "max_connections=400"}, conf...)
	c.write("postgresql.conf", strings.Join(conf, "\n")+"\n")
	c.start()
	t.Cleanup(func() {
		if out, err := c.run("pg_ctl", "-D", c.data(), "-m", "immediate", "stop"); err != nil {
			t.Errorf("stop postgres: %v\n%s", err, out)
		}
	})
	c.sql("", "CREATE ROLE parley LOGIN PASSWORD '"+password+"'")
	return c
}

func (c *cluster) data() string { return filepath.Join(c.dir, "data") }

// write appends to a file of the cluster's.
func (c *cluster) write(name, text string) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.data(), name), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) run(program string, args ...string) (string, error) {
	return asUser(c.t, "postgres", filepath.Join(c.bin, program), args...)
}

func (c *cluster) must(program string, args ...string) {
	c.t.Helper()
	if out, err := c.run(program, args...); err != nil {
		c.t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

func (c *cluster) start() {
	c.t.Helper()
	c.must("pg_ctl", "-D", c.data(), "-w", "-l", filepath.Join(c.dir, "log"), "start")
}

// kill kills the server and everything of it with kill -9.
func (c *cluster) kill() {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		c.t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) { // its children end when they notice
		if syscall.Kill(pid, 0) != nil {
			return
		}
		if time.Since(began) > 10*time.Second {
			c.t.Fatal("the server does not die")
		}
	}
}

// count is what a statement counts.
func (c *cluster) count(database, statement string) (n int) {
	c.t.Helper()
	db, err := sql.Open("pgx", fmt.Sprintf("postgres://postgres@/%s?host=%s&port=%d", database, c.dir, c.port))
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(statement).Scan(&n); err != nil {
		c.t.Fatalf("%s: %v", statement, err)
	}
	return n
}

// lock runs a statement in a transaction that stays open until release, which runs
// some more in it first.
func (c *cluster) lock(database, statement string) (release func(more ...string)) {
	c.t.Helper()
	db, err := sql.Open("pgx", fmt.Sprintf("postgres://postgres@/%s?host=%s&port=%d", database, c.dir, c.port))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { db.Close() })
	tx, err := db.Begin()
	if err == nil {
		_, err = tx.Exec(statement)
	}
	if err != nil {
		c.t.Fatalf("%s: %v", statement, err)
	}
	return func(more ...string) {
		c.t.Helper()
		for _, statement := range more {
			if _, err := tx.Exec(statement); err != nil {
				c.t.Errorf("%s: %v", statement, err)
			}
		}
		if err := tx.Commit(); err != nil {
			c.t.Error(err)
		}
	}
}

// waits returns when a session of parley's waits for a lock.
func (c *cluster) waits(database string) {
	c.t.Helper()
	for began := time.Now(); c.count(database, `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND usename = 'parley' AND wait_event_type = 'Lock'`) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			c.t.Fatal("nobody waits")
		}
	}
}

// killBackend kills a process of the server's that works for a session of parley's.
func (c *cluster) killBackend(database string) {
	c.t.Helper()
	db, err := sql.Open("pgx", fmt.Sprintf("postgres://postgres@/postgres?host=%s&port=%d", c.dir, c.port))
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	var pid int
	for began := time.Now(); ; time.Sleep(time.Millisecond) { // one that is in a transaction
		err := db.QueryRow(`SELECT pid FROM pg_stat_activity WHERE datname = $1 AND usename = 'parley' AND state <> 'idle' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1`, database).Scan(&pid)
		if err == nil {
			break
		}
		if time.Since(began) > 10*time.Second {
			c.t.Fatalf("no session to kill: %v", err)
		}
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
}

// sql runs a statement as the superuser.
func (c *cluster) sql(database, statement string, args ...any) {
	c.t.Helper()
	db, err := sql.Open("pgx", fmt.Sprintf("postgres://postgres@/%s?host=%s&port=%d", database, c.dir, c.port))
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement, args...); err != nil {
		c.t.Fatalf("%s: %v", statement, err)
	}
}

// create makes an empty database that is parley's.
func (c *cluster) create(more string) (name string) {
	c.t.Helper()
	name = fmt.Sprintf("db%d", c.databases.Add(1))
	c.sql("postgres", fmt.Sprintf("CREATE DATABASE %s OWNER parley %s", name, more))
	return name
}

// url is that of a database over TCP, with the password in it.
func (c *cluster) url(database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("parley", password), Host: fmt.Sprintf("127.0.0.1:%d", c.port), Path: database}
	return u.String()
}

// place is a new database over TCP.
func (c *cluster) place(t testing.TB) storetest.Place {
	t.Helper()
	return storetest.Place{URL: c.url(c.create(""))}
}
