package node_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

const issuerMesh = `
trust_domain: node.example
services:
  site:
    runs_as: {exe: /nobody/there}
    inbound: {listen: %[1]q, app: %[2]q}
issuers:
  idp: {issuer: "https://id.example", jwks_uri: %[4]q, private_hosts: [127.0.0.1], ca: %[5]q, max_stale: 1m}
gateway:
  edge:
    listen: %[3]q
    tls: {mesh_ca: {hosts: [edge.test]}}
    routes:
      - to: site
        require: {any: [{jwt: {issuer: idp, audience: site}}]}
`

// A keyServer serves the key set of an issuer, or misbehaves.
type keyServer struct {
	*httptest.Server
	key   *ecdsa.PrivateKey
	ca    string
	set   []byte
	bad   atomic.Bool
	moved atomic.Int64 // requests for the set at another place
}

func newKeyServer(t *testing.T, misbehave func(k *keyServer, w http.ResponseWriter, r *http.Request)) *keyServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := &keyServer{key: key, ca: filepath.Join(shortDir(t), "ca.pem")}
	if k.set, err = jose.MarshalKey("k", &key.PublicKey); err != nil {
		t.Fatal(err)
	}
	k.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/moved":
			k.moved.Add(1)
		case k.bad.Load():
			misbehave(k, w, r)
			return
		}
		_, _ = w.Write(k.set)
	}))
	k.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	k.StartTLS()
	t.Cleanup(k.Close)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Certificate().Raw})
	if err := os.WriteFile(k.ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return k
}

// token is one that nobody has seen before.
func (k *keyServer) token(t *testing.T, now time.Time) string {
	t.Helper()
	token, err := jose.SignAccess(k.key, "k", identity.Token{
		Issuer: "https://id.example", Subject: "alice-" + fmt.Sprint(now.UnixNano()), ClientID: "shop", Audiences: []string{"site"}, Expires: now.Add(5 * time.Minute),
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// An issuer's keys that a gateway has are used for max_stale where they cannot be
// loaded again, and no longer; without any, its tokens are refused. A redirect is
// not followed, and of a key set that is too large nothing is taken.
func TestGatewayWhoseIssuerMisbehaves(t *testing.T) {
	t.Parallel()
	for name, misbehave := range map[string]func(k *keyServer, w http.ResponseWriter, r *http.Request){
		"down": func(*keyServer, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"slow": func(_ *keyServer, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"redirecting": func(_ *keyServer, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/moved", http.StatusFound)
		},
		"huge": func(k *keyServer, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(append(bytes.Clone(k.set), bytes.Repeat([]byte(" "), jose.MaxKeySet)...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKeyServer(t, misbehave)
			edge, app := freeAddr(t), httptest.NewServer(http.NotFoundHandler())
			t.Cleanup(app.Close)
			text := fmt.Sprintf(issuerMesh, freeAddr(t), app.Listener.Addr(), edge, k.URL, k.ca)
			clk := &ahead{}
			start := func() *mesh {
				cfg := config(t, shortDir(t), text)
				cfg.Clock = clk
				m := startWith(t, cfg)
				m.apply(text)
				return m
			}
			m := start()
			c := edgeClient(t, m, edge, clk)
			status := func(when string, want int, reason string) {
				t.Helper()
				since := clk.Now()
				got, code := c(k.token(t, since))
				if got != want || (want == http.StatusServiceUnavailable) != (code == "issuer_unavailable") {
					t.Errorf("%s: %d %q, want %d", when, got, code, want)
				}
				page, err := m.api.Events(t.Context(), api.ListEventsParams{Action: string(audit.Call), Since: since})
				if err != nil {
					t.Fatal(err)
				}
				var recorded []string
				for _, entry := range page.Items {
					if e, err := audit.Decode(entry.Event); err == nil && e.Call.End == "edge" {
						recorded = append(recorded, e.Reason)
					}
				}
				if !slices.Equal(recorded, []string{reason}) {
					t.Errorf("%s: recorded %q, want %q", when, recorded, reason)
				}
			}
			const passes = http.StatusNotFound // the application's answer
			status("at first", passes, "allowed")
			k.bad.Store(true)
			clk.by.Store(int64(50 * time.Second))
			status("within max_stale", passes, "allowed")
			clk.by.Store(int64(2 * time.Minute))
			status("after max_stale", http.StatusServiceUnavailable, "jwks_unavailable")
			k.bad.Store(false)
			for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
				if got, _ := c(k.token(t, clk.Now())); got == passes {
					break
				}
				if time.Since(began) > 20*time.Second {
					t.Fatal("it does not recover")
				}
			}
			halt(t, m.Node)
			k.bad.Store(true)
			m = start()
			c = edgeClient(t, m, edge, clk)
			status("never loaded", http.StatusServiceUnavailable, "jwks_unavailable")
			if n := k.moved.Load(); n > 0 {
				t.Errorf("%d redirects were followed", n)
			}
		})
	}
}

// edgeClient calls through the gateway of m with a token, and is the status and the
// code of a refusal.
func edgeClient(t *testing.T, m *mesh, edge string, clk clock.Clock) func(token string) (status int, code string) {
	t.Helper()
	roots := x509.NewCertPool()
	bundle, err := m.api.Bundle(t.Context())
	if err != nil || !roots.AppendCertsFromPEM(bundle) {
		t.Fatal("no bundle", err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "edge.test", Time: clk.Now, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	c := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	return func(token string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+edge+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Accept", "application/json")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var problem struct{ Code string }
		_ = json.NewDecoder(resp.Body).Decode(&problem) // an application's answer is none
		return resp.StatusCode, problem.Code
	}
}
