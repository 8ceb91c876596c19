package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/proxy"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/snapshot"
)

func okApp(t testing.TB, answer string) string {
	return httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
}

// A process that is not the service is answered and recorded once, whatever it
// asks for, and the service goes on.
func TestProcessRefused(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		p := newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "secret")})
		p.web.setAttest(func(service string, c net.Conn) (call.Process, error) {
			if service != "web" || c.RemoteAddr() == nil {
				t.Errorf("asked about %s", service)
			}
			return call.Process{PID: 666, UID: 1001}, errNotService
		})
		c := client(t, h2)
		resp, body := get(t, c, p.url+"/a/../b")
		e := p.web.gate.Finished(1)[0]
		if resp.StatusCode != 403 || !strings.Contains(body, "process_not_service") || strings.Contains(body, "secret") || resp.Header.Get("Parley-Decision") != e.Request.Verdict.ID {
			t.Errorf("got %d %s", resp.StatusCode, body)
		}
		if e.Code != route.ProcessRefused || !errors.Is(e.Err, errNotService) || e.Request.Process.PID != 666 || e.Request.Listener != "web.calls.orders" || !e.Request.Remote.IsValid() {
			t.Errorf("recorded %+v", e)
		}
		if len(p.orders.gate.Entries()) > 0 {
			t.Error("the call went on")
		}
	}
	t.Run("tcp", func(t *testing.T) {
		reached := make(chan struct{}, 1)
		p := newPair(t, pairConfig{protocol: call.TCP, app: tcpApp(t, "tcp", func(net.Conn) { reached <- struct{}{} })})
		p.web.setAttest(func(string, net.Conn) (call.Process, error) { return call.Process{UID: 1001}, errNotService })
		// The reset may come while the connection is still being made.
		if c, err := net.Dial("tcp", p.web.addr("web.calls.orders")); err == nil {
			// The kernel tells of a reset once: to whichever of the two comes first after it.
			_, werr := io.WriteString(c, "x")
			if got, err := io.ReadAll(c); err == nil && werr == nil || len(got) > 0 {
				t.Errorf("got %q, %v", got, err)
			}
			_ = c.Close()
		}
		if e := p.web.gate.Finished(1)[0]; e.Code != route.ProcessRefused || e.Request.Protocol != call.TCP {
			t.Errorf("recorded %+v", e)
		}
	})
}

// An attestation that takes its time holds up nobody else.
func TestSlowAttestation(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "ok")})
	first, release := make(chan struct{}), make(chan struct{})
	var asked atomic.Int32
	p.web.setAttest(func(string, net.Conn) (call.Process, error) {
		if asked.Add(1) == 1 {
			close(first)
			<-release
		}
		return call.Process{}, nil
	})
	done := make(chan string, 1)
	go func() {
		_, body := get(t, client(t, false), p.url)
		done <- body
	}()
	<-first
	if _, body := get(t, client(t, false), p.url); body != "ok" {
		t.Errorf("got %q", body)
	}
	close(release)
	if body := <-done; body != "ok" {
		t.Errorf("the first got %q", body)
	}
}

func TestApplyKeepsConnections(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "one")})
	var dials atomic.Int32
	tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	if _, body := get(t, c, p.url); body != "one" {
		t.Fatalf("got %q", body)
	}
	// Another application address, and another service beside: the listener and
	// its connections stay, the route is new.
	p.in.Services[0].Inbound.App = okApp(t, "two")
	p.in.Services = append(p.in.Services, snapshot.Service{Name: "db", ID: p.ca.ID(t, "orders"), Inbound: &snapshot.Inbound{
		Listen: "127.0.0.1:0", App: "127.0.0.1:1", Protocol: "tcp",
	}})
	before := p.orders.addr("orders.inbound")
	p.orders.apply(&p.in)
	p.web.apply(&p.out)
	if p.orders.addr("orders.inbound") != before {
		t.Error("the listener moved")
	}
	if _, body := get(t, c, p.url); body != "two" {
		t.Errorf("got %q", body)
	}
	in := p.orders.gate.Finished(2)
	if dials.Load() != 1 || in[0].Request.TLS.Connection != in[1].Request.TLS.Connection {
		t.Errorf("%d dials, connections %s and %s", dials.Load(), in[0].Request.TLS.Connection, in[1].Request.TLS.Connection)
	}
	status := p.orders.proxy.Status()
	if len(status) != 2 || status[0].Name != "db.inbound" || status[1].State != proxy.Open || status[1].Connections != 1 || status[1].Protocol != "http" {
		t.Errorf("status %+v", status)
	}
}

// What cannot be opened keeps up nothing else, since the rest would go on by routes
// that are not meant any more; it is named, and tried again.
func TestApplyAsFarAsItGoes(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "one")})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	orders := p.ca.ID(t, "orders")
	next := snapshot.Snapshot{Services: []snapshot.Service{
		{Name: "orders", ID: orders, Inbound: &snapshot.Inbound{Listen: "127.0.0.1:0", App: okApp(t, "two"), Protocol: "http"}},
		{Name: "a", ID: orders, Inbound: &snapshot.Inbound{Listen: free.Addr().String(), App: "127.0.0.1:1", Protocol: "http"}},
		{Name: "b", ID: orders, Inbound: &snapshot.Inbound{Listen: taken.Addr().String(), App: "127.0.0.1:1", Protocol: "http"}},
	}}
	for name, change := range map[string]struct {
		do   func()
		want fault.Code
	}{
		"occupied":      {func() {}, fault.PortOccupied},
		"not ours":      {func() { next.Services[2].Inbound.Listen = "192.0.2.1:80" }, fault.PortForbidden},
		"socket path":   {func() { next.Services[2].Inbound.Listen = "unix:" + strings.Repeat("/x", 100) }, fault.SocketPath},
		"no credential": {func() { next.Services[2].Inbound.Listen, next.Services[2].ID = "127.0.0.1:0", p.ca.ID(t, "other") }, ""},
	} {
		change.do()
		err := p.orders.proxy.Apply(context.Background(), &next)
		if err == nil || change.want != "" && (len(fault.All(err)) != 1 || fault.All(err)[0].Code != change.want) {
			t.Errorf("%s: %v", name, err)
		}
		status := p.orders.proxy.Status()
		if len(status) != 3 || status[0].Name != "a.inbound" || status[0].State != proxy.Open || status[2].Name != "orders.inbound" || status[2].State != proxy.Open ||
			status[1].Name != "b.inbound" || status[1].State != proxy.Failed || !errors.Is(err, status[1].Error) || status[1].Address != next.Services[2].Inbound.Listen {
			t.Errorf("%s: status %+v", name, status)
		}
		if _, body := get(t, client(t, false), p.url); body != "two" {
			t.Errorf("%s: the route answers %q", name, body)
		}
		if !p.orders.proxy.Due(&next) {
			t.Errorf("%s: it is not tried again", name)
		}
		next.Services[2].Inbound.Listen, next.Services[2].ID = taken.Addr().String(), orders
	}
	_ = taken.Close()
	p.orders.apply(&next)
	if status := p.orders.proxy.Status(); len(status) != 3 || status[1].State != proxy.Open || p.orders.proxy.Due(&next) {
		t.Errorf("once it can be opened: %+v", status)
	}
	if n := p.orders.logged("b.inbound"); n != 4 {
		t.Errorf("four reasons are logged %d times", n)
	}
}

// A listener that cannot move to its new address stays where it was, by the new
// routes; one that others need the address of does not.
func TestListenerThatCannotMove(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "one")})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	at := p.orders.addr("orders.inbound")
	next := p.in
	next.Services = slices.Clone(p.in.Services)
	next.Services[0].Inbound = &snapshot.Inbound{Listen: taken.Addr().String(), App: okApp(t, "two"), Protocol: "http"}
	for range 2 {
		if err := p.orders.proxy.Apply(context.Background(), &next); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.PortOccupied {
			t.Fatalf("got %v", err)
		}
		status := p.orders.proxy.Status()
		if len(status) != 2 || status[0].State != proxy.Failed || status[0].Address != taken.Addr().String() || status[1].State != proxy.Open || status[1].Address != at {
			t.Errorf("status %+v", status)
		}
		if _, body := get(t, client(t, false), p.url); body != "two" {
			t.Errorf("got %q", body)
		}
	}
	next.Services[0].Inbound.Protocol = "tcp" // another listener, so the old one ends
	if err := p.orders.proxy.Apply(context.Background(), &next); err == nil {
		t.Fatal("it is open")
	}
	for _, l := range p.orders.proxy.Status() {
		if l.State == proxy.Open {
			t.Errorf("a listener of the protocol before is open: %+v", l)
		}
	}
}

// Another protocol on the same address: the socket is handed over, and nobody is
// refused in between.
func TestApplyHandsOver(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "http")})
	addr := p.web.addr("web.calls.orders")
	p.out.Services[0].Outbound[0].Listen = addr
	// From port 0 to the same port stated is a new socket; state it first.
	p.web.apply(&snapshot.Snapshot{})
	for range 100 {
		if p.web.proxy.Apply(context.Background(), &p.out) == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, body := get(t, client(t, false), p.url); body != "http" {
		t.Fatalf("got %q", body)
	}
	p.in.Services[0].Inbound.Protocol, p.in.Services[0].Inbound.App = "tcp", tcpApp(t, "tcp", echoApp)
	p.orders.apply(&p.in)
	p.out.Services[0].Outbound[0].Protocol = "tcp"
	p.out.Services[0].Outbound[0].Endpoints = []string{p.orders.addr("orders.inbound")}
	p.web.apply(&p.out)
	if p.web.addr("web.calls.orders") != addr {
		t.Fatal("the listener moved")
	}
	say(t, p.dial(t), "tcp now")
}

func TestAppPort(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "ok")})
	held := fault.New(fault.AppPortHeld, "", "held")
	p.orders.setAppPort(func(s snapshot.Service) error {
		if s.Name == "db" {
			return held
		}
		return nil
	})
	p.in.Services = append(p.in.Services, snapshot.Service{Name: "db", ID: p.ca.ID(t, "orders"), Inbound: &snapshot.Inbound{Listen: "127.0.0.1:0", App: "127.0.0.1:1", Protocol: "tcp"}})
	p.orders.apply(&p.in)
	status := p.orders.proxy.Status()
	if len(status) != 2 || status[0].Name != "db.inbound" || status[0].State != proxy.Failed || !errors.Is(status[0].Error, held) || status[1].State != proxy.Open {
		t.Errorf("status %+v", status)
	}
	if _, body := get(t, client(t, false), p.url); body != "ok" {
		t.Errorf("got %q", body)
	}
	p.orders.apply(&p.in)
	p.orders.apply(&p.in)
	if n := p.orders.logged("db.inbound"); n != 1 {
		t.Errorf("what was tried three times is logged %d times, want 1", n)
	}
	p.orders.setAppPort(nil)
	p.orders.apply(&p.in)
	if status := p.orders.proxy.Status(); status[0].State != proxy.Open {
		t.Errorf("status %+v", status)
	}
}

// Whoever listens on an application's Unix socket is asked once a connection, and a
// stranger is sent nothing.
func TestAppSocketOfStranger(t *testing.T) {
	t.Parallel()
	for _, protocol := range []call.Protocol{call.HTTP, call.TCP} {
		t.Run(string(protocol), func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "p") // the path of a test's own may be too long
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			path := filepath.Join(dir, "app.sock")
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
			got := make(chan int, 4)
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					n, _ := c.Read(make([]byte, 1000))
					got <- n
					if n > 0 {
						_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
					}
					_ = c.Close()
				}
			}()
			p := newPair(t, pairConfig{protocol: protocol, app: "127.0.0.1:1"})
			p.in.Services[0].Inbound.App, p.in.Services[0].RunsAs.User = "unix:"+path, "orders"
			var stranger atomic.Bool
			p.orders.mu.Lock()
			p.orders.appConn = func(user string, c net.Conn) error {
				if _, ok := c.(*net.UnixConn); !ok || user != "orders" {
					t.Errorf("asked about %T of user %q", c, user)
				}
				if stranger.Load() {
					return fault.New(fault.AppPortHeld, "", "held")
				}
				return nil
			}
			p.orders.mu.Unlock()
			p.orders.apply(&p.in)
			ask := func() {
				c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
				if err != nil {
					return // reset before connect has returned
				}
				defer c.Close()
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n")
				_, _ = io.Copy(io.Discard, c)
			}
			stranger.Store(true)
			ask()
			if n := <-got; n != 0 {
				t.Errorf("a stranger was sent %d bytes", n)
			}
			if e := p.orders.gate.Finished(1)[0]; e.Outcome.Error != "upstream_untrusted" {
				t.Errorf("recorded %+v", e.Outcome)
			}
			stranger.Store(false)
			ask()
			if n := <-got; n == 0 {
				t.Error("the application was sent nothing")
			}
		})
	}
}

func TestUnixSockets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "ok")})
	path := filepath.Join(dir, "orders.sock")
	// What a killed process left is removed; a file is not.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	_ = old.Close()
	p.out.Services[0].Outbound[0].Listen = "unix:" + path
	p.web.apply(&p.out)
	c := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
	if _, body := get(t, c, "http://orders/"); body != "ok" {
		t.Errorf("got %q", body)
	}
	if got := p.web.addr("web.calls.orders"); got != "unix:"+path {
		t.Errorf("the address is %s", got)
	}
	for name, at := range map[string]string{"in use": path, "a file": filepath.Join(dir, "file")} {
		if name == "a file" {
			_ = os.WriteFile(at, nil, 0o600)
		}
		other := newHouse(t, p.ca, p.trust, "web")
		out := p.out
		out.Services = []snapshot.Service{p.out.Services[0]}
		out.Services[0].Outbound = []snapshot.Outbound{p.out.Services[0].Outbound[0]}
		out.Services[0].Outbound[0].Listen = "unix:" + at
		err := other.proxy.Apply(context.Background(), &out)
		if f := fault.All(err); len(f) != 1 || f[0].Code != fault.SocketPath {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A removed listener refuses new connections at once and lets calls end.
func TestRemovedListenerDrains(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "ok")
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, app: app})
	done := make(chan string, 1)
	go func() {
		_, body := get(t, client(t, false), p.url)
		done <- body
	}()
	<-entered
	p.web.apply(&snapshot.Snapshot{})
	if status := p.web.proxy.Status(); len(status) != 1 || status[0].State != proxy.Draining {
		t.Errorf("status %+v", status)
	}
	if c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://")); err == nil {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a removed listener serves")
		}
		_ = c.Close()
	}
	close(release)
	if body := <-done; body != "ok" {
		t.Errorf("the call under way got %q", body)
	}
	for range 200 {
		if len(p.web.proxy.Status()) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("still there: %+v", p.web.proxy.Status())
}

func TestDrainEndsTCP(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.TCP, app: tcpApp(t, "tcp", echoApp)})
	c := p.dial(t)
	say(t, c, "one")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := p.web.proxy.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain says %v", err)
	}
	if e := p.web.gate.Entries()[0]; !e.Done || e.Outcome.Error != route.Stopped {
		t.Errorf("recorded %+v", e.Outcome)
	}
	if err := p.web.proxy.Apply(context.Background(), &p.out); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Apply says %v", err)
	}
}

// Connections to one listener do not use up the descriptors of all the others.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: httpApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))})
	small := newSmallHouse(t, p.ca, p.trust, 2, "web")
	small.apply(&p.out)
	addr := small.addr("web.calls.orders")
	dial := func() net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		return c
	}
	first := dial()
	for n := 1; small.proxy.Status()[0].Connections < 2; n++ {
		if n == 1 {
			dial()
		}
		time.Sleep(5 * time.Millisecond)
	}
	var timeout net.Error
	if _, err := dial().Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("a connection too many: %v", err)
	}
	if e := small.gate.Finished(1)[0]; e.Code != route.Connections || e.Request.Listener != "web.calls.orders" || !e.Request.Remote.IsValid() {
		t.Errorf("recorded %+v", e)
	}
	_ = first.Close()
	for small.proxy.Status()[0].Connections > 1 {
		time.Sleep(5 * time.Millisecond)
	}
	if resp, _ := get(t, client(t, false), "http://"+addr); resp.StatusCode != http.StatusOK {
		t.Errorf("with room again: %s", resp.Status)
	}
}

// A connection was attested by the selectors of its day: under others its
// process is asked for again, on another connection.
func TestSelectorsChange(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: httpApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))})
	c := client(t, false)
	if resp, _ := get(t, c, p.url); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	p.web.setAttest(func(string, net.Conn) (call.Process, error) { return call.Process{}, errNotService })
	p.out.Services[0].RunsAs.User = "somebody"
	p.web.apply(&p.out)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		resp, _ := get(t, c, p.url)
		if resp.StatusCode == http.StatusForbidden {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the connection of before: %s", resp.Status)
		}
	}
}
