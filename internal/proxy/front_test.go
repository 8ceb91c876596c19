package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// plain sends one request over plaintext and returns the whole answer's head.
func plain(t *testing.T, addr, request string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return resp
}

func TestRedirect(t *testing.T) {
	t.Parallel()
	e := newEdge(t, "127.0.0.1:1", false)
	gw := &e.snap.Gateways[0]
	gw.HSTS = "max-age=60"
	gw.Redirect = &snapshot.Redirect{Listen: "127.0.0.1:0", Hosts: []string{"api.shop.example", "*.shop.internal", "127.0.0.1"}, Port: 443}
	e.gw.apply(&e.snap)
	addr := e.gw.addr("gateway.edge.redirect")
	get := func(target, host string, fields ...string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
	}
	for name, tt := range map[string]struct {
		request, location string
		status            int
		code              string // of the refusal on record
	}{
		"a host of a route":    {get("/orders/7?a=b%2F", "api.shop.example"), "https://api.shop.example/orders/7?a=b%2F", 308, ""},
		"with a port":          {get("/", "API.shop.example:80"), "https://api.shop.example/", 308, ""},
		"one label more":       {get("/x", "a.shop.internal"), "https://a.shop.internal/x", 308, ""},
		"an address":           {get("/x", "127.0.0.1:8080"), "https://127.0.0.1/x", 308, ""},
		"another method":       {"POST /orders HTTP/1.1\r\nHost: api.shop.example\r\nContent-Length: 2\r\n\r\nhi", "https://api.shop.example/orders", 308, ""},
		"one that never sends": {"POST /orders HTTP/1.1\r\nHost: api.shop.example\r\nContent-Length: 2\r\n\r\n", "https://api.shop.example/orders", 308, ""},
		"canonical path":       {get("/%6frders", "api.shop.example"), "https://api.shop.example/orders", 308, ""},
		"forwarded elsewhere":  {get("/x", "api.shop.example", "X-Forwarded-Host: evil.example"), "https://api.shop.example/x", 308, ""},
		"another host":         {get("/", "evil.example"), "", 404, "route_not_found"},
		"a host below":         {get("/", "a.b.shop.internal"), "", 404, "route_not_found"},
		"a host around it":     {get("/", "api.shop.example.evil.example"), "", 404, "route_not_found"},
		"a user in it":         {get("/", "api.shop.example@evil.example"), "", 400, ""}, // by net/http
		"absolute form":        {get("http://api.shop.example/", "api.shop.example"), "", 400, "path_refused"},
		"to another authority": {get("//evil.example/", "api.shop.example"), "", 400, "path_refused"},
		"dot segments":         {get("/a/%2e%2e/b", "api.shop.example"), "", 400, "path_refused"},
		"a backslash":          {get("/\\evil.example", "api.shop.example"), "", 400, "path_refused"},
		"a key":                {get("/orders/7", "api.shop.example", "X-API-Key: parley_key_canary"), "", 403, "https_required"},
		"a token":              {get("/orders/7", "api.shop.example", "Authorization: Bearer canary"), "", 403, "https_required"},
		"an upgrade":           {get("/", "api.shop.example", "Connection: Upgrade", "Upgrade: h2c"), "", 501, "upgrade_refused"},
	} {
		resp := plain(t, addr, tt.request)
		if resp.StatusCode != tt.status || resp.Header.Get("Location") != tt.location {
			t.Errorf("%s: %d %q", name, resp.StatusCode, resp.Header.Get("Location"))
		}
		if resp.Header.Get("Strict-Transport-Security") != "" {
			t.Errorf("%s: HSTS over plaintext", name)
		}
		entries := e.gw.gate.Entries()
		e.gw.gate.Reset()
		recorded := ""
		for _, x := range entries {
			recorded += x.Code
		}
		if recorded != tt.code {
			t.Errorf("%s: recorded %q, want %q", name, recorded, tt.code)
		}
		for _, x := range entries {
			if x.Err != nil && strings.Contains(x.Err.Error(), "canary") {
				t.Errorf("%s: %v", name, x.Err)
			}
		}
	}
	// Another port of the edge, and other hosts, from the next request on.
	gw.Redirect = &snapshot.Redirect{Listen: gw.Redirect.Listen, Hosts: []string{"other.example", "::1"}, Port: 8443}
	e.gw.apply(&e.snap)
	if resp := plain(t, addr, get("/", "other.example")); resp.Header.Get("Location") != "https://other.example:8443/" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	if resp := plain(t, addr, get("/", "[::1]")); resp.Header.Get("Location") != "https://[::1]:8443/" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	gw.Redirect = nil
	e.gw.apply(&e.snap)
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}

// TestRedirectTakesThePort: an address that is taken changes nothing.
func TestRedirectTakesThePort(t *testing.T) {
	t.Parallel()
	e := newEdge(t, "127.0.0.1:1", false)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e.snap.Gateways[0].Redirect = &snapshot.Redirect{Listen: l.Addr().String(), Hosts: []string{"a"}, Port: 443}
	if err := e.gw.proxy.Apply(context.Background(), &e.snap); err == nil {
		t.Error("a port that is taken is taken again")
	}
	e.gw.addr("gateway.edge")
}

func TestHSTS(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=0")
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(http.StatusEarlyHints)
	}))
	e := newEdge(t, app, false)
	e.gw.gate.Decide(func(r *call.Request) call.Verdict {
		return call.Verdict{Allow: r.Path == "/orders/7", Status: 403, Code: "call_not_allowed"}
	})
	if resp, _ := get(t, e.c, e.url+"/orders/7"); resp.Header.Get("Strict-Transport-Security") != "max-age=0" {
		t.Errorf("off, and still the application's: %v", resp.Header)
	}
	e.snap.Gateways[0].HSTS = "max-age=60; includeSubDomains"
	e.gw.apply(&e.snap)
	for _, path := range []string{"/orders/7", "/orders/8", "/orders//8", "/other"} {
		resp, _ := get(t, e.c, e.url+path)
		if got := resp.Header.Values("Strict-Transport-Security"); len(got) != 1 || got[0] != "max-age=60; includeSubDomains" {
			t.Errorf("%s: %d with %q", path, resp.StatusCode, got)
		}
	}
}

// TestTokenStaysAtTheEdge: a verified token goes no further unless the route says
// so; what is not ours to look at is the application's.
func TestTokenStaysAtTheEdge(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ verified, forward, want bool }{
		"verified":           {true, false, false},
		"verified, forward":  {true, true, true},
		"not ours":           {false, false, true},
		"not ours, whatever": {false, true, true},
	} {
		seen := make(chan string, 1)
		app := httpApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Get("Authorization") }))
		e := newEdge(t, app, false)
		e.snap.Gateways[0].Routes[0].ForwardToken = tt.forward
		e.gw.apply(&e.snap)
		e.gw.gate.Decide(func(r *call.Request) call.Verdict {
			if tt.verified {
				r.Caller.Token = &identity.Token{Subject: "alice"}
			}
			return call.Verdict{Allow: true}
		})
		req, _ := http.NewRequest("GET", e.url+"/orders/7", nil)
		req.Header.Set("Authorization", "Bearer a.b.c")
		resp, err := e.c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := <-seen; (got == "Bearer a.b.c") != tt.want || !tt.want && got != "" {
			t.Errorf("%s: the application saw %q", name, got)
		}
	}
}

// TestTrustedProxies: what a client writes about itself reaches neither the record
// nor the application, and what the stated proxies write does.
func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	seen := make(chan http.Header, 1)
	app := httpApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Clone() }))
	e := newEdge(t, app, false)
	for name, tt := range map[string]struct {
		proxies                *snapshot.Proxies
		forwarded, proto       string
		client, sees, seesHTTP string
	}{
		"none":     {nil, "192.0.2.1", "http", "", "127.0.0.1", "https"},
		"this one": {&snapshot.Proxies{Hops: 1, From: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, "6.6.6.6, 192.0.2.1", "http", "192.0.2.1", "192.0.2.1", "http"},
		"another":  {&snapshot.Proxies{Hops: 9, From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, "10.0.0.1", "http", "", "127.0.0.1", "https"},
	} {
		e.snap.Gateways[0].Proxies = tt.proxies
		e.gw.apply(&e.snap)
		e.gw.gate.Reset()
		req, _ := http.NewRequest("GET", e.url+"/orders/7", nil)
		req.Header = http.Header{
			"X-Forwarded-For": {tt.forwarded}, "X-Forwarded-Proto": {tt.proto}, "X-Forwarded-Host": {"evil.example"},
			"Forwarded": {"for=6.6.6.6"}, "X-Real-Ip": {"6.6.6.6"},
		}
		resp, err := e.c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		h := <-seen
		got := fmt.Sprint(h.Values("X-Forwarded-For"), h.Values("X-Forwarded-Proto"), h.Values("X-Forwarded-Host"), h.Values("Forwarded"), h.Values("X-Real-Ip"))
		if want := fmt.Sprintf("[%s] [%s] [localhost] [] []", tt.sees, tt.seesHTTP); got != want {
			t.Errorf("%s: the application saw %s, want %s", name, got, want)
		}
		r := e.gw.gate.Finished(1)[0].Request
		client := ""
		if r.Client.IsValid() {
			client = r.Client.String()
		}
		if client != tt.client || r.Remote.Addr().String() != "127.0.0.1" {
			t.Errorf("%s: recorded %s by %s", name, r.Client, r.Remote)
		}
	}
}
