package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/dev"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/logging/xtest"
)

// twice is a log in both formats.
type twice struct{ one, other slog.Handler }

func (h twice) Enabled(ctx context.Context, l slog.Level) bool { return h.one.Enabled(ctx, l) }
func (h twice) Handle(ctx context.Context, r slog.Record) error {
	_ = h.one.Handle(ctx, r.Clone())
	return h.other.Handle(ctx, r)
}

func (h twice) WithAttrs(a []slog.Attr) slog.Handler {
	return twice{h.one.WithAttrs(a), h.other.WithAttrs(a)}
}

func (h twice) WithGroup(n string) slog.Handler {
	return twice{h.one.WithGroup(n), h.other.WithGroup(n)}
}

// written is what was written so far.
type written struct {
	mu sync.Mutex
	b  strings.Builder
}

func (w *written) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *written) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// A besieged mesh is the demo with everything that it logs and answers.
type besieged struct {
	*dev.Mesh
	t          *testing.T
	text, json written
	roots      *x509.CertPool

	mu        sync.Mutex // guards decisions
	decisions []string   // those that the gateway told
}

// besiege starts the demo with debug logging in both formats.
func besiege(t *testing.T) *besieged {
	t.Helper()
	b := &besieged{t: t, roots: x509.NewCertPool()}
	b.Mesh = startDemoWith(t, slog.New(twice{
		logging.New(&b.json, logging.JSON, slog.LevelDebug, clock.System{}).Handler(), logging.New(&b.text, logging.Text, slog.LevelDebug, clock.System{}).Handler(),
	}))
	pem, err := b.API.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.roots.AppendCertsFromPEM(pem)
	return b
}

// send writes raw to the gateway, as one connection, and keeps the decisions of the
// answers. What is refused before it is a request has none.
func (b *besieged) send(raw string) {
	b.t.Helper()
	addr := strings.Replace(strings.TrimPrefix(b.GatewayURL(), "https://"), "localhost", "127.0.0.1", 1)
	c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: b.roots, ServerName: "localhost", NextProtos: []string{"http/1.1"}})
	if err != nil {
		b.t.Error(err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	go func() { _, _ = io.WriteString(c, raw) }() // what is too large is not read to its end
	in := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if id := resp.Header.Get("Parley-Decision"); id != "" {
			b.mu.Lock()
			b.decisions = append(b.decisions, id)
			b.mu.Unlock()
		}
		if resp.Close {
			return
		}
		// What follows a line end of the string may be half a request.
		_ = c.SetDeadline(time.Now().Add(20 * time.Millisecond))
	}
}

// places are requests with s wherever a client of a gateway can put it.
func (b *besieged) places(s string) []string {
	encode := base64.RawURLEncoding.EncodeToString
	kid, _ := json.Marshal(map[string]string{"alg": "RS256", "typ": "at+jwt", "kid": s}) // of strings it cannot fail
	claims, _ := json.Marshal(map[string]string{"iss": s, "sub": s, "aud": s})
	signed, err := dev.Token(b.Dir, identity.Token{Subject: s, Audiences: []string{dev.ShopAudience, s}, Scopes: []string{"shop.read", s}}, time.Minute, clock.System{})
	if err != nil { // of a subject that no token has
		signed = "none"
	}
	const head = "Connection: close\r\n\r\n"
	return []string{
		"GET " + s + " HTTP/1.1\r\nHost: localhost\r\n" + head,
		"GET /shop/orders/" + url.PathEscape(s) + "?" + url.QueryEscape(s) + " HTTP/1.1\r\nHost: localhost\r\n" + head,
		"GET /shop/orders/7" + s + " HTTP/1.1\r\nHost: localhost\r\n" + head,
		s + " /shop/orders/7 HTTP/1.1\r\nHost: localhost\r\n" + head,
		"GET /shop/orders/7 HTTP/1.1\r\nHost: " + s + "\r\n" + head,
		"GET /shop/orders/7 HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: " + s + "\r\n" + head,
		"GET /shop/orders/7 HTTP/1.1\r\nHost: localhost\r\nTraceparent: 00-" + s + "\r\nTracestate: " + s + "\r\n" + head,
		"GET /shop/orders/7 HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + s + "\r\nCookie: " + s + "\r\nReferer: " + s + "\r\nX-Forwarded-For: " + s + "\r\n" + head,
		"GET /shop/orders/7 HTTP/1.1\r\nHost: localhost\r\nX-" + s + ": 1\r\n" + head,
		"GET /shop/orders/7 HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: " + s + "\r\n" + head,
		"GET /shop/orders/7 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + s + "\r\n" + head,
		"GET /shop/orders/7 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + encode(kid) + "." + encode(claims) + ".c2ln\r\n" + head,
		"GET /shop/orders/7 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + signed + "\r\nX-Request-Id: ok\r\n" + head,
	}
}

// shake begins TLS with s wherever a client can put it: its name for the server, its
// protocol, and its certificate.
func (b *besieged) shake(addr, s string, key *ecdsa.PrivateKey) {
	b.t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true, ServerName: s} //nolint:gosec // who answers is not the question
	if len(s) > 255 {
		cfg.ServerName = s[:255]
	}
	if n := len(cfg.ServerName); n > 0 {
		cfg.NextProtos = []string{s[:n]}
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: s, Organization: []string{s}}, NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: "shop.dev", Path: "/" + s}}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key); err == nil {
		cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.t.Error(err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	t := tls.Client(c, cfg)
	if t.Handshake() == nil {
		_ = c.SetDeadline(time.Now().Add(30 * time.Millisecond))
		_, _ = t.Read(make([]byte, 1)) // until the server has judged
	}
}

// administer brings s into the admin API and the command line.
func (b *besieged) administer(s string) {
	b.t.Helper()
	socket := filepath.Join(b.Dir, "api.sock")
	client, err := api.New(socket)
	if err != nil {
		b.t.Error(err)
		return
	}
	defer client.Close()
	ctx := b.t.Context()
	_, _ = client.CreateKey(ctx, api.KeyRequest{Name: s, Scopes: []string{s}})
	_, _ = client.Ban(ctx, api.BanRequest{Identity: "nobody", Reason: s})
	_, _ = client.Unban(ctx, "nobody")
	_, _ = client.Apply(ctx, api.ApplyRequest{Name: s, Text: s, Message: s, DryRun: true})
	short := s[:min(len(s), 2000)]
	for i, args := range [][]string{
		{"audit", "search", "--from", short},
		{"audit", "search", "--request", short},
		{"audit", "show", short},
		{"why", short, short},
		{"why", "web", "orders", short, "/" + short},
		{"explain", short},
		{"key", "create", short},
		{"key", "revoke", short},
		{"ban", short, "--reason", short},
		{"unban", short},
		{"log", "level", short},
		{"log", "level", "info", "--host", short},
		{"config", "show", short},
		{"join-token", short},
		{"cert", "inspect", short},
		{"apply", "-f", short},
		{"--" + short},
		{short},
	} {
		asJSON := (i+len(s))%2 == 0 // each string in one of them: package term has both
		if asJSON {
			args = append(args, "--json")
		}
		out, errs := b.run(args...)
		b.harmless(strings.Join(args, " "), out+errs)
		if asJSON && out != "" && !json.Valid([]byte(out)) {
			b.t.Errorf("%.100q is no JSON: %.300q", args, out)
		}
	}
}

// run is one command, on a terminal's behalf where nothing is as it is in a pipe.
func (b *besieged) run(args ...string) (out, errs string) {
	var o, e bytes.Buffer
	args = append([]string{"--api", filepath.Join(b.Dir, "api.sock")}, args...)
	a := &app{in: strings.NewReader(""), out: &o, err: &e, args: args, clock: clock.System{}, getenv: func(string) string { return "" }}
	a.exit(b.t.Context(), a.execute(b.t.Context(), args))
	return o.String(), e.String()
}

func (b *besieged) harmless(what, text string) {
	b.t.Helper()
	if err := xtest.Harmless(text); err != nil {
		b.t.Errorf("%.100q: %v", what, err)
	}
}

// TestNothingIsInjected brings 200 hostile strings to a real mesh, over real sockets,
// wherever somebody from outside can put them. Each decision is one event and one
// line of the log, and nothing of all that is written has a byte that a terminal or a
// reader of lines would act on.
func TestNothingIsInjected(t *testing.T) {
	t.Parallel()
	b := besiege(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	st, err := b.API.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	doors := []string{strings.Replace(strings.TrimPrefix(b.GatewayURL(), "https://"), "localhost", "127.0.0.1", 1)}
	for _, l := range st.Listeners {
		if l.End == "inbound" && l.Owner == "orders" {
			doors = append(doors, l.Address)
		}
	}
	all := make(chan xtest.Hostile)
	var workers sync.WaitGroup
	for range 16 { // most of their time they wait
		workers.Go(func() {
			for h := range all {
				b.attack(h, doors, key)
			}
		})
	}
	for _, h := range xtest.HostileStrings() {
		all <- h
	}
	close(all)
	workers.Wait()
	b.oneEach()
	b.readAll()
}

// attack brings one string to everywhere.
func (b *besieged) attack(h xtest.Hostile, doors []string, key *ecdsa.PrivateKey) {
	if b.t.Failed() {
		return // one is enough to look into
	}
	for _, raw := range b.places(h.Text) {
		b.send(raw)
	}
	for _, door := range doors {
		b.shake(door, h.Text, key)
	}
	b.administer(h.Text)
	if b.t.Failed() {
		b.t.Logf("with %s", h.Name)
	}
}

// oneEach holds decisions against events and lines.
func (b *besieged) oneEach() {
	b.t.Helper()
	if len(b.decisions) < 1000 {
		b.t.Errorf("%d decisions are too few", len(b.decisions))
	}
	out, _ := b.run("audit", "verify") // delivers what was recorded
	if !strings.Contains(out, "intact") {
		b.t.Errorf("audit verify: %s", out)
	}
	events := map[string]int{}
	for cursor := int64(0); ; {
		page, err := b.API.Events(b.t.Context(), api.ListEventsParams{Limit: 500, Cursor: cursorOf(cursor)})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, e := range page.Items {
			var ev struct {
				ID   string
				Call struct{ Listener string }
			}
			if err := json.Unmarshal(e.Event, &ev); err != nil {
				b.t.Fatal(err)
			}
			if ev.Call.Listener == "gateway.edge" {
				events[ev.ID]++
			}
		}
		if page.Next == "" {
			break
		}
		_, _ = fmt.Sscan(page.Next, &cursor)
	}
	lines := map[string]int{}
	for line := range strings.Lines(b.json.String()) {
		var l struct{ Msg, Decision, Listener string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			b.t.Errorf("%v in the line %.300q", err, line)
		}
		if l.Msg == "call" && l.Listener == "gateway.edge" {
			lines[l.Decision]++
		}
	}
	for _, id := range b.decisions {
		if events[id] != 1 || lines[id] != 1 {
			b.t.Errorf("decision %s is %d events and %d lines", id, events[id], lines[id])
		}
	}
	if one, other := strings.Count(b.json.String(), "\n"), strings.Count(b.text.String(), "\n"); one != other {
		b.t.Errorf("%d lines of JSON, %d of text", one, other)
	}
}

func cursorOf(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// readAll reads everything that is written for people and machines.
func (b *besieged) readAll() {
	b.t.Helper()
	b.harmless("the log as JSON", b.json.String())
	b.harmless("the log as text", b.text.String())
	b.harmless("metrics", string(b.metrics()))
	commands := [][]string{{"status"}, {"status", "-o", "wide"}, {"audit", "tail", "-n", "1000"}, {"ban"}, {"key", "list"}, {"config", "history"}, {"cert", "list"}, {"log", "level"}}
	for _, action := range []string{"call", "handshake.refused", "key.created", "identity.banned"} {
		commands = append(commands, []string{"audit", "search", "--action", action, "--limit", "1000"})
	}
	for i := 0; i < len(b.decisions); i += 37 {
		commands = append(commands, []string{"audit", "show", b.decisions[i]}, []string{"why", b.decisions[i]})
	}
	for _, args := range commands {
		for _, more := range [][]string{nil, {"--json"}} {
			out, errs := b.run(append(args, more...)...)
			b.harmless(strings.Join(append(args, more...), " "), out+errs)
			if out == "" {
				b.t.Errorf("%q says nothing: %s", args, errs)
			}
		}
	}
}

// metrics are those that the mesh serves.
func (b *besieged) metrics() []byte {
	b.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(b.MetricsURL())
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}
