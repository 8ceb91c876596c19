package route_test

import (
	"bufio"
	"net/http"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/proxy/route"
)

// handshake is the example of RFC 6455 section 1.2.
const handshake = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Version: 13\r\n\r\n"

func TestCheckWebSocket(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		old, new string
		ok       bool
	}{
		"the example":       {"", "", true},
		"capitals":          {"websocket", "WebSocket", true},
		"among others":      {"Connection: Upgrade", "Connection: keep-alive, upgrade", true},
		"POST":              {"GET", "POST", false},
		"HTTP/1.0":          {"HTTP/1.1", "HTTP/1.0", false},
		"a body":            {"Upgrade: websocket", "Content-Length: 1\r\nUpgrade: websocket", false},
		"a chunked body":    {"Upgrade: websocket", "Transfer-Encoding: chunked\r\nUpgrade: websocket", false},
		"no Upgrade":        {"Upgrade: websocket\r\n", "", false},
		"no Connection":     {"Connection: Upgrade\r\n", "", false},
		"other Connection":  {"Connection: Upgrade", "Connection: Upgrade2", false},
		"no version":        {"Sec-WebSocket-Version: 13\r\n", "", false},
		"old version":       {"Version: 13", "Version: 8", false},
		"two versions":      {"Version: 13", "Version: 13, 8", false},
		"version twice":     {"Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13", false},
		"no key":            {"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", false},
		"short key":         {"dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", false},
		"long key":          {"dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQAA", false},
		"unpadded key":      {"dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", false},
		"trailing bits":     {"dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZR==", false},
		"no base64":         {"dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j!Q==", false},
		"key twice":         {"Sec-WebSocket-Key: dGhl", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhl", false},
		"two in one":        {"dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ==,dGhlIHNhbXBsZSBub25jZQ==", false},
		"another protocol":  {"Upgrade: websocket", "Upgrade: tls/1.0", false},
		"one among several": {"Upgrade: websocket", "Upgrade: websocket, tls/1.0", false},
	} {
		raw := strings.Replace(handshake, tt.old, tt.new, 1)
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !route.AsksUpgrade(r.Header) {
			t.Errorf("%s: taken for an ordinary request", name)
		}
		if err := route.CheckWebSocket(r); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if route.AsksUpgrade(http.Header{"Connection": {"keep-alive, te"}}) {
		t.Error("an ordinary request is taken for an upgrade")
	}
}

func TestSwitched(t *testing.T) {
	t.Parallel()
	const key = "dGhlIHNhbXBsZSBub25jZQ=="
	good := http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Accept": {"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}}
	if !route.Switched(good, key) {
		t.Error("the answer of RFC 6455 section 1.3 is refused")
	}
	if route.Switched(good, "dGhlIHNhbXBsZSBub25jZA==") {
		t.Error("the answer to another key is taken")
	}
	for name, values := range map[string][]string{
		"Upgrade": {"websocket", "websocket"}, "Connection": {"close"}, "Sec-Websocket-Accept": {"s3pPLMBiTxaQ9kYGzzhZRbK+xOo"},
	} {
		for _, v := range [][]string{nil, values} {
			h := good.Clone()
			h[name] = v
			if route.Switched(h, key) {
				t.Errorf("%s %q is taken", name, v)
			}
		}
	}
}

func TestCheckOrigin(t *testing.T) {
	t.Parallel()
	shop := []string{"https://shop.example", "https://admin.shop.example:8443"}
	for _, tt := range []struct {
		origins []string
		allowed []string
		own     string
		ok      bool
	}{
		{nil, nil, "https://api.example", true},
		{nil, shop, "https://api.example", true},
		{[]string{"https://api.example"}, nil, "https://api.example", true},
		{[]string{"https://API.example"}, nil, "https://api.example", true},
		{[]string{"http://api.example"}, nil, "https://api.example", false},
		{[]string{"https://api.example:8443"}, nil, "https://api.example", false},
		{[]string{"https://api.example.evil.example"}, nil, "https://api.example", false},
		{[]string{"https://evil.example"}, nil, "https://api.example", false},
		{[]string{"null"}, nil, "https://api.example", false},
		{[]string{""}, nil, "https://api.example", false},
		{[]string{"https://shop.example"}, shop, "https://api.example", true},
		{[]string{"https://admin.shop.example:8443"}, shop, "https://api.example", true},
		{[]string{"https://api.example"}, shop, "https://api.example", false},
		{[]string{"https://sub.shop.example"}, shop, "https://api.example", false},
		{[]string{"https://shop.example", "https://shop.example"}, shop, "https://api.example", false},
		{[]string{"https://shop.example https://evil.example"}, shop, "https://api.example", false},
	} {
		h := http.Header{}
		if tt.origins != nil {
			h["Origin"] = tt.origins
		}
		if err := route.CheckOrigin(h, tt.allowed, tt.own); (err == nil) != tt.ok {
			t.Errorf("%q among %q of %s: %v", tt.origins, tt.allowed, tt.own, err)
		}
	}
	for host, want := range map[string]string{"Shop.example:443": "https://shop.example", "shop.example:8443": "https://shop.example:8443", "[::1]:443": "https://[::1]"} {
		if got := route.Origin(true, host); got != want {
			t.Errorf("%s: %s", host, got)
		}
	}
	if got := route.Origin(false, "shop.example:80"); got != "http://shop.example" {
		t.Error(got)
	}
}

// FuzzCheckWebSocket: what is let through has the one form.
func FuzzCheckWebSocket(f *testing.F) {
	f.Add("GET", "websocket", "Upgrade", "dGhlIHNhbXBsZSBub25jZQ==", "13")
	f.Add("GET", "websocket", "keep-alive,Upgrade", "dGhlIHNhbXBsZSBub25jZR==", "13")
	f.Add("POST", "h2c", "", "====", "")
	f.Fuzz(func(t *testing.T, method, upgrade, connection, key, version string) {
		r := &http.Request{Method: method, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{
			"Upgrade": {upgrade}, "Connection": {connection}, "Sec-Websocket-Key": {key}, "Sec-Websocket-Version": {version},
		}}
		if route.CheckWebSocket(r) != nil {
			return
		}
		if method != "GET" || !strings.EqualFold(upgrade, "websocket") || len(key) != 24 || version != "13" || !strings.Contains(strings.ToLower(connection), "upgrade") {
			t.Errorf("%q %q %q %q %q is let through", method, upgrade, connection, key, version)
		}
	})
}
