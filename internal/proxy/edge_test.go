package proxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/snapshot"
)

// edge is a gateway before orders, on hosts of their own.
type edge struct {
	*pair
	gw   *house
	snap snapshot.Snapshot
	url  string
	c    *http.Client
}

func newEdge(t *testing.T, app string, h2 bool) *edge {
	t.Helper()
	return newEdgeOf(t, newPair(t, pairConfig{protocol: call.HTTP, app: app}), h2)
}

func newEdgeOf(t *testing.T, p *pair, h2 bool) *edge {
	t.Helper()
	e := &edge{pair: p}
	id, err := identity.GatewayID(e.ca.Domain, "edge")
	if err != nil {
		t.Fatal(err)
	}
	trust := mtlstest.Trust(2, []*mtlstest.CA{e.ca}, id, e.ca.ID(t, "orders"))
	e.orders.sources[e.ca.ID(t, "orders")].SetTrust(trust)
	e.gw = newHouse(t, e.ca, trust)
	e.gw.sources[id] = mtlstest.NewSource(e.ca.CredentialFor(t, id, time.Hour), trust)
	e.snap = snapshot.Snapshot{Gateways: []snapshot.Gateway{{
		Name: "edge", ID: id, Listen: "127.0.0.1:0",
		Routes: []snapshot.Route{{
			PolicyTarget: "edge/routes[0]", Host: "localhost", Path: "/orders/**", Methods: []string{"GET"},
			To: "orders", ToID: e.ca.ID(t, "orders"), Places: snapshot.Places{Endpoints: []string{e.orders.addr("orders.inbound")}},
		}},
	}}}
	e.gw.apply(&e.snap)
	_, port, _ := strings.Cut(e.gw.addr("gateway.edge"), ":")
	e.url = "https://localhost:" + port
	pool := x509.NewCertPool()
	pool.AddCert(e.ca.Root)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: h2}
	t.Cleanup(tr.CloseIdleConnections)
	e.c = &http.Client{Transport: tr, Timeout: 10 * time.Second}
	return e
}

func TestEdge(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		seen := make(chan http.Header, 1)
		app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen <- r.Header.Clone()
			_, _ = io.WriteString(w, "ok")
		}))
		e := newEdge(t, app, h2)
		e.gw.gate.Decide(func(r *call.Request) call.Verdict {
			switch {
			case r.Target == "":
				return call.Verdict{Status: 404, Code: "route_not_found"}
			case len(r.Header.Values("X-Api-Key")) == 0:
				return call.Verdict{Status: 401, Code: "credentials_required", Challenge: `Bearer realm="parley"`}
			}
			r.Caller.KeyID = "k1"
			return call.Verdict{Allow: true}
		})
		req, _ := http.NewRequest("GET", e.url+"/orders/7", nil)
		req.Header = http.Header{"X-Api-Key": {"parley_key_secret"}, "X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Prefix": {"/evil"}, "X-Real-Ip": {"6.6.6.6"}}
		resp, err := e.c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "ok" || resp.ProtoMajor == 2 != h2 {
			t.Errorf("got %s %q", resp.Proto, body)
		}
		h := <-seen
		if h.Get("X-Forwarded-For") != "127.0.0.1" || h.Get("X-Forwarded-Proto") != "https" || h.Get("X-Forwarded-Host") != "localhost" {
			t.Errorf("the app saw %v", h)
		}
		if h.Get("X-Api-Key") != "" || h.Get("X-Real-Ip") != "" || h.Get("X-Forwarded-Prefix") != "" {
			t.Errorf("the app saw %v", h)
		}
		for _, tt := range []struct {
			method, path string
			status       int
		}{{"GET", "/orders/7", 401}, {"GET", "/other", 404}, {"POST", "/orders/7", 404}, {"GET", "/orders/%2e%2e/other", 400}} {
			req, _ := http.NewRequest(tt.method, e.url+tt.path, nil)
			resp, err := e.c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status || strings.Contains(string(body), "shop.example") {
				t.Errorf("%s %s got %d %s", tt.method, tt.path, resp.StatusCode, body)
			}
			if got := resp.Header.Get("WWW-Authenticate"); (got != "") != (tt.status == 401) {
				t.Errorf("%s %s: challenge %q", tt.method, tt.path, got)
			}
		}
		in := e.orders.gate.Finished(1)[0]
		if got := in.Request.Peer.ID.Path(); got != "/gateway/edge" {
			t.Errorf("orders was called by %s", got)
		}
		gw := e.gw.gate.Finished(5)[0]
		if gw.Request.PolicyTarget != "edge/routes[0]" || gw.Request.Target != "orders" || gw.Request.Local != "edge" || gw.Request.End != call.Edge || !gw.Request.Peer.ID.IsZero() {
			t.Errorf("the edge decided on %+v", gw.Request)
		}
	}
}

// An earlier, stricter route is not avoided by another spelling of its path.
func TestEdgeRouteHasOneSpelling(t *testing.T) {
	t.Parallel()
	e := newEdge(t, httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) })), false)
	strict := e.snap.Gateways[0].Routes[0]
	strict.PolicyTarget, strict.Path = "strict", "/orders/keys:rotate"
	e.snap.Gateways[0].Routes = append([]snapshot.Route{strict}, e.snap.Gateways[0].Routes...)
	e.gw.apply(&e.snap)
	for path, want := range map[string][2]string{
		"/orders/keys:rotate":           {"strict", strict.Path},
		"/orders/keys%3Arotate":         {"strict", strict.Path},
		"/orders/keys%3arotate":         {"strict", strict.Path},
		"/orders/%6beys%3a%72otate":     {"strict", strict.Path},
		"/orders/keys%253Arotate":       {},
		"/orders/keys:rotate/now%21%2b": {"edge/routes[0]", "/orders/keys:rotate/now!%2B"},
	} {
		e.gw.gate.Reset()
		_, body := get(t, e.c, e.url+path)
		r := e.gw.gate.Finished(1)[0].Request
		if r.PolicyTarget != want[0] || want[0] != "" && (body != want[1] || r.Path != want[1]) {
			t.Errorf("%s took the route %q as %q, the application read %q", path, r.PolicyTarget, r.Path, body)
		}
	}
}

// A key stays at the edge, whether or not the route asked for it; what is the
// application's own passes.
func TestEdgeKeepsKeys(t *testing.T) {
	t.Parallel()
	seen := make(chan http.Header, 1)
	e := newEdge(t, httpApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Clone() })), true)
	const key = "parley_key_4fG7hJ9kLmN0_secret"
	for _, tt := range []struct {
		name, key  string
		send, kept http.Header
	}{
		{"public, X-API-Key", "", http.Header{"X-Api-Key": {key}, "Authorization": {"Basic YTpi"}}, http.Header{"Authorization": {"Basic YTpi"}}},
		{"public, bearer", "", http.Header{"Authorization": {"Bearer " + key}, "X-Api-Key": {"own"}}, http.Header{"X-Api-Key": {"own"}}},
		{"public, anywhere", "", http.Header{"X-Token": {"a", "k=" + key}, "Cookie": {"k=" + key}}, http.Header{}},
		{"key, bearer", "k1", http.Header{"Authorization": {"Bearer " + key}}, http.Header{}},
		{"key, beside", "k1", http.Header{"X-Api-Key": {key}, "Authorization": {"Bearer own"}}, http.Header{"Authorization": {"Bearer own"}}},
	} {
		e.gw.gate.Decide(func(r *call.Request) call.Verdict {
			r.Caller.KeyID = tt.key
			return call.Verdict{Allow: true}
		})
		req, _ := http.NewRequest("GET", e.url+"/orders/7", nil)
		req.Header = tt.send
		resp, err := e.c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		h := <-seen
		for _, name := range []string{"X-Api-Key", "Authorization", "X-Token", "Cookie"} {
			if got, want := h[name], tt.kept[name]; !slices.Equal(got, want) {
				t.Errorf("%s: the application saw %s %q, want %q", tt.name, name, got, want)
			}
		}
	}
}

// Streams that an anonymous client holds open do not take more descriptors than
// an upstream's share, and end.
func TestEdgeHeldStreams(t *testing.T) {
	t.Parallel()
	var open, most atomic.Int32
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				most.Store(max(most.Load(), open.Add(1)))
			} else if s == http.StateClosed {
				open.Add(-1)
			}
		},
	}
	go func() { _ = app.Serve(ln) }()
	t.Cleanup(func() { _ = app.Close() })
	const share = 5
	e := newEdgeOf(t, newPair(t, pairConfig{protocol: call.HTTP, app: ln.Addr().String(), connections: share}), true)
	e.snap.Gateways[0].Routes[0].Methods = nil
	e.gw.apply(&e.snap)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var answered, streams atomic.Int32
	var wg sync.WaitGroup
	for range 40 {
		body, feed := io.Pipe()
		context.AfterFunc(ctx, func() { _ = feed.Close() })
		wg.Go(func() { _, _ = feed.Write([]byte("x")) })
		req, _ := http.NewRequestWithContext(ctx, "POST", e.url+"/orders/", body)
		wg.Go(func() {
			streams.Add(1)
			resp, err := e.c.Do(req)
			if err == nil {
				answered.Add(1)
				if resp.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("a stream too many got %s", resp.Status)
				}
				_ = resp.Body.Close()
			}
		})
	}
	for n := 0; answered.Load() < 40-share; n++ {
		if n == 1600 {
			t.Fatalf("%d of 40 streams were told that there is no room", answered.Load())
		}
		time.Sleep(5 * time.Millisecond)
	}
	if most.Load() != share {
		t.Errorf("%d connections to the application", most.Load())
	}
	cancel()
	wg.Wait()
	if resp, _ := get(t, e.c, e.url+"/orders/"); resp.StatusCode != http.StatusOK {
		t.Errorf("with room again: %s", resp.Status)
	}
}

// A handshake that an edge refuses is recorded as any other.
func TestEdgeRecordsRefusedHandshakes(t *testing.T) {
	t.Parallel()
	e := newEdge(t, "127.0.0.1:1", false)
	_, port, _ := strings.Cut(e.gw.addr("gateway.edge"), ":")
	if status, _ := send(t, "127.0.0.1:"+port, "GET / HTTP/1.1\r\n"+tail); status != 0 && status != 400 {
		t.Errorf("plaintext got %d", status)
	}
	if r := e.gw.gate.Finished(1)[0]; r.Code != "handshake_refused" || r.Request.End != call.Edge || r.Request.Listener != "gateway.edge" || r.Err == nil || !r.Request.Remote.IsValid() {
		t.Errorf("recorded %+v", r)
	}
}

// What the callee's sidecar says to the gateway about it is not the world's to
// know, except the decision.
func TestEdgeRewordsCallee(t *testing.T) {
	t.Parallel()
	e := newEdge(t, "127.0.0.1:1", false)
	for status, code := range map[int]string{403: "call_not_allowed", 502: "upstream_refused"} {
		e.orders.gate.Decide(func(r *call.Request) call.Verdict {
			r.Caller.Workload = r.Peer.ID
			return call.Verdict{Allow: status == 502, Status: status, Code: code}
		})
		resp, body := get(t, e.c, e.url+"/orders/7")
		if resp.StatusCode != status || !strings.Contains(body, code) {
			t.Errorf("got %s %s", resp.Status, body)
		}
		if strings.Contains(body, "shop.example") || strings.Contains(body, "gateway") || strings.Contains(body, "owner of") {
			t.Errorf("the client was told %s", body)
		}
		entries := e.orders.gate.Entries()
		if id := entries[len(entries)-1].Request.Verdict.ID; resp.Header.Get("Parley-Decision") != id || !strings.Contains(body, id) {
			t.Errorf("without decision %s: %v %s", id, resp.Header, body)
		}
	}
	e.gw.gate.Finished(2)
}

// Only a gateway's word counts about the client: a workload's is dropped.
func TestForwardedByWorkload(t *testing.T) {
	t.Parallel()
	app := &wire{}
	p := newPair(t, pairConfig{protocol: call.HTTP, app: tcpApp(t, "tcp", app.serve)})
	cred, err := p.web.sources[p.ca.ID(t, "web")].Credential()
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*cred.Certificate()}}}
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequest("GET", "https://"+p.orders.addr("orders.inbound")+"/", nil)
	req.Header.Set("X-Forwarded-For", "6.6.6.6")
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if head := app.take()[0]; strings.Contains(head, "6.6.6.6") {
		t.Errorf("the app saw %q", head)
	}
}

// A certificate of the operator's own is read again when its files change.
func TestEdgeFiles(t *testing.T) {
	t.Parallel()
	e := newEdge(t, okApp(t, "ok"), false)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	g := &e.snap.Gateways[0]
	g.CertFile, g.KeyFile = cert, key
	err := e.gw.proxy.Apply(context.Background(), &e.snap)
	if f := fault.All(err); len(f) != 1 || f[0].Code != fault.KeyUnreadable {
		t.Errorf("missing files: %v", err)
	}
	if _, body := get(t, e.c, e.url+"/orders/"); body != "ok" {
		t.Errorf("the old edge answers %q", body)
	}
	leaf, priv := e.ca.Sign(t, mtlstest.Leaf(t, e.ca.ID(t, "files"), time.Hour))
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	_ = os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), 0o600)
	_ = os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	e.gw.apply(&e.snap)
	e.c.CloseIdleConnections()
	_, port, _ := strings.Cut(e.gw.addr("gateway.edge"), ":")
	resp, body := get(t, e.c, "https://localhost:"+port+"/orders/")
	if body != "ok" || !resp.TLS.PeerCertificates[0].Equal(leaf) {
		t.Errorf("got %q from %v", body, resp.TLS.PeerCertificates[0].URIs)
	}
}
