package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A crowd is web calling orders, which is on several hosts.
type crowd struct {
	*pair
	hosts []*house
	at    []string // where orders is called, by host
	mu    sync.Mutex
	names map[string][]string // what Lookup knows
}

// newCrowd starts orders on n hosts; app makes its application for each.
func newCrowd(t testing.TB, n int, protocol call.Protocol, balance string, app func(host int) string) *crowd {
	t.Helper()
	c := &crowd{pair: &pair{ca: mtlstest.NewCA(t, "shop.example")}, names: map[string][]string{}}
	webID, ordersID := c.ca.ID(t, "web"), c.ca.ID(t, "orders")
	c.trust = mtlstest.Trust(1, []*mtlstest.CA{c.ca}, webID, ordersID)
	for i := range n {
		h := newHouse(t, c.ca, c.trust, "orders")
		h.apply(&snapshot.Snapshot{Services: []snapshot.Service{{
			Name: "orders", ID: ordersID, Inbound: &snapshot.Inbound{Listen: "127.0.0.1:0", App: app(i), Protocol: string(protocol), AppHTTP2: true},
		}}})
		c.hosts, c.at = append(c.hosts, h), append(c.at, h.addr("orders.inbound"))
	}
	c.web = newLookupHouse(t, c.ca, c.trust, func(name string) []string {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.names[name]
	}, "web")
	c.out = snapshot.Snapshot{Services: []snapshot.Service{{Name: "web", ID: webID, Outbound: []snapshot.Outbound{{
		To: "orders", ToID: ordersID, Listen: "127.0.0.1:0", Protocol: string(protocol),
	}}}}}
	c.route(snapshot.Places{Endpoints: c.at, Balance: balance})
	c.url = "http://" + c.web.addr("web.calls.orders")
	return c
}

// route lets web call orders at p.
func (c *crowd) route(p snapshot.Places) {
	next := c.out
	next.Services = []snapshot.Service{c.out.Services[0]}
	out := c.out.Services[0].Outbound[0]
	out.Places = p
	next.Services[0].Outbound = []snapshot.Outbound{out}
	c.web.apply(&next)
}

// stop takes host i off, as if it lost its power: connections to it end too.
func (c *crowd) stop(i int) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.hosts[i].proxy.Drain(ctx)
}

// says is an application that answers with its host, and counts.
func says(t testing.TB, asked []atomic.Int32) func(int) string {
	return func(host int) string {
		return httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked[host].Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprint(w, host)
		}))
	}
}

// One connection of HTTP/2 does not swallow everything: each endpoint has its own.
func TestCallsAreSpread(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		for _, balance := range []string{"", "round_robin"} {
			t.Run(fmt.Sprintf("h2 %t %s", h2, balance), func(t *testing.T) {
				t.Parallel()
				asked := make([]atomic.Int32, 3)
				c := newCrowd(t, 3, call.HTTP, balance, says(t, asked))
				web := client(t, h2)
				for range 90 {
					if resp, body := get(t, web, c.url+"/"); resp.StatusCode != 200 {
						t.Fatalf("got %d %s", resp.StatusCode, body)
					}
				}
				for i := range asked {
					n := asked[i].Load()
					if balance != "" && n != 30 || n < 5 {
						t.Errorf("host %d got %d of 90", i, n)
					}
				}
			})
		}
	}
}

// A host that hangs gets no more than its share of those who wait.
func TestTheSlowOneIsAvoided(t *testing.T) {
	t.Parallel()
	var fast, slow atomic.Int32
	release := make(chan struct{})
	c := newCrowd(t, 2, call.HTTP, "", func(host int) string {
		return httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if host == 0 {
				slow.Add(1)
				<-release
				return
			}
			fast.Add(1)
		}))
	})
	defer close(release)
	web := client(t, true)
	web.Timeout = 500 * time.Millisecond
	for range 20 { // until it has one
		if _, err := web.Get(c.url + "/first"); err != nil {
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	held := make(chan struct{})
	go func() {
		defer close(held)
		for range 20 {
			req, _ := http.NewRequestWithContext(ctx, "GET", c.url+"/held", nil)
			if resp, err := client(t, true).Do(req); err == nil {
				_ = resp.Body.Close()
			}
			if ctx.Err() != nil {
				return
			}
		}
	}()
	for began := time.Now(); slow.Load() < 2 && time.Since(began) < 5*time.Second; {
		time.Sleep(time.Millisecond)
	}
	before := slow.Load()
	for range 100 {
		if resp, body := get(t, web, c.url+"/"); resp.StatusCode != 200 {
			t.Fatalf("got %d %s", resp.StatusCode, body)
		}
	}
	if n := slow.Load() - before; n > 0 {
		t.Errorf("the one that hangs got %d of 100", n)
	}
	cancel()
	<-held
}

// An endpoint that died costs no call, whatever the mode, and none is sent twice.
func TestDeathOfAnEndpoint(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		for _, balance := range []string{"", "round_robin"} {
			t.Run(fmt.Sprintf("h2 %t %s", h2, balance), func(t *testing.T) {
				t.Parallel()
				asked := make([]atomic.Int32, 3)
				c := newCrowd(t, 3, call.HTTP, balance, says(t, asked))
				c.stop(0) // before any connection to it
				web := client(t, h2)
				for i := range 60 {
					resp, err := web.Post(c.url+"/", "text/plain", io.NopCloser(io.LimitReader(zeros{}, 1000)))
					if err != nil || resp.StatusCode != 200 {
						t.Fatalf("call %d: %v %v", i, resp, err)
					}
					_ = resp.Body.Close()
				}
				if a, b := asked[1].Load(), asked[2].Load(); a+b != 60 || a < 5 || b < 5 {
					t.Errorf("the others got %d and %d", a, b)
				}
				c.stop(1)
				c.stop(2)
				resp, _ := get(t, web, c.url+"/")
				if resp.StatusCode != http.StatusBadGateway {
					t.Errorf("of none: %d", resp.StatusCode)
				}
			})
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// Whoever answers at an endpoint and is another service gets nothing.
func TestEndpointOfAStranger(t *testing.T) {
	t.Parallel()
	asked := make([]atomic.Int32, 1)
	c := newCrowd(t, 1, call.HTTP, "round_robin", says(t, asked))
	stranger := newHouse(t, c.ca, c.trust, "web")
	stranger.apply(&snapshot.Snapshot{Services: []snapshot.Service{{
		Name: "web", ID: c.ca.ID(t, "web"), Inbound: &snapshot.Inbound{Listen: "127.0.0.1:0", App: httpApp(t, http.NotFoundHandler()), Protocol: "http"},
	}}})
	c.route(snapshot.Places{Endpoints: []string{stranger.addr("web.inbound"), c.at[0]}, Balance: "round_robin"})
	for range 10 {
		if resp, _ := get(t, client(t, false), c.url+"/"); resp.StatusCode != 200 { // nor 404
			t.Fatalf("got %d", resp.StatusCode)
		}
	}
	c.route(snapshot.Places{Endpoints: []string{stranger.addr("web.inbound")}})
	if resp, _ := get(t, client(t, false), c.url+"/"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("of the stranger alone: %d", resp.StatusCode)
	}
}

// A change of the list leaves the connections to what stays alone, and lets what is
// under way to what goes end.
func TestListChanges(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2 %t", h2), func(t *testing.T) {
			t.Parallel()
			begun, release := make(chan int, 1), make(chan struct{})
			c := newCrowd(t, 2, call.HTTP, "round_robin", func(host int) string {
				return httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/slow" {
						begun <- host
						<-release
					}
					_, _ = fmt.Fprint(w, host)
				}))
			})
			web := client(t, h2)
			ended := make(chan string, 1)
			go func() {
				resp, err := web.Get(c.url + "/slow")
				if err != nil {
					ended <- err.Error()
					return
				}
				body, err := io.ReadAll(resp.Body)
				ended <- fmt.Sprintf("%d by %s, %v", resp.StatusCode, body, err)
			}()
			gone := <-begun
			stays := 1 - gone
			get(t, web, c.url+"/")
			get(t, web, c.url+"/")
			handshakes := func() int { return c.connections(stays) }
			before := handshakes()
			c.route(snapshot.Places{Endpoints: []string{c.at[stays]}})
			for range 10 {
				if _, body := get(t, web, c.url+"/"); body != fmt.Sprint(stays) {
					t.Errorf("answered by %s", body)
				}
			}
			if after := handshakes(); after != before || before == 0 {
				t.Errorf("%d connections before, %d after", before, after)
			}
			close(release)
			if got := <-ended; got != fmt.Sprintf("200 by %d, %v", gone, nil) {
				t.Errorf("what was under way ended with %s", got)
			}
			for began := time.Now(); c.connections(gone) > 0; time.Sleep(5 * time.Millisecond) {
				if time.Since(began) > 5*time.Second {
					t.Fatalf("%d connections to the one that went", c.connections(gone))
				}
			}
		})
	}
}

// connections are those that host has to orders.
func (c *crowd) connections(host int) int {
	for _, s := range c.hosts[host].proxy.Status() {
		if s.Name == "orders.inbound" {
			return s.Connections
		}
	}
	return 0
}

// Names are endpoints like others, as far as they are known.
func TestNamesOfEndpoints(t *testing.T) {
	t.Parallel()
	asked := make([]atomic.Int32, 2)
	c := newCrowd(t, 2, call.HTTP, "round_robin", says(t, asked))
	c.route(snapshot.Places{Names: []string{"orders.internal:9443"}})
	web := client(t, true)
	if resp, _ := get(t, web, c.url+"/"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("of a name that is not known: %d", resp.StatusCode)
	}
	c.mu.Lock()
	c.names["orders.internal:9443"] = c.at
	c.mu.Unlock()
	c.web.proxy.Resolved()
	for range 40 {
		if resp, _ := get(t, web, c.url+"/"); resp.StatusCode != 200 {
			t.Fatalf("got %d", resp.StatusCode)
		}
	}
	if a, b := asked[0].Load(), asked[1].Load(); a < 5 || b < 5 {
		t.Errorf("they got %d and %d", a, b)
	}
}

// Connections are spread by those that are open, and one that cannot be made is made
// to another endpoint.
func TestConnectionsAreSpread(t *testing.T) {
	t.Parallel()
	c := newCrowd(t, 3, call.TCP, "", func(host int) string {
		return tcpApp(t, "tcp", func(conn net.Conn) { _, _ = fmt.Fprint(conn, host); echoApp(conn) })
	})
	who := func() (int, net.Conn) {
		conn := c.dial(t)
		var b [1]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			t.Fatal(err)
		}
		return int(b[0] - '0'), conn
	}
	var count [3]int
	for range 30 { // all of them stay open
		host, _ := who()
		count[host]++
	}
	for host, n := range count {
		if n < 7 || n > 13 {
			t.Errorf("host %d has %d of 30", host, n)
		}
	}
	c.stop(1)
	for range 20 {
		if host, _ := who(); host == 1 {
			t.Error("the dead one answered")
		}
	}
}

// A rolling stop as the fleet makes it, under load: the host is withdrawn, callers
// hear of it, and then it drains. No call fails.
func TestRollingStop(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		for _, balance := range []string{"", "round_robin"} {
			t.Run(fmt.Sprintf("h2 %t %s", h2, balance), func(t *testing.T) {
				t.Parallel()
				asked := make([]atomic.Int32, 2)
				c := newCrowd(t, 2, call.HTTP, balance, says(t, asked))
				ctx, stop := context.WithCancel(t.Context())
				var calls, failed atomic.Int32
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						web := client(t, h2)
						for ctx.Err() == nil {
							calls.Add(1)
							resp, err := web.Post(c.url+"/", "text/plain", io.LimitReader(zeros{}, 3000))
							if err == nil {
								_, err = io.Copy(io.Discard, resp.Body)
								_ = resp.Body.Close()
							}
							if err != nil || resp.StatusCode != 200 {
								failed.Add(1)
							}
						}
					})
				}
				time.Sleep(400 * time.Millisecond)
				c.route(snapshot.Places{Endpoints: []string{c.at[1]}, Balance: balance})
				time.Sleep(250 * time.Millisecond) // a host waits 2 s: calls that chose before are under way
				grace, done := context.WithTimeout(t.Context(), 5*time.Second)
				defer done()
				if err := c.hosts[0].proxy.Drain(grace); err != nil {
					t.Errorf("it did not drain: %v", err)
				}
				time.Sleep(300 * time.Millisecond)
				stop()
				wg.Wait()
				if n := failed.Load(); n > 0 || calls.Load() < 20 || asked[0].Load() == 0 {
					t.Errorf("%d of %d calls failed", n, calls.Load())
				}
			})
		}
	}
}
