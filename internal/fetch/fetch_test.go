package fetch_test

import (
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fetch"
)

// serve starts a server with a certificate for 127.0.0.1 and returns it with the
// file of its CA.
func serve(t testing.TB, h http.HandlerFunc) (url, ca string) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return s.URL, ca
}

func client(t testing.TB, r fetch.Reach) *fetch.Client {
	t.Helper()
	c, err := fetch.NewClient(r, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// here may be asked although it is this host.
func here(ca string) fetch.Reach {
	return fetch.Reach{Hosts: []string{"127.0.0.1"}, Private: []string{"127.0.0.1"}, CAFile: ca}
}

func TestGet(t *testing.T) {
	t.Parallel()
	var agent, encoding atomic.Value
	url, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
		agent.Store(r.UserAgent())
		encoding.Store(r.Header.Get("Accept-Encoding"))
		fmt.Fprint(w, "document ", r.URL)
	})
	got, err := client(t, here(ca)).Get(t.Context(), url+"/a?b=c")
	if err != nil || string(got) != "document /a?b=c" || agent.Load() != "parley" || encoding.Load() != "" {
		t.Errorf("got %q, %v; asked as %v for %v", got, err, agent.Load(), encoding.Load())
	}
}

func TestGetRefusesURLs(t *testing.T) {
	t.Parallel()
	c := client(t, fetch.Reach{Hosts: []string{"id.example", "127.0.0.1", "169.254.169.254"}})
	for url, want := range map[string]error{
		"":                                 fetch.ErrURL,
		"http://id.example/":               fetch.ErrURL,
		"file:///etc/passwd":               fetch.ErrURL,
		"gopher://id.example/":             fetch.ErrURL,
		"//id.example/":                    fetch.ErrURL,
		"https:id.example":                 fetch.ErrURL,
		"https:///x":                       fetch.ErrURL,
		"https://ID.example/":              fetch.ErrURL,
		"https://user@id.example/":         fetch.ErrURL,
		"https://id.example@evil.example/": fetch.ErrURL,
		"https://id.example#@evil":         fetch.ErrURL,
		"https://id.example/\r\nX: y":      fetch.ErrURL,
		"https://id.example/ x":            fetch.ErrURL,
		`https://id.example\@evil.example`: fetch.ErrURL,
		"https://evil.example/":            fetch.ErrHost,
		"https://id.example.evil.example/": fetch.ErrHost,
		"https://id.example./":             fetch.ErrHost,
		"https://[::1]/":                   fetch.ErrHost,
		"https://2130706433/":              fetch.ErrHost,
		"https://127.0.0.1/":               fetch.ErrAddress,
		"https://169.254.169.254/latest":   fetch.ErrAddress,
	} {
		if _, err := c.Get(t.Context(), url); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", url, err, want)
		}
	}
}

// TestConnectionIsWhatIsChecked: a name is judged by the address that is connected
// to. This one leads to this host, as a name does that was public when it was
// looked up first.
func TestConnectionIsWhatIsChecked(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	url, ca := serve(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	url = strings.Replace(url, "127.0.0.1", "localhost", 1)
	if _, err := client(t, fetch.Reach{Hosts: []string{"localhost"}, CAFile: ca}).Get(t.Context(), url); !errors.Is(err, fetch.ErrAddress) {
		t.Errorf("got %v", err)
	}
	if asked.Load() != 0 {
		t.Error("the server was asked")
	}
	// Named for it, the same name is reached; its certificate is another name's.
	_, err := client(t, fetch.Reach{Hosts: []string{"localhost"}, Private: []string{"localhost"}, CAFile: ca}).Get(t.Context(), url)
	var wrong x509.HostnameError
	if !errors.As(err, &wrong) {
		t.Errorf("a certificate of another name: %v", err)
	}
}

func TestMayReach(t *testing.T) {
	t.Parallel()
	c := client(t, fetch.Reach{Hosts: []string{"id.example"}, Private: []string{"in.example", "10.0.0.1", "169.254.169.254", "::1"}})
	for _, tt := range []struct {
		host, addr string
		want       bool
	}{
		{"id.example", "93.184.216.34", true},
		{"id.example", "2606:2800:220:1::1", true},
		{"id.example", "::ffff:93.184.216.34", true},
		{"id.example", "10.0.0.1", false},
		{"id.example", "172.16.0.1", false},
		{"id.example", "192.168.1.1", false},
		{"id.example", "127.0.0.1", false},
		{"id.example", "::ffff:127.0.0.1", false},
		{"id.example", "::127.0.0.1", false},
		{"id.example", "::1", false},
		{"id.example", "0.0.0.0", false},
		{"id.example", "::", false},
		{"id.example", "169.254.169.254", false},
		{"id.example", "fe80::1", false},
		{"id.example", "fc00::1", false},
		{"id.example", "fd00:ec2::254", false},
		{"id.example", "100.64.0.1", false},
		{"id.example", "198.18.0.1", false},
		{"id.example", "192.0.2.1", false},
		{"id.example", "224.0.0.1", false},
		{"id.example", "255.255.255.255", false},
		{"id.example", "64:ff9b::7f00:1", false},
		{"id.example", "2002:7f00:1::1", false},
		{"id.example", "2001:0:1::1", false},
		{"id.example", "fec0::1", false},
		{"in.example", "10.1.2.3", true},
		{"in.example", "127.0.0.1", true},
		{"in.example", "fd12::1", true},
		{"in.example", "100.64.0.1", true},
		{"in.example", "8.8.8.8", true},
		{"in.example", "169.254.169.254", false},
		{"in.example", "fe80::1", false},
		{"in.example", "fd00:ec2::254", false},
		{"in.example", "0.0.0.0", false},
		{"in.example", "224.0.0.1", false},
		{"10.0.0.1", "10.0.0.1", true},
		{"10.0.0.1", "10.0.0.2", false},
		{"10.0.0.2", "10.0.0.2", false},
		{"169.254.169.254", "169.254.169.254", true},
		{"::1", "::1", true},
		{"::1", "127.0.0.1", false},
	} {
		if got := c.MayReach(tt.host, netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("%s at %s: %t", tt.host, tt.addr, got)
		}
	}
}

func TestGetRefusesAnswers(t *testing.T) {
	t.Parallel()
	var followed atomic.Int32
	other, _ := serve(t, func(http.ResponseWriter, *http.Request) { followed.Add(1) })
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		want    error
	}{
		"redirect":        {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other, http.StatusFound) }, fetch.ErrRedirect},
		"redirect to it":  {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/b", http.StatusPermanentRedirect) }, fetch.ErrRedirect},
		"not there":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, fetch.ErrStatus},
		"its own failure": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, fetch.ErrStatus},
		"no content":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, fetch.ErrStatus},
		"huge": {func(w http.ResponseWriter, _ *http.Request) {
			for range 1000 {
				_, _ = w.Write(make([]byte, 1<<20))
			}
		}, fetch.ErrTooLong},
		"slow to begin": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, context.DeadlineExceeded},
		"slow to end": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				_ = http.NewResponseController(w).Flush()
				_ = clock.System{}.Sleep(r.Context(), 10*time.Millisecond)
			}
		}, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, ca := serve(t, tt.handler)
			c := client(t, here(ca))
			c.SetTimeout(time.Minute) // of a busy machine
			if errors.Is(tt.want, context.DeadlineExceeded) {
				c.SetTimeout(300 * time.Millisecond)
			}
			got, err := c.Get(t.Context(), url)
			if !errors.Is(err, tt.want) || got != nil {
				t.Errorf("got %d bytes, %v; want %v", len(got), err, tt.want)
			}
		})
	}
	t.Cleanup(func() {
		if followed.Load() != 0 {
			t.Error("a redirect was followed")
		}
	})
}

func TestGetKeepsWhatIsSent(t *testing.T) {
	t.Parallel()
	url, ca := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(make([]byte, 4<<20)) // more than is read of anything
		_ = z.Close()
	})
	c := client(t, here(ca))
	c.SetTimeout(time.Minute)
	if got, err := c.Get(t.Context(), url); err != nil || len(got) > 200<<10 || got[0] != 0x1f {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	url, ca = serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 32<<10)) })
	if _, err := client(t, here(ca)).Get(t.Context(), url); err == nil {
		t.Error("a header of 32 KiB is read")
	}
}

func TestGetVerifies(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, func(http.ResponseWriter, *http.Request) {})
	var unknown x509.UnknownAuthorityError
	if _, err := client(t, here("")).Get(t.Context(), url); !errors.As(err, &unknown) {
		t.Errorf("a certificate of nobody: %v", err)
	}
	late := clock.Shifted{Base: clock.System{}, Offset: 100 * 365 * 24 * time.Hour}
	url, ca := serve(t, func(http.ResponseWriter, *http.Request) {})
	c, err := fetch.NewClient(here(ca), late)
	if err != nil {
		t.Fatal(err)
	}
	var invalid x509.CertificateInvalidError
	if _, err := c.Get(t.Context(), url); !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		t.Errorf("an expired certificate: %v", err)
	}
}

// TestNoProxy: what the environment says of proxies leads nowhere. A proxy would
// be this host, which is refused when it is connected to.
func TestNoProxy(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:9")
	c := client(t, fetch.Reach{Hosts: []string{"id.invalid"}})
	c.SetTimeout(time.Second)
	if _, err := c.Get(t.Context(), "https://id.invalid/"); err == nil || errors.Is(err, fetch.ErrAddress) {
		t.Errorf("got %v", err)
	}
}

func TestCAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{empty, dir, filepath.Join(dir, "none.pem"), "/dev/zero"} {
		if _, err := fetch.NewClient(here(name), clock.System{}); err == nil {
			t.Errorf("%s is taken for a CA", name)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"https://id.example/a?b", "https://[::1]:8443/", "https://a@b", "http://a", "https://a#b", "https://a:x", `https://a\b`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := fetch.ParseURL(raw)
		if err != nil {
			return
		}
		again, err := fetch.ParseURL(u.String())
		if err != nil || again.Hostname() != u.Hostname() || u.User != nil || u.Scheme != "https" || strings.ContainsAny(u.Hostname(), "/\\@#? ") {
			t.Fatalf("%q is %+v, %v", raw, u, err)
		}
	})
}
