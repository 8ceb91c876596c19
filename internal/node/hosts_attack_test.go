package node_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/node"
)

// A network that is cut in the middle of a join, wherever that is, leaves both able
// to go on: the same machine joins by the same token.
func TestJoinIsCut(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	relay := xtest.NewRelay(t, f.cfg.Listen)
	token, dir := redirect(t, f.token("a"), relay.Addr), shortDir(t)
	cuts := 0
	for n := int64(1); ; n += 150 {
		relay.CutAfter(n)
		cfg := hostConfig(t, dir, token)
		cfg.Logger = slog.New(slog.DiscardHandler)
		x, err := node.StartHost(t.Context(), cfg)
		relay.Mend()
		if err == nil {
			halt(t, x)
			break
		}
		var fl *fault.Fault
		if !errors.As(err, &fl) || fl.Code != fault.Unreachable || fl.Hint == "" {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		cuts++
	}
	if cuts < 10 {
		t.Errorf("%d cuts", cuts)
	}
	// Of the times that the answer was lost, none left the token to somebody else.
	if _, err := node.StartHost(t.Context(), hostConfig(t, shortDir(t), token)); err == nil {
		t.Error("another machine joined by the token")
	}
	x := host(t, hostConfig(t, dir, ""))
	f.state("a", api.StateOK)
	if x.Host() != "a" {
		t.Errorf("it is %s", x.Host())
	}
}

// A machine that lost the answer to its join, and its directory with the key that
// could ask again, is told to make another token, and joins by that.
func TestJoinIsCutAndTheKeyLost(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	relay := xtest.NewRelay(t, f.cfg.Listen)
	token := redirect(t, f.token("a"), relay.Addr)
	quiet := func(dir, token string) node.HostConfig {
		cfg := hostConfig(t, dir, token)
		cfg.Logger = slog.New(slog.DiscardHandler)
		return cfg
	}
	joined := func() int {
		page, err := f.api.Events(t.Context(), api.ListEventsParams{Action: string(audit.HostJoined)})
		if err != nil {
			t.Fatal(err)
		}
		return len(page.Items)
	}
	// Cut later each time, until the server has let the host in and it has not heard.
	for n := int64(1000); joined() == 0; n += 100 {
		relay.CutAfter(n)
		x, err := node.StartHost(t.Context(), quiet(shortDir(t), token))
		relay.Mend()
		if err == nil {
			halt(t, x)
			t.Fatal("no answer was lost")
		}
	}
	_, err := node.StartHost(t.Context(), quiet(shortDir(t), token))
	var fl *fault.Fault
	if !errors.As(err, &fl) || fl.Code != fault.JoinToken || !strings.Contains(fl.Message, "used") || !strings.Contains(fl.Hint, "parley join-token") {
		t.Errorf("got %v", err)
	}
	host(t, hostConfig(t, shortDir(t), f.token("a")))
	f.state("a", api.StateOK)
}

// A network that is cut in the middle of a renewal harms nothing: calls go on, and
// the certificate is renewed once the network is back.
func TestRenewalIsCut(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	relay := xtest.NewRelay(t, f.cfg.Listen)
	host(t, hostConfig(t, shortDir(t), redirect(t, f.token("a"), relay.Addr)))
	host(t, hostConfig(t, shortDir(t), redirect(t, f.token("b"), relay.Addr)))
	f.wants("at first", "GET", 200)
	service := func(name string) (serial string, renews time.Time) {
		t.Helper()
		st, err := f.api.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range st.Services {
			if s.Name == name {
				return s.Serial, s.RenewsAt
			}
		}
		t.Fatalf("no service %s", name)
		return "", time.Time{}
	}
	issued := func() int {
		t.Helper()
		page, err := f.api.Events(t.Context(), api.ListEventsParams{Action: string(audit.SVIDIssued), Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		return len(page.Items)
	}
	// What is small passes; the next certificate, which is not, is cut in its middle,
	// or something else that is as long, and then another time.
	var first string
	for tries := 1; ; tries++ {
		first, _ = service("web")
		before := issued()
		relay.CutAfter(600)
		for began := time.Now(); relay.Tries() == 0; time.Sleep(20 * time.Millisecond) {
			if time.Since(began) > 9*time.Second {
				t.Fatal("nothing was cut")
			}
		}
		if issued() > before {
			break
		}
		if tries == 10 {
			t.Fatal("what was cut was no certificate")
		}
		relay.Mend()
		f.wants("before the next cut", "GET", 200)
		f.state("a", api.StateOK)
	}
	for range 10 {
		if got, err := f.call("GET"); got != 200 {
			t.Errorf("a call while the server is cut off: %d, %v", got, err)
		}
	}
	if now, _ := service("web"); now != first && now != "" {
		t.Errorf("web has another certificate, %s", now)
	}
	relay.Mend()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if serial, _ := service("web"); serial != "" && serial != first {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal("the certificate is not renewed")
		}
	}
	f.state("a", api.StateOK)
	f.state("b", api.StateOK)
	f.wants("afterwards", "GET", 200)
}

// A directory is one host's: by another host's token it becomes no other.
func TestDirectoryOfAnotherHost(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	dir := shortDir(t)
	ahead := &ahead{}
	cfg := hostConfig(t, dir, f.token("a"))
	halt(t, host(t, cfg))
	// Its certificate has ended: now the token is looked at.
	state, err := link.OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	ahead.by.Store(int64(8 * 24 * time.Hour))
	cfg.Clock, cfg.Token = ahead, f.token("b")
	_, err = node.StartHost(t.Context(), cfg)
	var fl *fault.Fault
	if !errors.As(err, &fl) || fl.Code != fault.JoinToken || !strings.Contains(fl.Hint, "--dir") {
		t.Errorf("got %v", err)
	}
	if h, err := state.Host(); err != nil || h.Name != "a" {
		t.Errorf("the directory is %v's now, %v", h, err)
	}
	cfg.Token = ""
	if _, err = node.StartHost(t.Context(), cfg); !errors.As(err, &fl) || !strings.Contains(fl.Hint, "--token-file") {
		t.Errorf("got %v", err)
	}
}

// A ban is kept on the host where a listener of the newest revision cannot open: it
// is in force there after a start without a server too.
func TestBanIsKeptThoughAListenerFails(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	dirA, dirB := shortDir(t), shortDir(t)
	a := host(t, hostConfig(t, dirA, f.token("a")))
	host(t, hostConfig(t, dirB, f.token("b")))
	f.wants("at first", "GET", 200)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(f.text, fmt.Sprintf("{to: lines, listen: %q}", f.tcp), fmt.Sprintf("{to: lines, listen: %q}", taken.Addr()), 1)
	if text == f.text {
		t.Fatal("nothing changed")
	}
	if r, err := f.api.Apply(t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: text}); err != nil || r.Fault.Code == "" {
		t.Fatalf("the listener opened: %+v, %v", r, err)
	}
	if _, err := f.api.Ban(t.Context(), api.BanRequest{Identity: "web"}); err != nil {
		t.Fatal(err)
	}
	banned := func(what string) {
		t.Helper()
		for range 3 {
			if got, err := f.call("GET"); got == 200 {
				t.Fatalf("%s: served although it is banned: %v", what, err)
			}
		}
	}
	banned("at once")
	halt(t, f.Node)
	halt(t, a)
	state, err := link.OpenState(dirA)
	if err != nil {
		t.Fatal(err)
	}
	// b refuses as well: what a itself goes by is what it has kept.
	if u, err := state.Update(); err != nil || len(u.Banned) != 1 || u.Snapshot.Revision != 1 {
		t.Errorf("kept %+v, %v", u, err)
	}
	_ = taken.Close()
	host(t, hostConfig(t, dirA, ""))
	time.Sleep(500 * time.Millisecond)
	banned("after a start without a server")
}

// A log is what the node wrote.
type log struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.text.Bytes())
}

// No secret of a join is in a log, an event, or a file that is not sealed; and no
// file is anybody else's to read.
func TestSecretsAreNowhere(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	halt(t, f.Node)
	out := new(log)
	f.cfg.Logger = slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f.mesh = startWith(t, f.cfg)
	token := f.token("a")
	parsed, err := link.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	cfg := hostConfig(t, dir, token)
	cfg.Logger = f.cfg.Logger
	a := host(t, cfg)
	f.state("a", api.StateOK)
	used := hostConfig(t, shortDir(t), token)
	used.Logger = f.cfg.Logger
	if _, err := node.StartHost(t.Context(), used); err == nil || strings.Contains(err.Error(), token[12:60]) {
		t.Errorf("used twice: %v", err)
	}
	slog.New(slog.NewJSONHandler(out, nil)).Info("by mistake", "token", parsed, "pointer", &parsed)
	events, err := f.api.Events(t.Context(), api.ListEventsParams{})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(out).Encode(events); err != nil {
		t.Fatal(err)
	}
	halt(t, a)
	secrets := [][]byte{parsed.Secret, []byte(base64.StdEncoding.EncodeToString(parsed.Secret)), []byte(base64.RawURLEncoding.EncodeToString(parsed.Secret)), []byte(fmt.Sprintf("%x", parsed.Secret)), []byte(token[12:80])}
	find := func(where string, data []byte) {
		for _, s := range secrets {
			if bytes.Contains(data, s) {
				t.Errorf("%s has the secret of the token", where)
			}
		}
		if bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s has a key", where)
		}
	}
	find("the log", out.bytes())
	for _, d := range []string{dir, f.cfg.Dir} {
		err := filepath.WalkDir(d, func(path string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil || info.Mode().Type() == os.ModeSocket {
				return err
			}
			if info.Mode().Perm()&0o077 != 0 && path != d {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			if e.IsDir() {
				return nil
			}
			data, err := os.ReadFile(path)
			find(path, data)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// administrator is a credential of name, of the fleet.
func (f *fleet) administrator(name string) *xtest.Source {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, crypto.Signer(key))
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := f.api.IssueCertificate(f.t.Context(), api.CertificateRequest{Identity: "admin/" + name, Csr: csr})
	if err != nil {
		f.t.Fatal(err)
	}
	cred, err := identity.NewCredential(certificates(f.t, r.Chain), key)
	if err != nil {
		f.t.Fatal(err)
	}
	td := cred.ID.TrustDomain()
	server, err := identity.ServerID(td)
	if err != nil {
		f.t.Fatal(err)
	}
	return xtest.NewSource(cred, &identity.Trust{
		Bundles: map[identity.TrustDomain]*identity.Bundle{td: {TrustDomain: td, Roots: certificates(f.t, r.Roots)}}, Members: map[identity.ID]bool{server: true},
	})
}

func certificates(t *testing.T, text string) (all []*x509.Certificate) {
	t.Helper()
	for b, rest := pem.Decode([]byte(text)); b != nil; b, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// dial is a connection to the admin API as src.
func (f *fleet) dial(src *xtest.Source) (net.Conn, error) {
	c, err := src.Credential()
	if err != nil {
		return nil, err
	}
	server, err := identity.ServerID(c.ID.TrustDomain())
	if err != nil {
		return nil, err
	}
	return mtls.NewDialer(src, server, clock.System{}, mtls.HTTP1).DialContext(f.t.Context(), "tcp", f.cfg.Listen)
}

// ask makes one request on c.
func ask(c net.Conn, in *bufio.Reader, head string) (int, string, error) {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, head+"\r\n\r\n"); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func TestAdminOverTLS(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	with := strings.Replace(f.text, "services:", "admins: {alice: {role: operator}, eve: {role: viewer}}\nservices:", 1)
	f.apply(with)
	alice, eve := f.administrator("alice"), f.administrator("eve")
	open := func(src *xtest.Source) (net.Conn, *bufio.Reader) {
		t.Helper()
		c, err := f.dial(src)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, bufio.NewReader(c)
	}
	for head, want := range map[string]int{
		"GET /v1/status HTTP/1.1\r\nHost: parley":                                      200,
		"GET /v1/status HTTP/1.1\r\nHost: evil.example":                                403,
		"GET /v1/status HTTP/1.1\r\nHost: " + f.cfg.Listen:                             403,
		"GET /v1/status HTTP/1.1\r\nHost: parley\r\nOrigin: https://evil.example":      403,
		"GET /v1/status HTTP/1.1\r\nHost: parley\r\nOrigin: null":                      403,
		"GET /v1/status HTTP/1.1\r\nHost: parley\r\nSec-Fetch-Site: none":              403,
		"GET /v1//status HTTP/1.1\r\nHost: parley":                                     404,
		"POST /v1/join-tokens HTTP/1.1\r\nHost: parley\r\nContent-Length: 0":           403,
		"POST /v1/certificates HTTP/1.1\r\nHost: parley\r\nContent-Length: 0":          403,
		"POST /v1/%6aoin-tokens HTTP/1.1\r\nHost: parley\r\nContent-Length: 0":         404,
		"POST /v1/status/../join-tokens HTTP/1.1\r\nHost: parley\r\nContent-Length: 0": 404,
		"GET /v1/join-tokens HTTP/1.1\r\nHost: parley\r\nX-HTTP-Method-Override: POST": 405,
		"POST /v1/bans HTTP/1.1\r\nHost: parley\r\nContent-Length: 0":                  400,
	} {
		c, in := open(alice)
		if got, body, err := ask(c, in, head); got != want {
			t.Errorf("%q: %d %s %v, want %d", head, got, body, err, want)
		}
	}
	c, in := open(eve)
	if got, _, err := ask(c, in, "POST /v1/bans HTTP/1.1\r\nHost: parley\r\nContent-Length: 0"); got != 403 {
		t.Errorf("a viewer bans: %d %v", got, err)
	}
	// Who leaves the mesh file, or is banned, is out at once, with what is open.
	tail, lines := open(eve)
	_ = tail.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(tail, "GET /v1/audit/tail HTTP/1.1\r\nHost: parley\r\n\r\n")
	if l, err := lines.ReadString('\n'); err != nil || !strings.Contains(l, "200") {
		t.Fatalf("tail: %q %v", l, err)
	}
	f.apply(f.text)
	if _, err := io.Copy(io.Discard, lines); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the tail of one who left goes on")
	}
	if got, _, err := ask(c, in, "GET /v1/status HTTP/1.1\r\nHost: parley"); err == nil {
		t.Errorf("one who left is answered %d", got)
	}
	if c, err := f.dial(alice); err == nil {
		if got, _, err := ask(c, bufio.NewReader(c), "GET /v1/status HTTP/1.1\r\nHost: parley"); err == nil {
			t.Errorf("one who left connects: %d", got)
		}
		c.Close()
	}
	f.apply(with)
	if _, err := f.api.Ban(t.Context(), api.BanRequest{Identity: alice2(t, alice)}); err != nil {
		t.Fatal(err)
	}
	if c, err := f.dial(alice); err == nil {
		if got, _, err := ask(c, bufio.NewReader(c), "GET /v1/status HTTP/1.1\r\nHost: parley"); err == nil {
			t.Errorf("a banned one connects: %d", got)
		}
		c.Close()
	}
	if _, err := f.dial(eve); err != nil {
		t.Errorf("another one does not: %v", err)
	}
}

func alice2(t *testing.T, src *xtest.Source) string {
	t.Helper()
	c, err := src.Credential()
	if err != nil {
		t.Fatal(err)
	}
	return c.ID.String()
}

// Hosts, services and administrators have one door, and each stays outside of the
// others' rooms: an agent's certificate administers nothing.
func TestAgentAdministersNothing(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	dir := shortDir(t)
	halt(t, host(t, hostConfig(t, dir, f.token("a"))))
	state, err := link.OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	h, err := state.Host()
	if err != nil {
		t.Fatal(err)
	}
	td := h.Bundle.TrustDomain
	server, err := identity.ServerID(td)
	if err != nil {
		t.Fatal(err)
	}
	src := xtest.NewSource(h.Credential, &identity.Trust{Bundles: map[identity.TrustDomain]*identity.Bundle{td: h.Bundle}, Members: map[identity.ID]bool{server: true}})
	c, err := f.dial(src)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, body, err := ask(c, bufio.NewReader(c), "GET /v1/status HTTP/1.1\r\nHost: parley"); got != 403 {
		t.Errorf("an agent administers: %d %s %v", got, body, err)
	}
	if _, err := f.api.Status(context.Background()); err != nil {
		t.Error(err)
	}
}
