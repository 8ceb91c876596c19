package store_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/store"
	"github.com/parleymesh/parley/internal/store/xtest"
)

func TestURL(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for url, want := range map[string]fault.Code{
		"postgres://parley@127.0.0.1/parley":                               "",
		"postgresql://parley@localhost:5433/parley":                        "",
		"postgres://parley@[::1]/parley?sslmode=disable":                   "",
		"postgres:///parley?host=/run/postgresql":                          "",
		"postgres://parley@%2Frun%2Fpostgresql/parley":                     "",
		"postgres://parley@db.example/parley?sslmode=verify-full":          "",
		"postgres://parley@a.example,127.0.0.1/parley?sslmode=verify-full": "",
		"postgres://parley@db.example/parley":                              fault.StoreURL, // psql's own default is "prefer"
		"postgres://parley@db.example/parley?sslmode=disable":              fault.StoreURL,
		"postgres://parley@db.example/parley?sslmode=allow":                fault.StoreURL,
		"postgres://parley@db.example/parley?sslmode=prefer":               fault.StoreURL,
		"postgres://parley@db.example/parley?sslmode=require":              fault.StoreURL,
		"postgres://parley@db.example/parley?sslmode=verify-ca":            fault.StoreURL,
		"postgres://parley@db.example/parley?sslmode=none":                 fault.StoreURL,
		"postgres://parley@127.0.0.1,db.example/parley":                    fault.StoreURL,
		"postgres://parley@127.0.0.1/parley?host=db.example":               fault.StoreURL,
		"postgres://parley@localhost.example/parley":                       fault.StoreURL,
		"postgres://parley@10.0.0.1/parley":                                fault.StoreURL,
		"postgres://parley@0.0.0.0/parley":                                 fault.StoreURL,

		"postgres://parley@db.example/parley?sslmode=disable&unsafe_tls=a+tunnel": "",
		"postgres://parley@db.example/parley?unsafe_tls=":                         fault.StoreURL,
		"postgres://parley@db.example/parley?unsafe_tls=%20":                      fault.StoreURL,
		"postgres://parley@db.example/parley?unsafe_tls=+":                        fault.StoreURL,

		"":                             fault.StoreURL,
		"parley.db":                    fault.StoreURL,
		"mysql://parley@127.0.0.1/x":   fault.StoreURL,
		"host=127.0.0.1 dbname=parley": fault.StoreURL,
		"postgres://parley@127.0.0.1/": fault.StoreURL,
		"postgres://127.0.0.1:x/p":     fault.StoreURL,
		"postgres://127.0.0.1/p?sslmode=verify-full&sslrootcert=/nonexistent": fault.StoreURL,
		"postgres://127.0.0.1/p\x00":                                          fault.StoreURL,
	} {
		err := store.CheckURL(url)
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", url, err)
			}
			continue
		}
		if all := fault.All(err); len(all) != 1 || all[0].Code != want || all[0].Hint == "" {
			t.Errorf("%s: %v, want %s with a hint", url, err, want)
		}
	}
}

// The environment counts as it does for psql.
func TestURLAndEnvironment(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	const far = "postgres://parley@db.example/parley"
	t.Setenv("PGSSLMODE", "verify-full")
	if err := store.CheckURL(far); err != nil {
		t.Error(err)
	}
	t.Setenv("PGSSLMODE", "require")
	xtest.WantCode(t, store.CheckURL(far), fault.StoreURL)
	t.Setenv("PGSSLMODE", "")
	t.Setenv("PGHOST", "db.example")
	xtest.WantCode(t, store.CheckURL("postgres:///parley"), fault.StoreURL)
}

func TestPasswordFile(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	const url, shown = "postgres://parley@127.0.0.1/parley", "postgres://parley:x@127.0.0.1/parley"
	file := filepath.Join(home, ".pgpass")
	if err := os.WriteFile(file, []byte("*:*:*:*:secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	xtest.WantCode(t, store.CheckURL(url), fault.KeyMode)
	if err := store.CheckURL(shown); err != nil {
		t.Errorf("it is not read then: %v", err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.CheckURL(url); err != nil {
		t.Error(err)
	}
	t.Setenv("PGPASSFILE", filepath.Join(home, "gone"))
	xtest.WantCode(t, store.CheckURL(url), fault.KeyUnreadable)
	t.Setenv("PGPASSWORD", "x")
	if err := store.CheckURL(url); err != nil {
		t.Errorf("it is not read then: %v", err)
	}
}

// canary is a password, with all that is awkward in a URL.
const canary = "c4n4ry/p@ss:w?rd%#"

// parts are what of the canary must not be seen anywhere.
var parts = []string{"c4n4ry", "p@ss", "w?rd", "p%40ss", "ss:w"}

func TestPasswordIsNotPrinted(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	refusing := double(t, func(c net.Conn) { answer(c, "28P01", "password authentication failed") })
	escaped := strings.NewReplacer("/", "%2F", "@", "%40", ":", "%3A", "?", "%3F", "%", "%25", "#", "%23").Replace(canary)
	at := func(host string) []string {
		return []string{
			"postgres://parley:" + escaped + "@" + host + "/parley",
			"postgres://parley:" + canary + "@" + host + "/parley", // and all that one can forget to escape
			"postgres://parley:c4n4ry@" + host + ":p@ss/parley",
			"postgres://parley@" + host + "/parley?password=" + escaped,
			"postgres://parley@" + host + "/parley?password=c4n4ry&sslmode=p@ss",
			"postgres://parley@" + host + "/parley?sslpassword=c4n4ry&sslkey=/nonexistent&sslcert=/nonexistent",
			"postgres://c4n4ry:p@ss:w?rd@" + host,
			"postgress://parley:" + canary + "@" + host,
		}
	}
	var urls []string
	for _, host := range []string{refusing, closedPort(t), "db.example", "db.example:x", "[::1"} {
		urls = append(urls, at(host)...)
	}
	for _, url := range urls {
		see(t, url)
	}
	t.Setenv("PGPASSWORD", canary)
	see(t, "postgres://parley@"+refusing+"/parley")
	t.Setenv("PGPASSWORD", "")
	file := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(file, []byte("*:*:*:*:"+strings.ReplaceAll(canary, ":", `\:`)), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", file)
	see(t, "postgres://parley@"+refusing+"/parley")
}

// see fails the opening of a URL and looks for the canary in all that is said.
func see(t *testing.T, url string) {
	t.Helper()
	var log bytes.Buffer
	_, err := store.Open(t.Context(), store.Config{URL: url, Host: "host1", Clock: clock.System{}, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err == nil {
		t.Fatalf("%s was opened", url)
	}
	all := fault.All(err)
	if len(all) != 1 || all[0].Hint == "" {
		t.Errorf("%s: no fault that helps: %v", url, err)
	}
	document, jerr := json.Marshal(all)
	if jerr != nil {
		t.Fatal(jerr)
	}
	said := fmt.Sprintf("%v\n%s\n%s\n", err, document, log.String())
	for _, f := range all {
		said += f.Hint
	}
	for _, part := range parts {
		if strings.Contains(said, part) {
			t.Errorf("%s: the password is in:\n%s", url, said)
		}
	}
}

func TestPostgresRefusals(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for state, want := range map[string]fault.Code{
		"28P01": fault.StoreRefused, "28000": fault.StoreRefused, "3D000": fault.StoreRefused, "42501": fault.StoreRefused,
		"53300": fault.StoreUnreachable, "57P01": fault.StoreUnreachable, "57P02": fault.StoreUnreachable, "57P03": fault.StoreUnreachable, "08006": fault.StoreUnreachable,
		"57014": fault.StoreUnreachable, "55P03": fault.StoreUnreachable, "25P03": fault.StoreUnreachable,
		"53100": fault.StoreFull, "25006": fault.StoreReadOnly, "XX001": fault.StoreCorrupt, "XX002": fault.StoreCorrupt,
		"42P07": fault.StoreUnfit, "42704": fault.StoreURL, "22023": fault.StoreURL,
	} {
		t.Run(state, func(t *testing.T) {
			at := double(t, func(c net.Conn) { answer(c, state, "the server's own words") })
			_, err := xtest.Place{URL: "postgres://parley@" + at + "/parley?sslmode=disable"}.Open(t.Context(), clock.System{})
			xtest.WantCode(t, err, want)
			if text := err.Error(); !strings.Contains(text, "the server's own words") || strings.Contains(text, "\n") {
				t.Errorf("error %q", text)
			}
		})
	}
}

func TestPostgresIsAway(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for name, at := range map[string]string{
		"nobody listens": closedPort(t),
		"silent":         double(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }),
		"hangs up":       double(t, func(net.Conn) {}),
		"babbles":        double(t, func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte("hello"), 1000)) }),
		"no socket":      "%2Fnonexistent",
		"no name":        "parley.invalid",
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_, err := xtest.Place{URL: "postgres://parley@" + at + "/parley?sslmode=disable&connect_timeout=1&unsafe_tls=a+test"}.Open(t.Context(), clock.System{})
			xtest.WantCode(t, err, fault.StoreUnreachable)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			if text := err.Error(); strings.Contains(text, "\n") {
				t.Errorf("error %q", text)
			}
		})
	}
}

func TestPostgresHasToFit(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	const product = "PostgreSQL 15.18 (Debian) on x86_64"
	for name, err := range map[string]error{
		"old":        store.Fit(14_99_99, product, "UTF8"),
		"latin":      store.Fit(15_00_18, product, "LATIN1"),
		"no charset": store.Fit(15_00_18, product, "SQL_ASCII"),
		"a cousin":   store.Fit(15_00_18, "CockroachDB CCL v25.4", "UTF8"),
	} {
		t.Run(name, func(t *testing.T) { xtest.WantCode(t, err, fault.StoreUnfit) })
	}
	for _, version := range []int{15_00_00, 15_00_18, 18_00_01} {
		if err := store.Fit(version, product, "UTF8"); err != nil {
			t.Errorf("%d: %v", version, err)
		}
	}
}

// double is the address of a server that does with each connection what is asked.
func double(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	return l.Addr().String()
}

// answer is a server's refusal of a new session
// (postgresql.org/docs/current/protocol-message-formats.html).
func answer(c net.Conn, state, message string) {
	for {
		var head [8]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		size := binary.BigEndian.Uint32(head[:4])
		if size == 8 { // asks for TLS or GSS: no
			_, _ = c.Write([]byte("N"))
			continue
		}
		if _, err := io.CopyN(io.Discard, c, int64(size)-8); err != nil {
			return
		}
		break
	}
	body := "SFATAL\x00VFATAL\x00C" + state + "\x00M" + message + "\x00\x00"
	_, _ = c.Write(append(binary.BigEndian.AppendUint32([]byte("E"), uint32(len(body)+4)), body...))
	_, _ = io.Copy(io.Discard, c)
}

// closedPort is an address that nobody listens on.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A server that goes away while a connection is made is not one that does not prove
// who it is; only where TLS is required is its absence that.
func TestPostgresGoesWhileConnecting(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for name, tt := range map[string]struct {
		says, mode string
		want       fault.Code
	}{
		"no TLS, which is not needed": {"N", "prefer", fault.StoreUnreachable},
		"no TLS, which is":            {"N", "verify-full", fault.StoreUntrusted},
		"in the handshake":            {"S", "verify-full", fault.StoreUnreachable},
		"in that of no need":          {"S", "prefer", fault.StoreUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			at := double(t, func(c net.Conn) {
				var head [8]byte
				if _, err := io.ReadFull(c, head[:]); err == nil && binary.BigEndian.Uint32(head[:4]) == 8 {
					_, _ = c.Write([]byte(tt.says))
				}
			})
			_, err := xtest.Place{URL: "postgres://parley@" + at + "/parley?connect_timeout=1&sslmode=" + tt.mode}.Open(t.Context(), clock.System{})
			xtest.WantCode(t, err, tt.want)
		})
	}
}
