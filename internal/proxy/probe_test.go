package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/proxy/tcp"
	"github.com/parleymesh/parley/internal/snapshot"
)

// asWeb is how web calls orders by itself, around its own sidecar: as a probe, or as a
// program.
func (p *pair) asWeb(t *testing.T, probe bool) *tls.Config {
	t.Helper()
	tmpl := mtlstest.Leaf(t, p.ca.ID(t, "web"), time.Hour)
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	if probe {
		tmpl.ExtraExtensions = []pkix.Extension{{Id: identity.OIDProbe(), Critical: true, Value: asn1.NullBytes}}
		cfg.NextProtos = []string{call.Probe}
	}
	leaf, key := p.ca.Sign(t, tmpl)
	cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
	return cfg
}

// A hit is an application that only counts who comes.
type hit struct{ n atomic.Int64 }

func (h *hit) serve(net.Conn) { h.n.Add(1) }

const upgradeH2C = "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"

// An allowed probe is answered by the sidecar, whatever it asks for: there is no way on
// such a connection to the application.
func TestProbeEndsAtTheSidecar(t *testing.T) {
	t.Parallel()
	const (
		named = "GET /healthz HTTP/1.1\r\nHost: orders\r\n"
		other = "GET /orders HTTP/1.1\r\nHost: orders\r\n"
		post  = "POST /orders HTTP/1.1\r\nHost: orders\r\n"
	)
	for name, tt := range map[string]struct {
		raw    string
		status int // answered by the sidecar where it is 200
	}{
		"a request":                      {other + "\r\n", 200},
		"one that says what comes of it": {other + "Parley-Probe: forwarded\r\n\r\n", 200},
		"two at once":                    {other + "\r\n" + named + "\r\n", 200},
		"kept alive":                     {other + "Connection: keep-alive\r\n\r\n" + named + "\r\n", 200},
		"of HTTP/1.0":                    {"GET /orders HTTP/1.0\r\nHost: orders\r\nConnection: keep-alive\r\n\r\n" + named + "\r\n", 200},
		"a body":                         {post + "Content-Length: 5\r\n\r\nhello", 200},
		"a body that hides another":      {post + "Content-Length: 0\r\n\r\n" + named + "\r\n", 200},
		"a body that never comes":        {post + "Content-Length: 5\r\n\r\n", 200},
		"a body that waits":              {post + "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", 200},
		"chunks and a trailer":           {post + "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", 200},
		"the end of a stream":            {other + "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 200},
		"WebSocket":                      {asks + "\r\nearly", 200},
		"the named one with a query":     {"GET /healthz?x=1 HTTP/1.1\r\nHost: orders\r\n\r\n", 200},
		"with an empty query":            {"GET /healthz? HTTP/1.1\r\nHost: orders\r\n\r\n", 200},
		"with a slash":                   {"GET /healthz/ HTTP/1.1\r\nHost: orders\r\n\r\n", 200},
		"by another method":              {"HEAD /healthz HTTP/1.1\r\nHost: orders\r\n\r\n", 200},
		"with a body":                    {named + "Content-Length: 5\r\n\r\nhello", 200},
		"with chunks":                    {named + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200},
		"as WebSocket": {"GET /healthz HTTP/1.1\r\nHost: orders\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", 200},
		"to another protocol": {named + upgradeH2C, 501},
		"a tunnel":            {"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n", 405},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var app hit
			p := newPair(t, pairConfig{
				protocol: call.HTTP, app: tcpApp(t, "tcp", app.serve),
				ws: &snapshot.WebSocket{}, probe: &snapshot.Probe{Method: "GET", Path: "/healthz"},
			})
			w := open(t, p.orders.addr("orders.inbound"), tt.raw, p.asWeb(t, true))
			e := p.orders.gate.Finished(1)[0]
			h := w.head.Header
			if w.head.StatusCode != tt.status {
				t.Fatalf("got %s %v", w.head.Status, h)
			}
			if tt.status == 200 {
				if h.Get("Parley-Probe") != route.ProbeAnswered || h.Get("Parley-Decision") != e.Request.Verdict.ID || !w.head.Close {
					t.Errorf("got %v, close %v", h, w.head.Close)
				}
				if e.Request.TLS.ALPN != call.Probe || e.Request.Peer.ID != p.ca.ID(t, "web") || e.Outcome.Status != 200 || e.Outcome.Error != "" || e.Outcome.Upstream != "" {
					t.Errorf("recorded %+v %+v", e.Request, e.Outcome)
				}
				var timeout net.Error
				if rest, err := io.ReadAll(w.in); len(rest) > 0 || errors.As(err, &timeout) && timeout.Timeout() {
					t.Errorf("behind the answer came %q, %v", rest, err)
				}
			} else if h.Get("Parley-Probe") != "" {
				t.Errorf("got %v", h)
			}
			p.orders.gate.Finished(1)
			if n := app.n.Load(); n > 0 {
				t.Errorf("the application had %d connections", n)
			}
		})
	}
}

// probing is a client of HTTP, of its version 2 if h2, all of whose connections are of
// config.
func (p *pair) probing(t *testing.T, h2 bool, config *tls.Config) *http.Client {
	t.Helper()
	c := client(t, h2)
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		raw, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return tls.Client(raw, config), nil
	}
	return c
}

// net/http takes a probe's connection for one without TLS, on which it speaks HTTP/2 to
// whoever begins with it.
func TestProbeOfHTTP2(t *testing.T) {
	t.Parallel()
	var app hit
	p := newPair(t, pairConfig{protocol: call.HTTP, app: tcpApp(t, "tcp", app.serve)})
	c := p.probing(t, true, p.asWeb(t, true))
	url := "http://" + p.orders.addr("orders.inbound")
	for i := range 2 {
		resp, err := c.Post(url+"/orders", "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.ProtoMajor != 2 || resp.StatusCode != 200 || resp.Header.Get("Parley-Probe") != route.ProbeAnswered {
			t.Errorf("got %s %s %v", resp.Proto, resp.Status, resp.Header)
		}
		if e := p.orders.gate.Finished(i + 1)[i]; e.Request.TLS.ALPN != call.Probe || e.Outcome.Upstream != "" {
			t.Errorf("recorded %+v %+v", e.Request, e.Outcome)
		}
	}
	if n := app.n.Load(); n > 0 {
		t.Errorf("the application had %d connections", n)
	}
}

// The request that the mesh file names reaches the application, whose answer is marked
// as that; what it says of itself is not believed.
func TestNamedProbeIsForwarded(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if len(r.Header["Parley-Probe"]) > 0 {
					w.WriteHeader(500)
					return
				}
				w.Header().Set("Link", "</style.css>; rel=preload")
				w.Header().Set("Parley-Probe", "from the app")
				w.WriteHeader(http.StatusEarlyHints)
				w.Header().Set("Trailer", "Parley-Probe, X-Sum")
				w.WriteHeader(200)
				_, _ = io.WriteString(w, "healthy")
				w.Header().Set("Parley-Probe", "from the end")
				w.Header().Set("X-Sum", "7")
			}))
			p := newPair(t, pairConfig{protocol: call.HTTP, h2: v.h2, app: app, probe: &snapshot.Probe{Method: "GET", Path: "/healthz"}})
			url := "http://" + p.orders.addr("orders.inbound") + "/healthz"
			for i, tt := range []struct {
				probe bool
				want  []string
			}{{true, []string{route.ProbeForwarded}}, {false, nil}} {
				req, _ := http.NewRequest("GET", url, nil)
				req.Header.Set("Parley-Probe", "answered")
				config := p.asWeb(t, tt.probe)
				if v.client && !tt.probe {
					config.NextProtos = []string{"h2"}
				}
				resp, err := p.probing(t, v.client, config).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				if got := resp.Header["Parley-Probe"]; resp.StatusCode != 200 || string(body) != "healthy" || strings.Join(got, ",") != strings.Join(tt.want, ",") {
					t.Errorf("probe %v: got %d %q %v", tt.probe, resp.StatusCode, body, resp.Header)
				}
				if len(resp.Trailer["Parley-Probe"]) > 0 {
					t.Errorf("probe %v: at the end %v", tt.probe, resp.Trailer)
				}
				if e := p.orders.gate.Finished(i + 1)[i]; e.Outcome.Upstream != app || (e.Request.TLS.ALPN == call.Probe) != tt.probe {
					t.Errorf("recorded %+v %+v", e.Request, e.Outcome)
				}
			}
		})
	}
}

// What is denied is denied in the same words as to everybody.
func TestProbeDenied(t *testing.T) {
	t.Parallel()
	for _, probe := range []bool{true, false} {
		var app hit
		p := newPair(t, pairConfig{protocol: call.HTTP, app: tcpApp(t, "tcp", app.serve), probe: &snapshot.Probe{Method: "GET", Path: "/healthz"}})
		p.orders.gate.Decide(func(r *call.Request) call.Verdict {
			r.Caller.Workload = r.Peer.ID
			return call.Verdict{Status: 403, Code: "call_not_allowed", Reason: "path_not_allowed"}
		})
		w := open(t, p.orders.addr("orders.inbound"), "GET /healthz HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n", p.asWeb(t, probe))
		body, _ := io.ReadAll(w.head.Body)
		e := p.orders.gate.Finished(1)[0]
		if w.head.StatusCode != 403 || len(w.head.Header["Parley-Probe"]) > 0 || w.head.Header.Get("Parley-Decision") != e.Request.Verdict.ID ||
			!strings.Contains(string(body), "orders does not accept GET /healthz from web.") {
			t.Errorf("probe %v: got %s %v %s", probe, w.head.Status, w.head.Header, body)
		}
		if e.Outcome.Status != 403 || app.n.Load() > 0 {
			t.Errorf("probe %v: recorded %+v, application reached %d times", probe, e.Outcome, app.n.Load())
		}
	}
}

func TestProbeOfTCP(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		probe, allow bool
		want         string // then the connection ends
		reached      int64
	}{
		"allowed":             {true, true, tcp.ProbeAnswer, 0},
		"denied":              {true, false, "", 0},
		"a program's":         {false, true, "from the app", 1},
		"a program's, denied": {false, false, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var app hit
			p := newPair(t, pairConfig{protocol: call.TCP, app: tcpApp(t, "tcp", func(c net.Conn) {
				app.serve(c)
				_, _ = io.WriteString(c, "from the app")
			})})
			p.orders.gate.Decide(func(*call.Request) call.Verdict { return call.Verdict{Allow: tt.allow} })
			c, err := tls.Dial("tcp", p.orders.addr("orders.inbound"), p.asWeb(t, tt.probe))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			got, err := io.ReadAll(c)
			if string(got) != tt.want || (err == nil) != tt.allow {
				t.Errorf("got %q, %v", got, err)
			}
			_ = c.Close()
			e := p.orders.gate.Finished(1)[0]
			if tt.allow && (e.Outcome.BytesOut != int64(len(tt.want)) || e.Outcome.Error != "") || (e.Outcome.Upstream != "") != (tt.reached > 0) {
				t.Errorf("recorded %+v", e.Outcome)
			}
			if n := app.n.Load(); n != tt.reached {
				t.Errorf("the application had %d connections", n)
			}
		})
	}
}

// A ban ends a probe's connection as it ends every other, before it asked for anything
// and between two requests.
func TestBannedProbeIsCut(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for name, first := range map[string]string{"silent": "", "after a request": "GET /healthz HTTP/1.1\r\nHost: orders\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairConfig{protocol: call.HTTP, app: app, probe: &snapshot.Probe{Method: "GET", Path: "/healthz"}})
			c, err := tls.Dial("tcp", p.orders.addr("orders.inbound"), p.asWeb(t, true))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			in := bufio.NewReader(c)
			if first != "" {
				_, _ = io.WriteString(c, first)
				resp, err := http.ReadResponse(in, nil)
				if err != nil || resp.Header.Get("Parley-Probe") != route.ProbeForwarded || resp.Close {
					t.Fatalf("%+v, %v", resp, err)
				}
			}
			webID, ordersID := p.ca.ID(t, "web"), p.ca.ID(t, "orders")
			// A change that is not about it leaves it.
			same := mtlstest.Trust(2, []*mtlstest.CA{p.ca}, webID, ordersID)
			p.orders.sources[ordersID].SetTrust(same)
			p.orders.proxy.TrustChanged(same)
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			var timeout net.Error
			if _, err := in.ReadByte(); !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Fatalf("it ended without a ban: %v", err)
			}
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			banned := mtlstest.Trust(3, []*mtlstest.CA{p.ca}, webID, ordersID)
			banned.Banned[webID] = true
			p.orders.sources[ordersID].SetTrust(banned)
			p.orders.proxy.TrustChanged(banned)
			if _, err := in.ReadByte(); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("it goes on: %v", err)
			}
		})
	}
}
