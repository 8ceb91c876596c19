package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/dev"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/node"
	"github.com/parleymesh/parley/internal/node/agent"
)

// TestTryNoticesWhatIsBroken runs the tour on meshes that are broken in one way
// each: it must exit with 1, and name the right lines.
func TestTryNoticesWhatIsBroken(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		debug dev.Debug
		wrong []string // calls that must not be as expected
		right []string // calls that still must be
	}{
		"no policy": {
			debug: dev.Debug{Mesh: func(s string) string {
				return strings.ReplaceAll(s, "{from: [web], methods: [GET, POST], paths: [/orders/**]}", "{from: [payments]}")
			}},
			wrong: []string{"web -> orders, GET /orders/7", "you -> gateway -> all four, key with shop.buy"},
			right: []string{"payments -> ledger, TCP", "TLS without certificate -> orders"},
		},
		"a policy that is too wide": {
			debug: dev.Debug{Mesh: func(s string) string {
				s = strings.ReplaceAll(s, "{from: [web], methods: [GET, POST], paths: [/orders/**]}", "{from: [web]}")
				return strings.ReplaceAll(s, "{from: [payments]}", "{from: [payments, web]}")
			}},
			wrong: []string{"web -> orders, DELETE", "web -> orders, GET /admin", "web -> ledger, TCP, no rule names web"},
			right: []string{"web -> orders, GET /orders/7", "web -> payments, no rule names web"},
		},
		"certificates of another CA": {
			debug: dev.Debug{Node: func(c *node.Config) {
				c.Wire = func(p agent.ControlPlane) agent.ControlPlane {
					return &otherCA{ControlPlane: p, authority: newAuthority(t)}
				}
			}},
			wrong: []string{"web -> orders, GET /orders/7", "payments -> ledger, TCP", "you -> gateway, key with shop.read"},
			right: []string{"another program -> Workload API"},
		},
		"a token for anybody": {
			debug: dev.Debug{Mesh: func(s string) string {
				return strings.ReplaceAll(s, "audience: shop", "audience: billing")
			}},
			wrong: []string{"you -> gateway, token with shop.read", "you -> gateway, token for another audience"},
			right: []string{"you -> gateway, key with shop.read", "you -> gateway, token that is forged"},
		},
		"an issuer that is not trusted": {
			debug: dev.Debug{Mesh: func(s string) string {
				return strings.ReplaceAll(s, "issuer.pem", "ca.pem")
			}},
			wrong: []string{"you -> gateway, token with shop.read", "you -> gateway, token that is forged"},
			right: []string{"you -> gateway, key with shop.read", "you -> gateway, no key and no token"},
		},
		"a gateway that asks nobody": {
			debug: dev.Debug{Mesh: func(s string) string {
				all := `require:
          any:
            - api_key: {scopes: [shop.read]}
            - jwt: {issuer: dev, audience: shop, scopes: [shop.read]}`
				if !strings.Contains(s, all) {
					t.Error("the shop asks for something else")
				}
				return strings.Replace(s, all, "require: public", 1)
			}},
			// It answers 200 all the same, and web is not told who it is.
			wrong: []string{"you -> gateway, key with shop.read", "you -> gateway, token with shop.read", "you -> gateway, no key and no token"},
			right: []string{"you -> gateway -> all four, key with shop.buy", "you -> gateway, key without the scope"},
		},
		"around the sidecar": {
			debug: dev.Debug{App: func(c *dev.AppConfig) {
				if c.Name == "web" {
					c.Orders = appOf(c.Listen)
				}
			}},
			wrong: []string{"web -> orders, GET /orders/7", "web -> orders, DELETE", "web -> orders, before and after renewal"},
			right: []string{"payments -> ledger, TCP", "web -> payments, no rule names web"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, lines := tryWith(t, tt.debug)
			if code != exitNo {
				t.Errorf("exit code %d, want %d", code, exitNo)
			}
			ok := map[string]bool{}
			for _, l := range lines {
				ok[l.Call] = l.OK
			}
			for _, call := range tt.wrong {
				if was, known := ok[call]; was || !known {
					t.Errorf("%q: as expected %t, known %t; it must not be as expected", call, was, known)
				}
			}
			for _, call := range tt.right {
				if !ok[call] {
					i := slices.IndexFunc(lines, func(l dev.Line) bool { return l.Call == call })
					t.Errorf("%q is not as expected: %+v", call, lines[max(i, 0)])
				}
			}
		})
	}
}

// startDemo runs the shop until the test ends.
func startDemo(t *testing.T) *dev.Mesh { return startDemoWith(t, slog.New(slog.DiscardHandler)) }

func startDemoWith(t *testing.T, logger *slog.Logger) *dev.Mesh {
	t.Helper()
	dir, err := os.MkdirTemp("", "pd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m, err := dev.Start(t.Context(), dev.Config{
		Self: self, Dir: dir, PortBase: -1, Env: os.Environ(), Clock: clock.System{}, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// TestDemoNeedsNobody uses the shop, so that its processes are attested, and wants
// nothing of whoever looks at its status.
func TestDemoNeedsNobody(t *testing.T) {
	t.Parallel()
	m := startDemo(t)
	roots, err := m.API.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.GatewayURL()+"/shop/orders/7", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", m.Key("reader"))
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	st, err := m.API.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if list := needs(st); len(list) > 0 {
		t.Errorf("it needs %+v", list)
	}
	if list := notes(st); resp.StatusCode != http.StatusOK || len(list) < 3 { // web's executable, and two calls that no rule allows
		t.Errorf("status %d, and to know are only %+v", resp.StatusCode, list)
	}
}

// TestVerifyTheExample attacks the demo: nothing gets through.
func TestVerifyTheExample(t *testing.T) {
	t.Parallel()
	m := startDemo(t)
	began := clock.System{}.Now()
	out, errs, code := ask(t, filepath.Join(m.Dir, "api.sock"), "verify", false, false, 0)
	t.Logf("%s\nin %s", out, clock.System{}.Now().Sub(began))
	if code != exitDone || !strings.Contains(out, "PASS") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

// tryWith runs `parley dev --try --json` and returns its exit code and lines.
func tryWith(t *testing.T, debug dev.Debug) (int, []dev.Line) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{in: nil, out: &out, err: &errs, clock: clock.System{}, getenv: func(string) string { return "" }}
	terminal, err := term.New(term.Config{Out: &out, Err: &errs, Getenv: a.getenv, JSON: true})
	if err != nil {
		t.Fatal(err)
	}
	a.term = terminal
	dir, err := os.MkdirTemp("", "pd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err = runDev(ctx, devOptions{Logger: slog.New(slog.DiscardHandler), Dir: dir, Try: true, PortBase: -1, JSON: true, Terminal: terminal, debug: debug})
	code := a.exit(ctx, err)
	var doc struct {
		Data struct {
			OK    bool       `json:"ok"`
			Calls []dev.Line `json:"calls"`
		} `json:"data"`
	}
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out.String(), errs.String())
	}
	return code, doc.Data.Calls
}

// otherCA signs certificates by a CA that is not the mesh's.
type otherCA struct {
	agent.ControlPlane
	authority *ca.Authority
}

func (o *otherCA) Issue(_ context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	return o.authority.SignX509(ca.Template{ID: id, PublicKey: req.PublicKey, TTL: 12e9, DNSNames: []string{"localhost"}})
}

func newAuthority(t *testing.T) *ca.Authority {
	t.Helper()
	dir := t.TempDir()
	master, _, err := keys.OpenMaster(filepath.Join(dir, "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	td, err := identity.ParseTrustDomain("shop.dev")
	if err != nil {
		t.Fatal(err)
	}
	a, _, err := ca.Open(ca.Config{Dir: filepath.Join(dir, "ca"), TrustDomain: td, Master: master, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// appOf is orders' own port, which is the one after web's.
func appOf(web string) string {
	host, port, _ := net.SplitHostPort(web)
	n, _ := strconv.Atoi(port)
	return net.JoinHostPort(host, strconv.Itoa(n+1))
}

// TestReadmeShowsTheTour holds the README's output to what is run.
func TestReadmeShowsTheTour(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "  ok  ") {
			shown++
		}
	}
	tour := dev.Tour()
	if shown != len(tour) {
		t.Errorf("the README shows %d calls, the tour makes %d", shown, len(tour))
	}
	for _, l := range tour {
		want := fmt.Sprintf("  ok  %-46s  %-8s", l.Call, l.Expected)
		if !strings.Contains(string(text), want) {
			t.Errorf("the README does not show %q", want)
		}
	}
}
