package node_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit/xtest"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/node"
	"github.com/parleymesh/parley/internal/workload/client"
)

// A mesh is a node of a test with its admin API.
type mesh struct {
	*node.Node
	t   *testing.T
	dir string
	api *api.Client
}

func startNode(t *testing.T, dir, text string) *mesh {
	t.Helper()
	return startWith(t, config(t, dir, text))
}

func startWith(t *testing.T, cfg node.Config) *mesh {
	t.Helper()
	n, err := node.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{Node: n, t: t, dir: cfg.Dir}
	t.Cleanup(func() {
		ctx, done := context.WithTimeout(context.Background(), 20*time.Second)
		defer done()
		if err := n.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	if m.api, err = api.New(cfg.APISocket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.api.Close)
	t.Cleanup(m.checkEvents)
	return m
}

// checkEvents holds whatever a test had recorded to what is published of events.
func (m *mesh) checkEvents() {
	var p api.ListEventsParams
	for {
		page, err := m.api.Events(context.Background(), p)
		if err != nil {
			return // the test has ended it
		}
		for _, entry := range page.Items {
			if err := xtest.Check(entry.Event); err != nil && !entry.Pruned {
				m.t.Error(err)
			}
		}
		if p.Cursor = page.Next; p.Cursor == "" {
			return
		}
	}
}

func config(t *testing.T, dir, text string) node.Config {
	return node.Config{
		Host: "test", Dir: dir, Socket: filepath.Join(dir, "w.sock"), APISocket: filepath.Join(dir, "api.sock"),
		MeshName: "parley.yaml", MeshText: text, Clock: clock.System{}, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// apply brings a mesh file into force.
func (m *mesh) apply(text string) {
	m.t.Helper()
	r, err := m.api.Apply(m.t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: text})
	if err != nil {
		m.t.Fatal(err)
	}
	if r.Fault.Code != "" {
		m.t.Fatal(r.Fault.Fault())
	}
}

// shortDir is short enough for the path of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// handed counts what freeAddr gave out, so that it is never the same to two tests.
var handed atomic.Int32

// freeAddr is a loopback address that nobody has, nor the port above it, which
// `calls` may be given, and that no outgoing connection gets.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 200 {
		port := 10000 + (os.Getpid()*50+int(handed.Add(2)))%20000 // below net.ipv4.ip_local_port_range
		addr, next := fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("127.0.0.1:%d", port+1)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		if l, err = net.Listen("tcp", next); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

// freePort is the port of a free address.
func freePort(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// echoLines answers each line with itself.
func echoLines(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveLines(l)
	return l.Addr().String()
}

func serveLines(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // ends with either side
		}()
	}
}

const resumeMesh = `
trust_domain: node.example
outbound_ports: %[6]s
services:
  caller:
    runs_as: {exe: %[1]s}
    calls: [site, lines]
  site:
    runs_as: {user: nobody-there}
    inbound: {listen: %[2]q, app: %[3]q}
    allow: [{from: [caller]}]
  lines:
    runs_as: {user: nobody-there}
    inbound: {listen: %[4]q, app: %[5]q, protocol: tcp}
    allow: [{from: [caller]}]
`

// TestAnIdentityThatLeftIsRefusedAlthoughItHoldsATicket takes a caller's
// certificate and session tickets along, removes it from the mesh file, and puts
// it back, over HTTP and TCP.
func TestAnIdentityThatLeftIsRefusedAlthoughItHoldsATicket(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "the application") }))
	t.Cleanup(site.Close)
	siteAddr, linesAddr := freeAddr(t), freeAddr(t)
	// app ports of users that do not exist would be refused: attest by executable.
	with := fmt.Sprintf(resumeMesh, self, siteAddr, site.Listener.Addr(), linesAddr, echoLines(t), freePort(t))
	with = strings.ReplaceAll(with, "{user: nobody-there}", "{exe: /nobody/there}")
	without := strings.ReplaceAll(with, "[{from: [caller]}]", "[{from: [other]}]")
	without = strings.Replace(without, "  caller:", "  other:", 1)

	dir := shortDir(t)
	m := startNode(t, dir, with)
	m.apply(with)
	thief := steal(t, filepath.Join(dir, "w.sock"))

	want := func(what string, ok, resumed bool) {
		t.Helper()
		for name, try := range map[string]func() (bool, bool){
			"http": func() (bool, bool) { return thief.http(siteAddr) },
			"tcp":  func() (bool, bool) { return thief.tcp(linesAddr) },
		} {
			served, didResume := try()
			if served != ok || didResume != resumed && served {
				t.Errorf("%s, %s: served %t (resumed %t), want %t (resumed %t)", what, name, served, didResume, ok, resumed)
			}
		}
	}
	want("first", true, false)
	want("with a ticket", true, true)
	m.apply(without)
	want("after it left", false, false)
	want("after it left, again", false, false)
	m.apply(with)
	want("put back", true, false)
	want("put back, with a new ticket", true, true)
}

// A thief holds a caller's certificate and tickets and asks no Workload API.
type thief struct{ configs map[string]*tls.Config }

func steal(t *testing.T, socket string) *thief {
	t.Helper()
	ctx, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	c, err := client.Dial(ctx, client.Config{Socket: "unix://" + socket, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cred, err := c.Credential()
	if err != nil {
		t.Fatal(err)
	}
	th := &thief{configs: map[string]*tls.Config{}}
	for _, proto := range []string{"http", "tcp"} {
		th.configs[proto] = &tls.Config{
			Certificates: []tls.Certificate{*cred.Certificate()}, InsecureSkipVerify: true,
			ClientSessionCache: tls.NewLRUClientSessionCache(4), MinVersion: tls.VersionTLS13, ServerName: proto,
		}
	}
	th.configs["http"].NextProtos = []string{"http/1.1"}
	return th
}

func (th *thief) http(addr string) (served, resumed bool) {
	c, err := tls.Dial("tcp", addr, th.configs["http"])
	if err != nil {
		return false, false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second)) // a deadline in the past fails the read
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n")
	body, _ := io.ReadAll(c) // what was read counts
	return strings.Contains(string(body), "the application"), c.ConnectionState().DidResume
}

func (th *thief) tcp(addr string) (served, resumed bool) {
	c, err := tls.Dial("tcp", addr, th.configs["tcp"])
	if err != nil {
		return false, false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second)) // as above
	fmt.Fprintln(c, "hello")
	line, _ := bufio.NewReader(c).ReadString('\n') // what was read counts
	return line == "hello\n", c.ConnectionState().DidResume
}

// TestStatusBeforeTheFirstRevision: what does not depend on a revision is told
// without one.
func TestStatusBeforeTheFirstRevision(t *testing.T) {
	t.Parallel()
	m := startNode(t, shortDir(t), "trust_domain: node.example\n")
	s, err := m.api.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Revision != 0 || s.Audit.State != api.StateOK || s.Audit.Entries == 0 || s.Audit.Last.IsZero() || len(s.CA) != 2 {
		t.Errorf("%+v", s)
	}
}
