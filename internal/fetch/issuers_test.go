package fetch_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fetch"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/snapshot"
)

var public = sync.OnceValue(func() *ecdsa.PublicKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return &key.PublicKey
})

// set is a JWK set of one key with each kid.
func set(kids ...string) []byte {
	keys := []json.RawMessage{}
	for _, kid := range kids {
		one, err := jose.MarshalKey(kid, public())
		if err != nil {
			panic(err)
		}
		var s struct{ Keys []json.RawMessage }
		if err := json.Unmarshal(one, &s); err != nil {
			panic(err)
		}
		keys = append(keys, s.Keys...)
	}
	out, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		panic(err)
	}
	return out
}

const url = "https://id.example"

func conf(change func(*snapshot.Issuer)) []snapshot.Issuer {
	c := snapshot.Issuer{
		Name: "id", URL: url, Algorithms: jose.Algorithms(), Types: []string{jose.TypeJWT}, MaxStale: time.Hour,
	}
	change(&c)
	return []snapshot.Issuer{c}
}

func issuers(t testing.TB, log *slog.Logger) *fetch.Issuers {
	t.Helper()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := fetch.NewIssuers(fetch.Config{Clock: clock.System{}, Logger: log, Metrics: metric.NewRegistry()})
	t.Cleanup(s.Stop)
	return s
}

func kids(i *jose.Issuer) string {
	if i == nil {
		return ""
	}
	return strings.Join(i.KeyIDs(), " ")
}

// eventually is an issuer's keys once a load of them has ended, however busy the
// machine is: a single Newer waits for two seconds only.
func eventually(t *testing.T, s *fetch.Issuers, url string, than *jose.Issuer) (i *jose.Issuer, err error) {
	t.Helper()
	for range 100 {
		i, err = s.Newer(url, than)
		p := s.Problems()
		if err == nil && i != than || err != nil && len(p) > 0 && !strings.Contains(p[0].Err.Error(), "for the first time") {
			return i, err
		}
		_ = clock.System{}.Sleep(t.Context(), 50*time.Millisecond)
	}
	return i, err
}

// wants checks the keys that there are now, none for an issuer that is closed.
func wants(t *testing.T, s *fetch.Issuers, when, want string) *jose.Issuer {
	t.Helper()
	i, err := s.Issuer(url)
	if kids(i) != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, fetch.ErrUnavailable) {
		t.Errorf("%s: keys %q, %v; want %q", when, kids(i), err, want)
	}
	return i
}

func TestStaticKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := issuers(t, nil)
		if _, err := s.Issuer(url); !errors.Is(err, fetch.ErrUnknown) {
			t.Errorf("before the first: %v", err)
		}
		s.Apply(conf(func(c *snapshot.Issuer) { c.Keys = set("a") }))
		i := wants(t, s, "at once", "a")
		began := time.Now()
		if again, err := s.Newer(url, i); again != i || err != nil || time.Since(began) != 0 {
			t.Errorf("an unknown kid: %v after %v", err, time.Since(began))
		}
		time.Sleep(1000 * time.Hour)
		wants(t, s, "for ever", "a")
		s.Apply(nil)
		if _, err := s.Newer(url, nil); !errors.Is(err, fetch.ErrUnknown) {
			t.Errorf("taken away: %v", err)
		}
	})
}

// TestKeyLife follows a file of keys through rotation, loss and return.
func TestKeyLife(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "jwks.json")
	write := func(data []byte) {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		s := issuers(t, nil)
		s.Apply(conf(func(c *snapshot.Issuer) { c.JWKSFile = file }))
		synctest.Wait()
		wants(t, s, "never loaded", "")
		if p := s.Problems(); len(p) != 1 || !p[0].Closed || p[0].Err == nil || p[0].Name != "id" {
			t.Errorf("problems %+v", p)
		}
		write(set("a"))
		time.Sleep(40 * time.Second)
		first := wants(t, s, "there at last", "a")
		if p := s.Problems(); len(p) != 0 {
			t.Errorf("problems %+v", p)
		}
		time.Sleep(6 * time.Minute)
		if wants(t, s, "loaded again, the same", "a") != first {
			t.Error("the same keys are another issuer: everything verified would be verified again")
		}
		write(set("b"))
		time.Sleep(6 * time.Minute)
		if wants(t, s, "rotated, and the old one gone", "b") == first {
			t.Error("other keys are the same issuer")
		}
		write([]byte("<html>"))
		time.Sleep(50 * time.Minute)
		wants(t, s, "broken for less than max_stale", "b")
		if p := s.Problems(); len(p) != 1 || p[0].Closed || !p[0].Until.After(time.Now()) {
			t.Errorf("problems %+v", p)
		}
		time.Sleep(11 * time.Minute)
		wants(t, s, "broken for longer", "")
		write(set("b"))
		time.Sleep(31 * time.Second)
		wants(t, s, "mended", "b")
		write(set())
		time.Sleep(6 * time.Minute)
		wants(t, s, "the issuer says that it has none", "")
	})
}

// TestUnknownKid: a token with a new kid has the keys loaded, once for all who ask
// and not again at once.
func TestUnknownKid(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	var now atomic.Value
	now.Store(set("a"))
	base, ca := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write(now.Load().([]byte))
	})
	s := issuers(t, nil)
	s.Apply(conf(func(c *snapshot.Issuer) {
		c.JWKSURI, c.PrivateHosts, c.CAFile = base+"/jwks", []string{"127.0.0.1"}, ca
	}))
	// Whoever comes before the first load waits for it.
	first, err := eventually(t, s, url, nil)
	if err != nil || kids(first) != "a" || asked.Load() != 1 {
		t.Fatalf("got %q, %v after %d requests", kids(first), err, asked.Load())
	}
	now.Store(set("a", "b"))
	if again, err := s.Newer(url, first); again != first || err != nil || asked.Load() != 1 {
		t.Errorf("right after a load: %v, %d requests", err, asked.Load())
	}
	s.Backdate(url, 11*time.Second)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if i, err := eventually(t, s, url, first); err != nil || kids(i) != "a b" {
				t.Errorf("got %q, %v", kids(i), err)
			}
		})
	}
	wg.Wait()
	if asked.Load() != 2 {
		t.Errorf("%d requests for one rotation", asked.Load()-1)
	}
}

// TestIssuerThatMisbehaves: a request waits two seconds at most, keys of before
// stay, and an issuer that never answered well is closed.
func TestIssuerThatMisbehaves(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]http.HandlerFunc{
		"down":        func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"slow":        func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"redirecting": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/jwks2", http.StatusFound) },
		"huge": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(append(set("evil"), bytes.Repeat([]byte(" "), jose.MaxKeySet)...))
		},
		"failing":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"confused":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"error":"x"}`)) },
		"malicious": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[],"keys":[]}`)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var misbehave atomic.Bool
			base, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if misbehave.Load() || r.URL.Path == "/jwks2" {
					bad(w, r)
					return
				}
				_, _ = w.Write(set("a"))
			})
			where := func(c *snapshot.Issuer) {
				c.JWKSURI, c.PrivateHosts, c.CAFile = base+"/jwks", []string{"127.0.0.1"}, ca
			}
			good := issuers(t, nil)
			good.Apply(conf(where))
			first, err := eventually(t, good, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			misbehave.Store(true)
			good.Backdate(url, time.Minute)
			began := time.Now()
			if i, err := good.Newer(url, first); i != first || err != nil {
				t.Errorf("keys of before: %v", err)
			}
			if took := time.Since(began); took > fetch.Timeout-200*time.Millisecond {
				t.Errorf("the request waited %v", took)
			}
			never := issuers(t, nil)
			never.Apply(conf(where))
			if i, err := never.Newer(url, nil); i != nil || !errors.Is(err, fetch.ErrUnavailable) {
				t.Errorf("never loaded: %q, %v", kids(i), err)
			}
		})
	}
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		path    string // of the issuer
		at      string // of its metadata
		issuer  string // that the metadata is of, %s for the right one
		jwks    string
		hosts   []string
		problem string // a part of it, empty where it is found
	}{
		"OpenID Connect":          {"", "/.well-known/openid-configuration", "%s", "BASE/jwks", nil, ""},
		"with a path":             {"/realms/shop", "/realms/shop/.well-known/openid-configuration", "%s", "BASE/jwks", nil, ""},
		"RFC 8414":                {"", "/.well-known/oauth-authorization-server", "%s", "BASE/jwks", nil, ""},
		"RFC 8414 with a path":    {"/realms/shop", "/.well-known/oauth-authorization-server/realms/shop", "%s", "BASE/jwks", nil, ""},
		"with a slash":            {"/", "/.well-known/openid-configuration", "%s", "BASE/jwks", nil, ""},
		"of another issuer":       {"", "/.well-known/openid-configuration", "https://evil.example", "BASE/jwks", nil, "evil.example"},
		"of the issuer's twin":    {"", "/.well-known/openid-configuration", "%s/", "BASE/jwks", nil, "not the metadata"},
		"keys on another host":    {"", "/.well-known/openid-configuration", "%s", "https://keys.invalid/jwks", nil, fetch.ErrHost.Error()},
		"keys on another, named":  {"", "/.well-known/openid-configuration", "%s", "https://keys.invalid/jwks", []string{"keys.invalid"}, "keys.invalid"},
		"keys without TLS":        {"", "/.well-known/openid-configuration", "%s", "http://127.0.0.1/jwks", nil, fetch.ErrURL.Error()},
		"keys in cloud metadata":  {"", "/.well-known/openid-configuration", "%s", "https://169.254.169.254/", []string{"169.254.169.254"}, fetch.ErrAddress.Error()},
		"no jwks_uri":             {"", "/.well-known/openid-configuration", "%s", "", nil, "jwks_uri"},
		"nothing at either place": {"", "/nowhere", "%s", "BASE/jwks", nil, "404"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var base string
			base, ca := serve(t, func(w http.ResponseWriter, r *http.Request) {
				self := "https://" + r.Host
				switch r.URL.Path {
				case tt.at:
					issuer := strings.Replace(tt.issuer, "%s", self+tt.path, 1)
					fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, issuer, strings.Replace(tt.jwks, "BASE", self, 1))
				case "/jwks":
					_, _ = w.Write(set("a"))
				default:
					w.WriteHeader(http.StatusNotFound)
				}
			})
			s := issuers(t, nil)
			s.Apply(conf(func(c *snapshot.Issuer) {
				c.URL, c.PrivateHosts, c.CAFile, c.Hosts = base+tt.path, []string{"127.0.0.1"}, ca, tt.hosts
			}))
			i, err := eventually(t, s, base+tt.path, nil)
			if (err == nil) != (tt.problem == "") || err == nil && kids(i) != "a" {
				t.Errorf("got %q, %v", kids(i), err)
			}
			if p := s.Problems(); tt.problem != "" && (len(p) != 1 || !strings.Contains(p[0].Err.Error(), tt.problem)) {
				t.Errorf("problems %+v, want %q", p, tt.problem)
			}
		})
	}
}

// TestChangedIssuer: one that is configured in another way has nothing of the
// former, and one that is not keeps its keys.
func TestChangedIssuer(t *testing.T) {
	t.Parallel()
	s := issuers(t, nil)
	s.Apply(conf(func(c *snapshot.Issuer) { c.Keys = set("a") }))
	first := wants(t, s, "at first", "a")
	s.Apply(conf(func(c *snapshot.Issuer) { c.Keys = set("a") }))
	if wants(t, s, "the same", "a") != first {
		t.Error("an unchanged issuer is another one")
	}
	s.Apply(conf(func(c *snapshot.Issuer) { c.Keys, c.MaxAge = set("a"), time.Minute }))
	if wants(t, s, "other rules", "a") == first {
		t.Error("other rules are the same issuer")
	}
	s.Apply(conf(func(c *snapshot.Issuer) { c.JWKSFile = "/nonexistent/jwks.json" }))
	wants(t, s, "other place", "")
	if got := s.URLs(); !slices.Equal(got, []string{url}) {
		t.Errorf("issuers %v", got)
	}
}

func TestRefusedKeysAreSaid(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := issuers(t, slog.New(slog.NewTextHandler(&log, nil)))
	enc := strings.Replace(string(set("a", "evil\nkid")), `"use":"sig"`, `"use":"enc"`, 1)
	s.Apply(conf(func(c *snapshot.Issuer) { c.Keys = []byte(enc) }))
	if p := s.Problems(); len(p) != 1 || p[0].Closed || !strings.Contains(p[0].Err.Error(), `"a"`) {
		t.Errorf("problems %+v", p)
	}
	if text := log.String(); !strings.Contains(text, "not for signatures") || strings.Count(text, "\n") != 1 {
		t.Errorf("the log says %q", text)
	}
}
