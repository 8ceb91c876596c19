package main

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/logging/xtest"
)

// canarySecret has what base64, URLs and quotes treat in their own way.
const canarySecret = `Kn4rV0geL+s3cr/t=Qz7wX-m2`

// secrets are requests with the canary wherever a client keeps one: allowed, denied,
// malformed, and failing.
func (b *besieged) secrets() []string {
	s, key := canarySecret, b.Key("reader")
	basic := base64.StdEncoding.EncodeToString([]byte("user:" + s))
	jwt := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"at+jwt","kid":"x"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"x","secret":"`+s+`"}`)) + "."
	const host = " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
	allowed := "X-Api-Key: " + key + "\r\n"
	everywhere := "Cookie: session=" + s + "\r\nX-Secret: " + s + "\r\nReferer: https://x/?" + s + "\r\nUser-Agent: " + s + "\r\nTracestate: a=" + s + "\r\n"
	return []string{
		"GET /shop/orders/7?token=" + s + host + allowed + everywhere + "\r\n",
		"GET /shop/orders/7?" + s + host + "Authorization: Bearer " + s + "\r\n" + everywhere + "\r\n",
		"GET /shop/orders/7" + host + "Authorization: Bearer " + jwt + s + "\r\n\r\n",
		"GET /shop/orders/7" + host + "Authorization: Basic " + basic + "\r\n\r\n",
		"GET /shop/orders/7" + host + "X-Api-Key: parley_key_" + s + "\r\n\r\n",
		"GET /shop/orders/7" + host + "X-Api-Key: " + key[:len(key)-4] + "xxxx\r\nCookie: " + s + "\r\n\r\n",
		"POST /shop/buy" + host + allowed + "Content-Length: 25\r\n\r\n" + s,
		"POST /shop/buy" + host + "X-Api-Key: " + b.Key("buyer") + "\r\nContent-Length: 25\r\n" + everywhere + "\r\n" + s,
		"POST /shop/buy" + host + "X-Api-Key: " + b.Key("buyer") + "\r\nContent-Length: 99\r\n\r\n" + s, // it breaks off
		"GET /shop/orders/7" + host + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: " + s + "\r\nSec-WebSocket-Protocol: " + s + "\r\n\r\n",
		"GET /shop/orders/7" + host + "Bad_Name: " + s + "\r\n\r\n",
		"GET /shop/orders/7" + host + s + "\r\n\r\n", // no field
		"GET /shop/orders/7" + host + "X: " + s + "\x01\r\n\r\n",
		"GET /shop/orders/7 HTTP/9.9\r\nCookie: " + s + "\r\n\r\n",
		"GET /shop/orders/7" + host + "Transfer-Encoding: " + s + "\r\n\r\n",
		"GET /shop/orders/7" + host + "Content-Length: " + s + "\r\n\r\n",
		"GET /shop/orders/7" + host + "Expect: " + s + "\r\n\r\n",
		"GET /shop/orders/7" + host + "X-Request-Id: " + s + "\r\nTraceparent: 00-" + s + "\r\n\r\n",
		"POST /a.B/c HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/grpc\r\nTe: trailers\r\nToken-Bin: " + s + "\r\nContent-Length: 25\r\n\r\n" + s,
	}
}

// answers sends raw to addr by TLS, or where addr wants none in plaintext, and is what
// came back.
func (b *besieged) answers(addr, raw string, plain bool) []byte {
	b.t.Helper()
	c, err := net.Dial("tcp", addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil // refused so soon that the kernel tells it here
	}
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if !plain {
		c = tls.Client(c, &tls.Config{RootCAs: b.roots, ServerName: "localhost", NextProtos: []string{"http/1.1"}})
	}
	_, _ = io.WriteString(c, raw)
	got, _ := io.ReadAll(c) // what came until the end or the time is over
	return got
}

// TestNoSecretGetsOut brings a canary to a real mesh wherever somebody keeps a secret,
// with debug logging on, and then looks for it, in every encoding and in pieces, in
// everything that the mesh wrote: log, events, answers, commands, metrics, files of
// the data directory.
func TestNoSecretGetsOut(t *testing.T) {
	t.Parallel()
	b, canary := besiege(t), xtest.NewCanary(canarySecret)
	clean := func(what string, data []byte) {
		t.Helper()
		if in := canary.In(data); in != "" {
			t.Errorf("%s has the canary: %s", what, in)
		}
	}
	st, err := b.API.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gateway := strings.Replace(strings.TrimPrefix(b.GatewayURL(), "https://"), "localhost", "127.0.0.1", 1)
	for _, raw := range b.secrets() {
		answer := b.answers(gateway, raw, false)
		clean("the gateway's answer", answer)
		if _, id, told := bytes.Cut(answer, []byte("Parley-Decision: ")); told {
			b.decisions = append(b.decisions, string(id[:26]))
		}
		for _, l := range st.Listeners { // sidecars, which want a certificate, or a process that is the service
			if l.Owner != "edge" {
				clean("the answer of "+l.Name, b.answers(l.Address, raw, true))
			}
		}
	}
	key := "-----BEGIN PRIVATE KEY-----\n" + canarySecret + "\n-----END PRIVATE KEY-----\n"
	token, credential, pem := b.file("token", "parley_join_"+canarySecret), b.file("credential.pem", key), b.file("key.pem", key)
	database, parley := "postgres://u:"+url.QueryEscape(canarySecret)+"@127.0.0.1:1/db?connect_timeout=1", program(t)
	for _, args := range [][]string{
		{"agent", "--dir", b.Dir + "/a", "--token-file", token},
		{"server", "--dir", b.Dir + "/s", "--trust-domain", "td", "--listen", "127.0.0.1:0", "--store", database},
		{"server", "--dir", b.Dir + "/s", "--trust-domain", "td", "--store", database + "&sslmode=" + "bad"},
		{"server", "--dir", b.Dir + "/s", "--trust-domain", "td", "--store", "postgres://u:" + canarySecret + "@[bad"},
		{"server", "--dir", b.Dir + "/s", "--trust-domain", "td", "--store", "postgres://u:" + url.QueryEscape(canarySecret) + "@db.example/db"},
		{"dev", "--dir", b.Dir + "/d", "--store", database},
		{"cert", "inspect", pem},
		{"--api", "https://localhost:1", "--credential", credential, "status"},
	} {
		for _, more := range [][]string{nil, {"--json"}} {
			cmd := exec.CommandContext(t.Context(), parley, append(args, more...)...)
			cmd.Dir = b.Dir
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("%q is no error: %s", args, out)
			}
			clean(strings.Join(args[:1], " "), out)
		}
	}
	b.everything(clean)
	if len(b.decisions) < 10 {
		t.Errorf("%d decisions are too few", len(b.decisions))
	}
	b.findsPlanted(gateway)
}

// findsPlanted wants a canary found that is where it may be: a path is recorded by
// design, so it turns up in most of what was searched.
func (b *besieged) findsPlanted(gateway string) {
	b.t.Helper()
	const planted = "Pl4nted-c4nary-in.a_path"
	b.answers(gateway, "GET /shop/orders/"+planted+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Api-Key: "+b.Key("reader")+"\r\n\r\n", false)
	seen, canary := map[string]bool{}, xtest.NewCanary(planted)
	b.everything(func(what string, data []byte) {
		if canary.In(data) != "" {
			seen[strings.TrimPrefix(what, b.Dir)] = true
		}
	})
	for _, what := range []string{"the log as text", "the log as JSON", "audit tail -n 1000", "audit search --limit 1000", "/parley.db-wal"} {
		if !seen[what] {
			b.t.Errorf("a canary that is in %s is not found, but in %v", what, seen)
		}
	}
}

// file is one with text, of which it is the owner's.
func (b *besieged) file(name, text string) string {
	b.t.Helper()
	path := filepath.Join(b.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// everything hands over all that the mesh has written.
func (b *besieged) everything(clean func(what string, data []byte)) {
	b.t.Helper()
	if out, _ := b.run("audit", "verify"); !strings.Contains(out, "intact") { // it delivers what was recorded
		b.t.Errorf("audit verify: %s", out)
	}
	for _, args := range [][]string{{"status", "-o", "wide"}, {"audit", "tail", "-n", "1000"}, {"audit", "search", "--limit", "1000"}, {"key", "list"}, {"config", "history"}, {"cert", "list"}, {"ban"}, {"log", "level"}} {
		for _, more := range [][]string{nil, {"--json"}} {
			out, errs := b.run(append(args, more...)...)
			clean(strings.Join(args, " "), []byte(out+errs))
		}
	}
	for _, id := range b.decisions {
		out, errs := b.run("why", id)
		clean("why", []byte(out+errs))
	}
	clean("the log as text", []byte(b.text.String()))
	clean("the log as JSON", []byte(b.json.String()))
	if !strings.Contains(b.text.String(), "level=DEBUG msg=call") {
		b.t.Error("nothing was logged at debug")
	}
	clean("metrics", b.metrics())
	files := 0
	if err := filepath.WalkDir(b.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/bin/") {
			return err
		}
		data, err := os.ReadFile(path)
		files++
		clean(path, data)
		return err
	}); err != nil || files < 10 {
		b.t.Errorf("%d files: %v", files, err)
	}
}

// TestACrashTellsNothing makes the program write all its goroutines, as Go does when
// it is asked to or fails, while requests with a canary are under way in it.
func TestACrashTellsNothing(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "pc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program(t), "dev", "--dir", dir, "--port-base", "-1", "--log-level", "debug")
	cmd.Stderr, cmd.Env = &errs, append(os.Environ(), "GOTRACEBACK=all")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client, err := api.New(filepath.Join(dir, "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	var st *api.Status
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if st, err = client.Status(t.Context()); err == nil && complete(st) {
			break
		}
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			t.Fatal("it does not start")
		}
	}
	for _, l := range st.Listeners {
		if l.End != "edge" {
			continue
		}
		for range 5 { // each waits for its body in the middle of a request
			c, err := tls.Dial("tcp", l.Address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}) //nolint:gosec // who answers is not the question
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "POST /shop/buy?"+canarySecret+" HTTP/1.1\r\nHost: localhost\r\nCookie: "+canarySecret+"\r\nAuthorization: Bearer "+canarySecret+"\r\nContent-Length: 1000\r\n\r\n"+canarySecret)
		}
	}
	time.Sleep(300 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it ends by the signal
	if !bytes.Contains(errs.Bytes(), []byte("goroutine ")) || !bytes.Contains(errs.Bytes(), []byte("proxy/web")) {
		t.Errorf("it wrote no dump: %.500s", &errs)
	}
	if in := xtest.NewCanary(canarySecret).In(errs.Bytes()); in != "" {
		t.Errorf("the dump has the canary: %s", in)
	}
}
