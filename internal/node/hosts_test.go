package node_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/node"
)

const twoHosts = `
trust_domain: two.example
leaf_ttl: 10s
hosts: {a: {}, b: {}}
services:
  web:
    runs_on: [a]
    runs_as: {exe: %[1]s}
    calls: [{to: site, listen: %[2]q}, {to: lines, listen: %[5]q}]
  site:
    runs_on: [b]
    runs_as: {exe: /nobody/there}
    inbound: {listen: ":%[3]s", app: %[4]q}
    allow: [{from: [web], methods: [GET]}]
  lines:
    runs_on: [b]
    runs_as: {exe: /nobody/there}
    inbound: {listen: ":%[6]s", app: %[7]q, protocol: tcp}
    allow: [{from: [web]}]
`

// A fleet is a server and its agents, in one process and joined by real TLS.
type fleet struct {
	*mesh
	cfg  node.Config
	text string
	out  string // web's way to site
	tcp  string // and to lines
}

func startFleet(t *testing.T) *fleet {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "the site") }))
	t.Cleanup(site.Close)
	f := &fleet{out: freeAddr(t), tcp: freeAddr(t)}
	f.text = fmt.Sprintf(twoHosts, self, f.out, freePort(t), site.Listener.Addr(), f.tcp, freePort(t), echoLines(t))
	dir := shortDir(t)
	addr := freeAddr(t)
	f.cfg = node.Config{
		Host: "srv", Dir: dir, APISocket: filepath.Join(dir, "api.sock"), ServerOnly: true, TrustDomain: "two.example",
		Listen: addr, Advertise: []string{addr}, Clock: clock.System{}, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	f.mesh = startWith(t, f.cfg)
	f.apply(f.text)
	return f
}

// token is a join token for host.
func (f *fleet) token(host string) string {
	f.t.Helper()
	j, err := f.api.CreateJoinToken(f.t.Context(), api.JoinTokenRequest{Host: host})
	if err != nil {
		f.t.Fatal(err)
	}
	return j.Token
}

func hostConfig(t *testing.T, dir, token string) node.HostConfig {
	return node.HostConfig{
		Dir: dir, Socket: filepath.Join(dir, "w.sock"), Token: token, Clock: clock.System{},
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

// host starts an agent, which is stopped with the test at the latest.
func host(t *testing.T, cfg node.HostConfig) *node.Node {
	t.Helper()
	n, err := node.StartHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { halt(t, n) })
	return n
}

func halt(t *testing.T, n *node.Node) {
	t.Helper()
	ctx, done := context.WithTimeout(context.Background(), 20*time.Second)
	defer done()
	// Without a server the last events wait for the next start, which it says.
	if err := n.Stop(ctx); err != nil && !strings.Contains(err.Error(), "no server answers") && !strings.Contains(err.Error(), "left in the agent's log") {
		t.Errorf("stop: %v", err)
	}
}

// call is what web gets of site.
func (f *fleet) call(method string) (int, error) {
	req, err := http.NewRequestWithContext(f.t.Context(), method, "http://"+f.out+"/", nil)
	if err != nil {
		return 0, err
	}
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// wants waits until method gets status.
func (f *fleet) wants(what, method string, status int) {
	f.t.Helper()
	var got int
	var err error
	for range 100 {
		if got, err = f.call(method); got == status {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	f.t.Fatalf("%s: %s got %d (%v), want %d", what, method, got, err, status)
}

func TestTwoHosts(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	dirA, dirB := shortDir(t), shortDir(t)
	a := host(t, hostConfig(t, dirA, f.token("a")))
	b := host(t, hostConfig(t, dirB, f.token("b")))
	f.wants("at first", "GET", 200)
	f.wants("without a rule", "POST", 403)

	st, err := f.api.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Hosts) != 2 || st.Hosts[0].State != api.StateOK || st.Hosts[1].State != api.StateOK || st.Revision != 1 {
		t.Errorf("hosts %+v, revision %d", st.Hosts, st.Revision)
	}
	for _, s := range st.Services {
		if s.State != api.StateOK {
			t.Errorf("service %+v", s)
		}
	}

	// The server is gone: calls go on, also when an agent starts anew meanwhile.
	halt(t, f.Node)
	var failed atomic.Int64
	for range 20 {
		if got, err := f.call("GET"); got != 200 {
			failed.Add(1)
			t.Errorf("without a server: %d, %v", got, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	halt(t, b)
	b = host(t, hostConfig(t, dirB, ""))
	f.wants("an agent that started without a server", "GET", 200)
	halt(t, a)
	a = host(t, hostConfig(t, dirA, ""))
	f.wants("both agents started without a server", "GET", 200)

	// It comes back: a change arrives.
	f.mesh = startWith(t, f.cfg)
	f.apply(strings.Replace(f.text, "[GET]", "[GET, POST]", 1))
	f.wants("a change after the outage", "POST", 200)
	_, _ = a, b
}

// A host that the mesh file does not name any more is cut off, and back when it is.
func TestHostLeavesAndComesBack(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	host(t, hostConfig(t, shortDir(t), f.token("a")))
	host(t, hostConfig(t, shortDir(t), f.token("b")))
	f.wants("at first", "GET", 200)
	without := strings.Replace(f.text, "hosts: {a: {}, b: {}}", "hosts: {b: {}}", 1)
	without = strings.Replace(without, "runs_on: [a]", "runs_on: [b]", 1)
	without = strings.Replace(without, f.out, freeAddr(t), 1) // here both hosts are one machine
	without = strings.Replace(without, f.tcp, freeAddr(t), 1)
	f.apply(without)
	f.state("a", "")
	f.apply(f.text)
	f.state("a", api.StateOK)
	f.wants("back again", "GET", 200)
}

// state waits until a host is in a state, "" for not there.
func (f *fleet) state(name string, want api.State) {
	f.t.Helper()
	var last []api.HostStatus
	for range 200 {
		st, err := f.api.Status(f.t.Context())
		if err != nil {
			f.t.Fatal(err)
		}
		got := api.State("")
		for _, h := range st.Hosts {
			if h.Name == name {
				got = h.State
			}
		}
		if got == want {
			return
		}
		last = st.Hosts
		time.Sleep(50 * time.Millisecond)
	}
	f.t.Fatalf("host %s is not %q: %+v", name, want, last)
}

// A join token is good once, for one machine; the same machine may ask again.
func TestJoinTokenIsUsedOnce(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	token := f.token("a")
	const n = 50
	var wg sync.WaitGroup
	var won, refused atomic.Int64
	nodes := make([]*node.Node, n)
	for i := range n {
		dir := shortDir(t)
		cfg := hostConfig(t, dir, token)
		cfg.Logger = slog.New(slog.DiscardHandler)
		wg.Go(func() {
			var err error
			nodes[i], err = node.StartHost(t.Context(), cfg)
			var fl *fault.Fault
			switch {
			case err == nil:
				won.Add(1)
			case errors.As(err, &fl) && fl.Code == fault.JoinToken:
				refused.Add(1)
			default:
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	for _, x := range nodes {
		if x != nil {
			halt(t, x)
		}
	}
	if won.Load() != 1 || refused.Load() != n-1 {
		t.Errorf("%d joined and %d were refused, want 1 and %d", won.Load(), refused.Load(), n-1)
	}
}

func TestJoinRefuses(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	other := startFleet(t)
	good := f.token("a")
	ended := f.shortToken("a", 1)
	time.Sleep(1100 * time.Millisecond)
	foreign := other.token("a")
	// The same secret, sent to another server than the one that it is of.
	for name, tt := range map[string]struct {
		token string
		code  fault.Code
	}{
		"nothing":   {"", fault.JoinToken},
		"text":      {"hello", fault.JoinToken},
		"cut":       {good[:len(good)-2], fault.JoinToken},
		"expired":   {ended, fault.JoinToken},
		"elsewhere": {redirect(t, foreign, f.cfg.Listen), fault.ServerUntrusted},
		"unheard":   {redirect(t, good, freeAddr(t)), fault.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			n, err := node.StartHost(t.Context(), hostConfig(t, dir, tt.token))
			var fl *fault.Fault
			if !errors.As(err, &fl) || fl.Code != tt.code || fl.Hint == "" {
				t.Errorf("got %v, want %s with a hint", err, tt.code)
			}
			if n != nil {
				halt(t, n)
			}
		})
	}
	// None of that used the good one up.
	host(t, hostConfig(t, shortDir(t), good))
}

// A server with more addresses than a join token holds says so when one is asked
// for, and records no right to join.
func TestJoinTokenOfManyAddresses(t *testing.T) {
	t.Parallel()
	dir, addr := shortDir(t), freeAddr(t)
	m := startWith(t, node.Config{
		Host: "srv", Dir: dir, APISocket: filepath.Join(dir, "api.sock"), ServerOnly: true, TrustDomain: "two.example",
		Listen: addr, Advertise: slices.Repeat([]string{addr}, 17), Clock: clock.System{}, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	m.apply("trust_domain: two.example\nhosts: {a: {}}\nservices: {web: {runs_on: [a], runs_as: {user: nobody}}}\n")
	_, err := m.api.CreateJoinToken(t.Context(), api.JoinTokenRequest{Host: "a"})
	var fl *fault.Fault
	if !errors.As(err, &fl) || fl.Code != fault.BadRequest || !strings.Contains(fl.Hint, "--advertise") {
		t.Errorf("got %v", err)
	}
	page, err := m.api.Events(t.Context(), api.ListEventsParams{Action: string(audit.JoinCreated)})
	if err != nil || len(page.Items) > 0 {
		t.Errorf("on record: %v, %v", page, err)
	}
}

func (f *fleet) shortToken(host string, seconds int64) string {
	f.t.Helper()
	j, err := f.api.CreateJoinToken(f.t.Context(), api.JoinTokenRequest{Host: host, ExpiresIn: seconds})
	if err != nil {
		f.t.Fatal(err)
	}
	return j.Token
}

// redirect is a token that leads to another address.
func redirect(t *testing.T, token, addr string) string {
	t.Helper()
	parsed, err := link.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	parsed.Addresses = []string{addr}
	return parsed.String()
}

// line sends a line over an open connection to lines and wants it back.
func line(c net.Conn, in *bufio.Reader) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	got, err := in.ReadString('\n')
	if err == nil && got != "hello\n" {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

// stream is an open connection to lines that works.
func (f *fleet) stream() (net.Conn, *bufio.Reader) {
	f.t.Helper()
	var last error
	for range 100 {
		var c net.Conn
		if c, last = net.Dial("tcp", f.tcp); last == nil {
			in := bufio.NewReader(c)
			if last = line(c, in); last == nil {
				f.t.Cleanup(func() { c.Close() })
				return c, in
			}
			c.Close()
		}
		time.Sleep(100 * time.Millisecond)
	}
	f.t.Fatal(last)
	return nil, nil
}

// confirmed wants a ban or its end confirmed by both hosts.
func (f *fleet) confirmed(r *api.BanResult, err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, h := range r.Hosts {
		if !h.Confirmed {
			f.t.Errorf("not in force on %s: %s", h.Name, h.Note)
		}
	}
	if len(r.Hosts) != 2 {
		f.t.Errorf("hosts: %+v", r.Hosts)
	}
}

// A ban cuts what is open, within a second, on both hosts, whichever end is
// banned; it outlives every process, and ends without a restart.
func TestBan(t *testing.T) {
	t.Parallel()
	for _, banned := range []string{"web", "lines"} {
		t.Run(banned, func(t *testing.T) {
			t.Parallel()
			f := startFleet(t)
			dirA, dirB := shortDir(t), shortDir(t)
			a := host(t, hostConfig(t, dirA, f.token("a")))
			b := host(t, hostConfig(t, dirB, f.token("b")))
			c, in := f.stream()
			began := time.Now()
			f.confirmed(f.api.Ban(t.Context(), api.BanRequest{Identity: banned, Reason: "test"}))
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the connection lives on: %v", err)
			}
			if d := time.Since(began); d > time.Second {
				t.Errorf("cut after %s", d)
			}
			refused := func(what string) {
				t.Helper()
				for range 3 {
					c, err := net.Dial("tcp", f.tcp)
					if err == nil {
						if err = line(c, bufio.NewReader(c)); err == nil {
							t.Fatalf("%s: served although it is banned", what)
						}
						c.Close()
					}
				}
			}
			refused("at once")
			halt(t, a)
			halt(t, b)
			halt(t, f.Node)
			a, b = host(t, hostConfig(t, dirA, "")), host(t, hostConfig(t, dirB, ""))
			time.Sleep(500 * time.Millisecond)
			refused("after agents started without a server")
			f.mesh = startWith(t, f.cfg)
			f.state("a", api.StateOK)
			f.state("b", api.StateOK)
			refused("after everything started anew")
			f.confirmed(f.api.Unban(t.Context(), banned))
			f.stream()
			_, _ = a, b
		})
	}
}

// An agent whose host is banned is cut off, and gets nothing any more.
func TestBanOfHost(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	host(t, hostConfig(t, shortDir(t), f.token("a")))
	host(t, hostConfig(t, shortDir(t), f.token("b")))
	f.wants("at first", "GET", 200)
	if _, err := f.api.Ban(t.Context(), api.BanRequest{Identity: "host/a"}); err != nil {
		t.Fatal(err)
	}
	f.state("a", api.StateFailed)
	if _, err := f.api.Unban(t.Context(), "host/a"); err != nil {
		t.Fatal(err)
	}
	f.state("a", api.StateOK)
}
