package proxy_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/proxy"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/snapshot"
)

var errHeld = fault.New(fault.AppPortHeld, "", "held by a stranger")

// heldBy refuses every service of another user.
func heldBy(user string) func(snapshot.Service) error {
	return func(s snapshot.Service) error {
		if s.RunsAs.User != user {
			return errHeld
		}
		return nil
	}
}

// mustBeCut says that the connection ends long before a drain would end it.
func mustBeCut(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("%d bytes came", n)
	} else if e, ok := err.(net.Error); ok && e.Timeout() {
		t.Error("the connection to the stranger goes on")
	}
}

// failedOnly says that orders' inbound does not run, and why.
func failedOnly(t *testing.T, h *house) {
	t.Helper()
	for _, l := range h.proxy.Status() {
		if l.Name == "orders.inbound" && (l.State == proxy.Open || l.State == proxy.Failed && l.Error == nil) {
			t.Errorf("status %+v", l)
		}
	}
}

// Only the selectors change, or only who holds the port: the inbound that runs is
// closed, with the connections that lead to the stranger, and nothing more gets to
// it until that is mended.
func TestAppOfAStrangerGetsNothingMore(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]func(p *pair){
		"runs_as changes": func(p *pair) { p.in.Services[0].RunsAs.User = "other" },
		"the port is taken": func(p *pair) {
			p.orders.setAppPort(heldBy("other"))
			if !p.orders.proxy.Due(&p.in) {
				panic("it is not noticed that the port was taken")
			}
		},
	} {
		for _, protocol := range []call.Protocol{call.HTTP, call.TCP} {
			t.Run(name+" "+string(protocol), func(t *testing.T) {
				t.Parallel()
				testTaken(t, protocol, taken)
			})
		}
	}
}

func testTaken(t *testing.T, protocol call.Protocol, taken func(*pair)) {
	app := okApp(t, "served")
	if protocol == call.TCP {
		app = tcpApp(t, "tcp", echoApp)
	}
	p := newPair(t, pairConfig{protocol: protocol, app: app})
	p.orders.setAppPort(heldBy("web"))
	p.in.Services[0].RunsAs.User = "web"
	p.in.Services[0].Inbound.Listen = p.orders.addr("orders.inbound") // to find it again
	p.orders.apply(&snapshot.Snapshot{})
	applySoon(t, p.orders, &p.in)
	if p.orders.proxy.Due(&p.in) {
		t.Error("a change without one")
	}
	open := p.dial(t)
	ask := func(c net.Conn) {
		t.Helper()
		if protocol == call.TCP {
			say(t, c, "before")
			return
		}
		if _, body := get(t, client(t, false), p.url); body != "served" {
			t.Fatalf("got %q", body)
		}
	}
	ask(open)

	taken(p)
	p.orders.apply(&p.in)
	failedOnly(t, p.orders)
	if protocol == call.TCP {
		mustBeCut(t, open)
		p.wantReset(t)
	} else if resp, body := get(t, client(t, false), p.url); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("got %s %q", resp.Status, body)
	}
	if p.orders.proxy.Due(&p.in) {
		t.Error("what is known already is a change")
	}

	p.orders.setAppPort(nil)
	if !p.orders.proxy.Due(&p.in) {
		t.Error("it is not noticed that the port is free again")
	}
	applySoon(t, p.orders, &p.in)
	ask(p.dial(t))
}

// applySoon waits for a socket that was closed a moment ago.
func applySoon(t *testing.T, h *house, s *snapshot.Snapshot) {
	t.Helper()
	var err error
	for range 100 {
		if err = h.proxy.Apply(context.Background(), s); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
}

// A request that the stranger is holding ends, too.
func TestAppOfAStrangerLosesTheCallUnderWay(t *testing.T) {
	t.Parallel()
	entered, left := make(chan struct{}), make(chan struct{})
	p := newPair(t, pairConfig{protocol: call.HTTP, app: httpApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(left)
	}))})
	answered := make(chan string, 1)
	go func() {
		resp, err := client(t, false).Get(p.url)
		if err != nil {
			answered <- err.Error()
			return
		}
		_ = resp.Body.Close()
		answered <- resp.Status
	}()
	<-entered
	p.orders.setAppPort(heldBy("orders"))
	p.orders.apply(&p.in)
	select {
	case <-left:
	case <-time.After(5 * time.Second):
		t.Error("the stranger's side of the call goes on")
	}
	if got := <-answered; got != "502 Bad Gateway" {
		t.Errorf("the caller got %s", got)
	}
}

// So is one of a revision of which another listener cannot be opened.
func TestAppOfAStrangerIsCutOffAlthoughTheRestFails(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.TCP, app: tcpApp(t, "tcp", echoApp)})
	open := p.dial(t)
	say(t, open, "before")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p.orders.setAppPort(func(s snapshot.Service) error {
		if s.Name == "orders" {
			return errHeld
		}
		return nil
	})
	p.in.Services = append(p.in.Services, snapshot.Service{Name: "db", ID: p.ca.ID(t, "orders"), Inbound: &snapshot.Inbound{
		Listen: taken.Addr().String(), App: "127.0.0.1:1", Protocol: "tcp",
	}})
	for range 2 {
		if err := p.orders.proxy.Apply(context.Background(), &p.in); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.PortOccupied {
			t.Fatalf("got %v", err)
		}
		failedOnly(t, p.orders)
	}
	mustBeCut(t, open)
	if e := p.orders.gate.Finished(1)[0]; e.Outcome.Error != route.Stopped {
		t.Errorf("recorded %+v", e.Outcome)
	}
	p.orders.setAppPort(nil)
	if !p.orders.proxy.Due(&p.in) {
		t.Error("it is not tried again")
	}
}

// Another user is another process: connections that were made to the one before
// are not used again. Nor are those that were made before a stranger was found.
func TestAppOfAnotherUserIsDialledAnew(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := map[string]int{}
	p := newPair(t, pairConfig{protocol: call.HTTP, app: httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen[r.RemoteAddr]++
		_, _ = io.WriteString(w, "ok")
	}))})
	p.in.Services[0].Inbound.Listen = p.orders.addr("orders.inbound")
	p.orders.apply(&snapshot.Snapshot{})
	applySoon(t, p.orders, &p.in)
	c := client(t, false)
	served := func(want int) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; {
			// The connection between the sidecars may be closing under a call.
			if resp, _ := get(t, c, p.url); resp.StatusCode == http.StatusOK {
				break
			} else if time.Now().After(end) {
				t.Fatal(resp.Status)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(seen) != want {
			t.Errorf("the application saw the connections %v, want %d", seen, want)
		}
	}
	for i, user := range []string{"one", "one", "two"} {
		p.in.Services[0].RunsAs.User = user
		p.orders.apply(&p.in)
		served([]int{1, 1, 2}[i])
	}
	next := p.in
	next.Services = append(next.Services, snapshot.Service{Name: "db", ID: p.ca.ID(t, "other"), Inbound: &snapshot.Inbound{
		Listen: "127.0.0.1:0", App: "127.0.0.1:1", Protocol: "tcp",
	}})
	p.orders.setAppPort(func(s snapshot.Service) error {
		if s.Name == "orders" {
			return errHeld
		}
		return nil
	})
	if p.orders.proxy.Apply(context.Background(), &next) == nil {
		t.Fatal("a service without a credential is served")
	}
	p.orders.setAppPort(nil)
	applySoon(t, p.orders, &p.in)
	served(3)
}
