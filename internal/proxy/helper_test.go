package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/proxy"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/proxy/xtest"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A house is one host's proxy with the credentials of its services.
type house struct {
	t       testing.TB
	ca      *mtlstest.CA
	proxy   *proxy.Proxy
	gate    *xtest.Gate
	sources map[identity.ID]*mtlstest.Source

	mu      sync.Mutex // guards what follows
	log     bytes.Buffer
	attest  func(service string, conn net.Conn) (call.Process, error)
	appPort func(snapshot.Service) error
	appConn func(user string, conn net.Conn) error
	lookup  func(name string) []string
}

func newHouse(t testing.TB, ca *mtlstest.CA, trust *identity.Trust, names ...string) *house {
	t.Helper()
	return newSmallHouse(t, ca, trust, 0, names...)
}

// newSmallHouse has at most so many connections to a listener.
func newSmallHouse(t testing.TB, ca *mtlstest.CA, trust *identity.Trust, connections int, names ...string) *house {
	t.Helper()
	double := xtest.NewGate(t)
	h := newHouseOf(t, ca, trust, double, connections, names...)
	h.gate = double
	return h
}

// newLookupHouse knows DNS names of endpoints.
func newLookupHouse(t testing.TB, ca *mtlstest.CA, trust *identity.Trust, lookup func(string) []string, names ...string) *house {
	t.Helper()
	h := newHouse(t, ca, trust, names...)
	h.lookup = lookup
	return h
}

// newHouseOf has a gate of its own, and no double of one.
func newHouseOf(t testing.TB, ca *mtlstest.CA, trust *identity.Trust, gate route.Gate, connections int, names ...string) *house {
	t.Helper()
	h := &house{t: t, ca: ca, sources: map[identity.ID]*mtlstest.Source{}}
	for _, n := range names {
		h.sources[ca.ID(t, n)] = mtlstest.NewSource(ca.Credential(t, n, time.Hour), trust)
	}
	h.proxy = proxy.New(proxy.Config{
		Gate: gate,
		Source: func(id identity.ID) (identity.Source, bool) {
			s, ok := h.sources[id]
			return s, ok
		},
		Attest: func(service string, c net.Conn) (call.Process, error) {
			h.mu.Lock()
			attest := h.attest
			h.mu.Unlock()
			if attest != nil {
				return attest(service, c)
			}
			return call.Process{PID: 42, UID: 1000}, nil
		},
		AppPort: func(s snapshot.Service) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.appPort != nil {
				return h.appPort(s)
			}
			return nil
		},
		AppConn: func(user string, c net.Conn) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.appConn(user, c)
		},
		MaxConnections: connections,
		Lookup: func(name string) []string {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.lookup == nil {
				return nil
			}
			return h.lookup(name)
		},
		Clock:  clock.System{},
		Logger: slog.New(slog.NewTextHandler(h, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_ = h.proxy.Drain(ctx)
	})
	return h
}

// Write implements io.Writer for the log of errors.
func (h *house) Write(line []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(line)
}

// logged is how often the log of errors says text.
func (h *house) logged(text string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Count(h.log.String(), text)
}

func (h *house) setAttest(f func(string, net.Conn) (call.Process, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attest = f
}

func (h *house) setAppPort(f func(snapshot.Service) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.appPort = f
}

func (h *house) apply(s *snapshot.Snapshot) {
	h.t.Helper()
	if err := h.proxy.Apply(context.Background(), s); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) addr(name string) string {
	h.t.Helper()
	for _, s := range h.proxy.Status() {
		if s.Name == name && s.State == proxy.Open {
			return s.Address
		}
	}
	h.t.Fatalf("%s is not open: %+v", name, h.proxy.Status())
	return ""
}

// A pair is web calling orders: two proxies, as on two hosts.
type pair struct {
	ca     *mtlstest.CA
	web    *house // outbound
	orders *house // inbound
	trust  *identity.Trust
	url    string // web's way to orders
	app    string // the application's address
	out    snapshot.Snapshot
	in     snapshot.Snapshot
}

type pairConfig struct {
	protocol call.Protocol
	h2       bool
	app      string
	ws       *snapshot.WebSocket
	probe    *snapshot.Probe
	// connections of a listener or upstream of orders, 0 for the usual.
	connections int
}

func newPair(t testing.TB, cfg pairConfig) *pair {
	t.Helper()
	p := &pair{ca: mtlstest.NewCA(t, "shop.example"), app: cfg.app}
	webID, ordersID := p.ca.ID(t, "web"), p.ca.ID(t, "orders")
	p.trust = mtlstest.Trust(1, []*mtlstest.CA{p.ca}, webID, ordersID)
	p.orders = newSmallHouse(t, p.ca, p.trust, cfg.connections, "orders")
	p.web = newHouse(t, p.ca, p.trust, "web")
	p.in = snapshot.Snapshot{Services: []snapshot.Service{{
		Name: "orders", ID: ordersID,
		Inbound: &snapshot.Inbound{Listen: "127.0.0.1:0", App: cfg.app, Protocol: string(cfg.protocol), AppHTTP2: cfg.h2, WebSocket: cfg.ws, Probe: cfg.probe},
	}}}
	p.orders.apply(&p.in)
	p.out = snapshot.Snapshot{Services: []snapshot.Service{{
		Name: "web", ID: webID,
		Outbound: []snapshot.Outbound{{
			To: "orders", ToID: ordersID, Listen: "127.0.0.1:0", Protocol: string(cfg.protocol),
			Places: snapshot.Places{Endpoints: []string{p.orders.addr("orders.inbound")}}, WebSocket: cfg.ws,
		}},
	}}}
	p.web.apply(&p.out)
	p.url = "http://" + p.web.addr("web.calls.orders")
	return p
}

// httpApp is an application on loopback; h2 makes it speak HTTP/2 as well.
func httpApp(t testing.TB, h http.Handler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	// One stream that is not read leaves the connection room for others.
	windows := &http.HTTP2Config{MaxReceiveBufferPerConnection: 16 << 20, MaxReceiveBufferPerStream: 1 << 20}
	s := &http.Server{Handler: h, Protocols: &protocols, HTTP2: windows, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	return ln.Addr().String()
}

func client(t testing.TB, h2 bool) *http.Client {
	t.Helper()
	tr := &http.Transport{Protocols: new(http.Protocols), MaxIdleConnsPerHost: 64, DisableCompression: true}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetUnencryptedHTTP2(h2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func get(t testing.TB, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

var errNotService = errors.New("the process is not web")
