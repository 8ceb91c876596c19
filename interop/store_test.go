package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/node/server"
	"github.com/parleymesh/parley/internal/store"
	storetest "github.com/parleymesh/parley/internal/store/xtest"
)

// TestStoreOnPostgres runs the whole suite of the store on a real PostgreSQL.
func TestStoreOnPostgres(t *testing.T) {
	c := newCluster(t)
	storetest.Run(t, c.place)
}

// TestPostgresKilledLosesNothing has writers of all kinds at work while backends of
// the server are killed in the middle of what they do, then the whole server, which
// is started again. The store goes on by itself.
func TestPostgresKilledLosesNothing(t *testing.T) {
	c := newCluster(t)
	database := c.create("")
	s := storetest.Open(t, storetest.Place{URL: c.url(database)}, clock.System{})
	w := newWriters(t, s)
	w.until(100)
	for range 8 { // the server ends everybody else's sessions too, and recovers
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		c.killBackend(database)
		w.until(w.acknowledged() + 50)
	}
	for range 3 {
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		c.kill()
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		c.start()
		w.until(w.acknowledged() + 50)
	}
	w.check()
}

// writers change a store until check, and keep what it acknowledged.
type writers struct {
	t    *testing.T
	s    *store.Store
	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex // guards what follows
	events  []string
	cursors map[string]uint64
	failed  map[fault.Code]int
}

func newWriters(t *testing.T, s *store.Store) *writers {
	ctx, stop := context.WithCancel(t.Context())
	w := &writers{t: t, s: s, stop: stop, cursors: map[string]uint64{}, failed: map[fault.Code]int{}}
	t.Cleanup(stop)
	for i := range 8 {
		w.done.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if i%2 == 0 {
					w.log(ctx, fmt.Sprintf("w%d-%d", i, n))
				} else {
					w.collect(ctx, fmt.Sprintf("agent-%d", i))
				}
			}
		})
	}
	return w
}

func (w *writers) log(ctx context.Context, id string) {
	e := storetest.Event(audit.ServerStarted)
	e.ID = id
	err := w.s.Log(ctx, e)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count(ctx, err) {
		w.events = append(w.events, id)
	}
}

// collect delivers as an agent does: from where the store says that it is, once
// more where no answer came.
func (w *writers) collect(ctx context.Context, log string) {
	next, err := w.s.Cursor(ctx, log)
	if err == nil {
		err = w.s.Collect(ctx, log, storetest.Entries(w.t, log, int(next), 5))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if have := w.cursors[log]; next < have && err == nil {
		w.t.Errorf("%s: the cursor went from %d back to %d", log, have, next)
	}
	if w.count(ctx, err) {
		w.cursors[log] = next + 5
	}
}

// count says whether something was acknowledged. Only that the server is away may
// stand in the way.
func (w *writers) count(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil {
		return err == nil
	}
	all := fault.All(err)
	if len(all) != 1 || all[0].Code != fault.StoreUnreachable {
		w.t.Errorf("a writer failed: %v", err)
	} else {
		w.failed[all[0].Code]++
		w.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
		w.mu.Lock()
	}
	return false
}

func (w *writers) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.events)
}

// until waits for n acknowledged events.
func (w *writers) until(n int) {
	w.t.Helper()
	for began := time.Now(); w.acknowledged() < n; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			w.t.Fatalf("the store does not go on: %d of %d events", w.acknowledged(), n)
		}
	}
}

func (w *writers) check() {
	w.t.Helper()
	w.stop()
	w.done.Wait()
	if w.failed[fault.StoreUnreachable] == 0 {
		w.t.Error("nobody noticed that the server was killed: the test tests nothing")
	}
	sizes := storetest.Verified(w.t, w.s)
	for _, id := range w.events {
		if _, err := w.s.Event(w.t.Context(), id); err != nil {
			w.t.Errorf("acknowledged and lost: %v", err)
		}
	}
	for log, cursor := range w.cursors {
		if sizes[log] < cursor {
			w.t.Errorf("%s: %d entries acknowledged, %d there", log, cursor, sizes[log])
		}
	}
	last := int64(0)
	for {
		found, err := w.s.Search(w.t.Context(), control.Filter{After: last, Limit: 1000})
		if err != nil {
			w.t.Fatal(err)
		}
		for _, f := range found {
			if last++; f.Position != last {
				w.t.Fatalf("position %d is missing", last)
			}
		}
		if len(found) == 0 {
			break
		}
	}
	w.t.Logf("%d events, %d positions, %d failures while it was away", len(w.events), last, w.failed[fault.StoreUnreachable])
}

// TestPostgresTakenOver has a server stand still until its hold has ended. The next
// one takes the database, and nothing of the first gets through any more.
func TestPostgresTakenOver(t *testing.T) {
	c := newCluster(t)
	p := c.place(t)
	first := storetest.Open(t, p, clock.System{}) // and no Hold: it stands still
	if err := first.Log(t.Context(), storetest.Event(audit.ServerStarted)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	second := storetest.Open(t, p, clock.System{})
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	refused := func(what string, err error) {
		t.Helper()
		storetest.WantCode(t, err, fault.StoreBusy)
		if want := fmt.Sprintf("host1, process %d, since ", os.Getpid()); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q in it", what, err, want)
		}
	}
	refused("log", first.Log(t.Context(), storetest.Event(audit.ServerStarted)))
	refused("collect", first.Collect(t.Context(), "agent", storetest.Entries(t, "agent", 0, 3)))
	refused("apply", first.Apply(t.Context(), &control.Revision{Text: []byte("x")}, 0, storetest.Event(audit.ConfigApplied)))
	refused("hold", first.Hold(t.Context()))
	if err := second.Log(t.Context(), storetest.Event(audit.ServerStarted)); err != nil {
		t.Error(err)
	}
	if err := first.Close(); err != nil { // which does not end the other's hold
		t.Error(err)
	}
	if err := second.Log(t.Context(), storetest.Event(audit.ServerStarted)); err != nil {
		t.Error(err)
	}
	if n := storetest.Verified(t, second)[second.LogName()]; n != 3 {
		t.Errorf("%d events, want 3", n)
	}
}

// TestPostgresTakeoverWaits has a server stand still in the middle of a change until
// its hold has ended: the change ends before the database is another's.
func TestPostgresTakeoverWaits(t *testing.T) {
	c := newCluster(t)
	database := c.create("")
	p := storetest.Place{URL: c.url(database)}
	first := storetest.Open(t, p, clock.System{})
	release := c.lock(database, `LOCK TABLE certificate IN EXCLUSIVE MODE`) // before any row that a start asks for
	issued := make(chan error, 1)
	go func() {
		issued <- first.Issue(context.WithoutCancel(t.Context()), enrol.Record{Serial: "01", Kind: enrol.KindX509}, storetest.Event(audit.SVIDIssued))
	}()
	c.waits(database)
	opened := make(chan *store.Store, 1)
	go func() {
		second, err := p.Open(context.WithoutCancel(t.Context()), clock.System{})
		if err != nil {
			t.Error(err)
		}
		opened <- second
	}()
	select {
	case <-opened:
		t.Fatal("the database was taken while a change was being made")
	case err := <-issued:
		t.Fatalf("the change did not wait: %v", err)
	case <-time.After(8 * time.Second): // the hold has ended, no statement has yet
	}
	release()
	if err := <-issued; err != nil {
		t.Errorf("the change that came first: %v", err)
	}
	second := <-opened
	if second == nil {
		t.FailNow()
	}
	defer second.Close()
	if n := storetest.Verified(t, second)[second.LogName()]; n != 1 {
		t.Errorf("the second server found %d events, want 1", n)
	}
	storetest.WantCode(t, first.Log(t.Context(), storetest.Event(audit.ServerStarted)), fault.StoreBusy)
}

// TestPostgresCollision has somebody else's transaction collide with one of the
// store's, which is begun anew.
func TestPostgresCollision(t *testing.T) {
	c := newCluster(t)
	database := c.create("")
	s := storetest.Open(t, storetest.Place{URL: c.url(database)}, clock.System{})
	release := c.lock(database, `UPDATE arrival SET last = last`)
	logged := make(chan error, 1)
	go func() { logged <- s.Log(context.WithoutCancel(t.Context()), storetest.Event(audit.ServerStarted)) }()
	c.waits(database) // it has its log, and wants the order of arrival
	release(`UPDATE log SET size = size`)
	if err := <-logged; err != nil {
		t.Errorf("it was not begun anew: %v", err)
	}
	for began := time.Now(); c.count(database, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`) != 1; time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 10*time.Second { // the server counts now and then
			t.Fatal("there was no deadlock: the test tests nothing")
		}
	}
	if n := storetest.Verified(t, s)[s.LogName()]; n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

// TestPostgresSessionsEnd has every session ended between two calls, which are none
// the wiser.
func TestPostgresSessionsEnd(t *testing.T) {
	c := newCluster(t)
	database := c.create("")
	s := storetest.Open(t, storetest.Place{URL: c.url(database)}, clock.System{})
	for i := range 10 {
		if err := s.Log(t.Context(), storetest.Event(audit.ServerStarted)); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		if _, err := s.LastTime(t.Context()); err != nil {
			t.Fatalf("question %d: %v", i, err)
		}
		c.sql("postgres", "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", database)
	}
	storetest.Verified(t, s)
}

// TestPostgresRacedStarts has one of twenty servers that start at once get an empty
// database.
func TestPostgresRacedStarts(t *testing.T) {
	c := newCluster(t)
	p := c.place(t)
	var opened atomic.Int64
	var all sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for range 20 { // on an empty database: all would make it
		all.Go(func() {
			s, err := p.Open(t.Context(), clock.System{})
			if err == nil {
				opened.Add(1)
				if err := errors.Join(s.Hold(ctx), s.Close()); err != nil {
					t.Error(err)
				}
				return
			}
			if f := fault.All(err); len(f) != 1 || f[0].Code != fault.StoreBusy {
				t.Errorf("%v, want StoreBusy", err)
			}
		})
	}
	time.Sleep(8 * time.Second) // longer than a hold without renewal
	if n := opened.Load(); n != 1 {
		t.Errorf("%d of 20 servers opened the database, want 1", n)
	}
	stop()
	all.Wait()
}

// TestPostgresRefusals provokes what an operator runs into, on the real server. None
// of what is said holds the password.
func TestPostgresRefusals(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	c := newCluster(t)
	certificates(t, c.dir)
	refused := func(name, url string, want fault.Code, words string) {
		t.Run(name, func(t *testing.T) {
			_, err := storetest.Place{URL: url}.Open(t.Context(), clock.System{})
			storetest.WantCode(t, err, want)
			said := fmt.Sprintf("%v\n%s", err, fault.All(err)[0].Hint)
			if !strings.Contains(said, words) {
				t.Errorf("%q is not in:\n%s", words, said)
			}
			for _, part := range []string{password, url, "c4n4ry", "p@ss"} {
				if strings.Contains(said, part) {
					t.Errorf("the password is in:\n%s", said)
				}
			}
			t.Log(said)
		})
	}
	database := c.create("")
	with := func(database string, values url.Values) string { return c.url(database) + "?" + values.Encode() }
	refused("no such database", c.url("c4"), fault.StoreRefused, "createdb")
	refused("wrong password", strings.Replace(c.url(database), "parley:", "parley:x", 1), fault.StoreRefused, "pg_hba.conf")
	refused("unknown user", strings.Replace(c.url(database), "parley:", "nobody:", 1), fault.StoreRefused, "pg_hba.conf")
	refused("unknown parameter", with(database, url.Values{"ssl_mode": {"verify-full"}}), fault.StoreURL, `"ssl_mode"`)
	c.sql("postgres", "CREATE DATABASE foreign_owner")
	refused("somebody else's database", c.url("foreign_owner"), fault.StoreRefused, "OWNER TO")
	c.sql("postgres", "CREATE DATABASE latin OWNER parley ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0")
	refused("latin", c.url("latin"), fault.StoreUnfit, "LATIN1")
	used := c.create("")
	c.sql(used, "CREATE TABLE wages (x text)")
	refused("used", c.url(used), fault.StoreUnfit, `"wages"`)
	if n := c.count(used, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"); n != 1 {
		t.Errorf("%d tables after a refusal, want 1", n)
	}
	frozen := c.create("")
	c.sql("postgres", "ALTER DATABASE "+frozen+" SET default_transaction_read_only = on")
	refused("read-only", c.url(frozen), fault.StoreReadOnly, "default_transaction_read_only")
	narrow := c.create("CONNECTION LIMIT 0")
	refused("no connection left", c.url(narrow), fault.StoreUnreachable, "too many connections")
	refused("no TLS", with(database, url.Values{"sslmode": {"verify-full"}}), fault.StoreUntrusted, "it speaks no TLS")

	c.write("postgresql.conf", fmt.Sprintf("ssl=on\nssl_cert_file='%[1]s/server.pem'\nssl_key_file='%[1]s/server.key'\n", c.dir))
	c.must("pg_ctl", "-D", c.data(), "-w", "-m", "fast", "-l", filepath.Join(c.dir, "log"), "restart")
	tls := func(host string, values url.Values) string {
		return strings.Replace(with(database, values), "127.0.0.1", host, 1)
	}
	ca := filepath.Join(c.dir, "ca.pem")
	refused("unknown CA", tls("localhost", url.Values{"sslmode": {"verify-full"}}), fault.StoreUntrusted, "unknown authority")
	refused("wrong name", tls("127.0.0.1", url.Values{"sslmode": {"verify-full"}, "sslrootcert": {ca}}), fault.StoreUntrusted, "127.0.0.1")
	s := storetest.Open(t, storetest.Place{URL: tls("localhost", url.Values{"sslmode": {"verify-full"}, "sslrootcert": {ca}})}, clock.System{})
	if err := s.Log(t.Context(), storetest.Event(audit.ServerStarted)); err != nil {
		t.Error(err)
	}
	c.sql("postgres", "ALTER DATABASE "+database+" SET default_transaction_read_only = on")
	c.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database)
	storetest.WantCode(t, s.Log(t.Context(), storetest.Event(audit.ServerStarted)), fault.StoreReadOnly)
	if err := s.CheckClock(t.Context(), time.Now()); err != nil {
		t.Errorf("reading goes on: %v", err)
	}
}

// TestPostgresUnprotected goes over an address of this machine's network without
// TLS, for which a reason has to be given. The reason is logged and on record.
func TestPostgresUnprotected(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	c := newCluster(t, "listen_addresses='*'")
	c.write("pg_hba.conf", "host all all all scram-sha-256\n")
	c.must("pg_ctl", "-D", c.data(), "reload")
	far := strings.Replace(c.url(c.create("")), "127.0.0.1", networkAddress(t), 1) + "?sslmode=disable"
	domain, err := identity.ParseTrustDomain("interop.example")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cfg := server.Config{
		Host: "test", Dir: t.TempDir(), Store: far, TrustDomain: domain, Version: "test",
		Clock: clock.System{}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	_, err = server.Open(t.Context(), cfg)
	storetest.WantCode(t, err, fault.StoreURL)
	cfg.Store += "&unsafe_tls=a+cable+of+one+metre"
	s, err := server.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Started(t.Context()); err != nil {
		t.Fatal(err)
	}
	found, err := s.Store().Search(t.Context(), control.Filter{Action: string(audit.ServerStarted)})
	if err != nil || len(found) != 1 || !strings.Contains(string(found[0].Body), "a cable of one metre") {
		t.Errorf("on record: %v, %+v", err, found)
	}
	if !strings.Contains(log.String(), "is not protected") || !strings.Contains(log.String(), "a cable of one metre") || strings.Contains(log.String(), "c4n4ry") {
		t.Errorf("in the log:\n%s", log.String())
	}
	if !strings.Contains(log.String(), "can read the password") {
		t.Errorf("a password in the URL is not warned of:\n%s", log.String())
	}
}

// networkAddress is an address of this machine that is not loopback.
func networkAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Fatal("this machine has no network: ip -brief address")
	return ""
}

// certificates makes a CA and a certificate for localhost, which 127.0.0.1 is not.
func certificates(t *testing.T, dir string) {
	t.Helper()
	openssl := need(t, "openssl")
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", at("ca.key"), "-out", at("ca.pem"), "-subj", "/CN=db ca", "-days", "1")
	run(t, openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", at("server.key"), "-out", at("server.pem"),
		"-subj", "/CN=db", "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
		"-CA", at("ca.pem"), "-CAkey", at("ca.key"), "-days", "1")
	run(t, "chown", "postgres", at("server.key"), at("server.pem"))
	run(t, "chmod", "600", at("server.key"))
}

// TestPostgresDiskFull has the database alone on a small disk.
func TestPostgresDiskFull(t *testing.T) {
	need(t, "mount")
	c := newCluster(t)
	disk := filepath.Join(c.dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", "tmpfs", "-o", "size=24m,mode=0755", "parley-test", disk)
	t.Cleanup(func() { run(t, "umount", "-l", disk) })
	run(t, "chown", "postgres", disk)
	c.sql("postgres", "CREATE TABLESPACE small LOCATION '"+disk+"'")
	s := storetest.Open(t, storetest.Place{URL: c.url(c.create("TABLESPACE small"))}, clock.System{})
	filler := filepath.Join(disk, "filler")
	fill(filler)
	kept := uint64(0)
	var err error
	for ; err == nil && kept < 100_000; kept += 200 {
		err = s.Collect(t.Context(), "agent", storetest.Entries(t, "agent", int(kept), 200))
	}
	storetest.WantCode(t, err, fault.StoreFull)
	if n := storetest.Verified(t, s)["agent"]; n != kept-200 {
		t.Errorf("%d entries, want %d", n, kept-200)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(t.Context(), "agent", storetest.Entries(t, "agent", int(kept-200), 200)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	storetest.Verified(t, s)
}

// fill writes to a file until the disk is full.
func fill(file string) {
	f, err := os.Create(file)
	if err != nil {
		return
	}
	defer f.Close()
	for zeros := make([]byte, 4096); err == nil; {
		_, err = f.Write(zeros)
	}
}
