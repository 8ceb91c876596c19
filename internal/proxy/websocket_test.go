package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/snapshot"
)

const (
	// asks is the opening handshake of RFC 6455 section 1.2, switched the answer to it.
	asks = "GET /chat?a=b HTTP/1.1\r\nHost: orders\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
	switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)

// wsApp answers every request with answer, and what agrees to a handshake goes on
// with serve.
func wsApp(t *testing.T, answer string, serve func(net.Conn, io.Reader)) (addr string, seen chan *http.Request) {
	t.Helper()
	seen = make(chan *http.Request, 16)
	return tcpApp(t, "tcp", func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			seen <- r
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
			if strings.HasPrefix(answer, "HTTP/1.1 101") && serve != nil {
				serve(c, in)
				return
			}
		}
	}), seen
}

func echo(c net.Conn, in io.Reader) { _, _ = io.Copy(c, in) }

// A socket is a client's WebSocket connection; what it carries is its own.
type wsocket struct {
	net.Conn
	in   *bufio.Reader
	head *http.Response
}

// open sends a handshake and whatever else is in raw to addr.
func open(t *testing.T, addr, raw string, secure *tls.Config) *wsocket {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if secure != nil {
		c = tls.Client(c, secure)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	w := &wsocket{Conn: c, in: bufio.NewReader(c)}
	if w.head, err = http.ReadResponse(w.in, nil); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wsocket) say(t *testing.T, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
	w.hear(t, s)
}

func (w *wsocket) hear(t *testing.T, s string) {
	t.Helper()
	buf := make([]byte, len(s))
	if _, err := io.ReadFull(w.in, buf); err != nil || string(buf) != s {
		t.Fatalf("got %q, %v; want %q", buf, err, s)
	}
}

func TestWebSocket(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("app of HTTP/2 ", h2), func(t *testing.T) {
			t.Parallel()
			app, seen := wsApp(t, switched+"Sec-WebSocket-Protocol: chat\r\nParley-Decision: forged\r\nContent-Length: 5\r\n\r\nhello", echo)
			p := newPair(t, pairConfig{protocol: call.HTTP, h2: h2, app: app, ws: &snapshot.WebSocket{}})
			// The client does not wait for the answer to the handshake.
			w := open(t, p.web.addr("web.calls.orders"), asks+"Sec-WebSocket-Protocol: chat\r\nX-Forwarded-For: 6.6.6.6\r\n\r\nearly", nil)
			h := w.head.Header
			if w.head.StatusCode != 101 || h.Get("Upgrade") != "websocket" || h.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || h.Get("Sec-Websocket-Protocol") != "chat" || h.Get("Content-Length")+h.Get("Parley-Decision") != "" {
				t.Fatalf("got %s, %v", w.head.Status, h)
			}
			w.hear(t, "helloearly")
			w.say(t, strings.Repeat("0123456789", 10_000))
			if r := <-seen; r.RequestURI != "/chat?a=b" || r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("X-Forwarded-For") != "" {
				t.Errorf("the application saw %s %v", r.RequestURI, r.Header)
			}
			if n := len(p.orders.gate.Entries()); n != 1 {
				t.Errorf("%d records", n)
			}
			_ = w.Conn.(*net.TCPConn).CloseWrite()
			if rest, err := io.ReadAll(w.in); err != nil || len(rest) > 0 {
				t.Errorf("at the end %q, %v", rest, err)
			}
			// The end of the stream came after the record.
			out, in := p.web.gate.Entries()[0], p.orders.gate.Entries()[0]
			for _, o := range []call.Outcome{out.Outcome, in.Outcome} {
				if o.Status != 101 || o.Error != "" || o.BytesIn != 100_005 || o.BytesOut != 100_010 {
					t.Errorf("recorded %+v", o)
				}
			}
			if in.Request.TLS.ALPN != "http/1.1" || in.Request.Path != "/chat" || in.Request.Peer.ID != p.ca.ID(t, "web") || out.Outcome.UpstreamTLS.Connection != in.Request.TLS.Connection {
				t.Errorf("recorded %+v %+v", in.Request, out.Outcome)
			}
		})
	}
}

// What is no proper handshake, is denied, or goes where none is offered does not
// reach the application.
func TestWebSocketRefused(t *testing.T) {
	t.Parallel()
	app, seen := wsApp(t, switched+"\r\n", echo)
	p := newPair(t, pairConfig{protocol: call.HTTP, app: app, ws: &snapshot.WebSocket{}})
	closed := newPair(t, pairConfig{protocol: call.HTTP, app: app})
	for name, tt := range map[string]struct {
		to        *pair
		raw, code string
		status    int
	}{
		"not offered": {closed, asks, "upgrade_refused", 501},
		"other":       {p, strings.Replace(asks, "websocket", "h2c", 1), "upgrade_refused", 501},
		"version":     {p, strings.Replace(asks, "13", "8", 1), "websocket_refused", 400},
		"key":         {p, strings.Replace(asks, "dGhl", "dG", 1), "websocket_refused", 400},
		"POST":        {p, strings.Replace(asks, "GET", "POST", 1), "websocket_refused", 400},
		"body":        {p, asks + "Content-Length: 1\r\n", "websocket_refused", 400},
		"path":        {p, strings.Replace(asks, "/chat", "/../chat", 1), "path_refused", 400},
	} {
		t.Run(name, func(t *testing.T) {
			tt.to.web.gate.Reset()
			w := open(t, tt.to.web.addr("web.calls.orders"), tt.raw+"\r\n", nil)
			e := tt.to.web.gate.Finished(1)[0]
			if w.head.StatusCode != tt.status || e.Code != tt.code || w.head.Header.Get("Parley-Decision") != e.Request.Verdict.ID {
				t.Errorf("got %s, recorded %s", w.head.Status, e.Code)
			}
			if tt.code == "websocket_refused" && w.head.Header.Get("Sec-Websocket-Version") != "13" {
				t.Errorf("got %v", w.head.Header)
			}
		})
	}
	p.orders.gate.Decide(func(*call.Request) call.Verdict { return call.Verdict{Status: 403, Code: "call_not_allowed"} })
	if w := open(t, p.web.addr("web.calls.orders"), asks+"\r\n", nil); w.head.StatusCode != 403 {
		t.Errorf("denied, and answered %s", w.head.Status)
	}
	// The callee's sidecar has the last word: here the caller's is out of date.
	p.in.Services[0].Inbound.WebSocket = nil
	p.orders.apply(&p.in)
	p.orders.gate.Decide(nil)
	if w := open(t, p.web.addr("web.calls.orders"), asks+"\r\n", nil); w.head.StatusCode != 501 {
		t.Errorf("not offered any more, and answered %s", w.head.Status)
	}
	if len(seen) > 0 {
		t.Errorf("the application saw %v", (<-seen).Header)
	}
}

// Nothing is relayed before the application has agreed in the one right way, and
// what it answers instead is an ordinary response.
func TestWebSocketNotSwitched(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		answer string
		status int
	}{
		"wrong accept":   {strings.Replace(switched, "s3pP", "s3pQ", 1) + "\r\nsecret", 502},
		"no accept":      {strings.Replace(switched, "Sec-WebSocket-Accept", "X-Other", 1) + "\r\nsecret", 502},
		"other protocol": {strings.Replace(switched, "websocket", "h2c", 1) + "\r\nsecret", 502},
		"no connection":  {strings.Replace(switched, "Connection: Upgrade", "X-A: b", 1) + "\r\nsecret", 502},
		"forbidden":      {"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403},
		"ordinary":       {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app, seen := wsApp(t, tt.answer, nil)
			p := newPair(t, pairConfig{protocol: call.HTTP, app: app, ws: &snapshot.WebSocket{}})
			// A request that hides behind the handshake is one of its own.
			w := open(t, p.web.addr("web.calls.orders"), asks+"\r\nGET /hidden HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n", nil)
			if w.head.StatusCode != tt.status {
				t.Errorf("got %s", w.head.Status)
			}
			all, _ := io.ReadAll(w.head.Body)
			rest, _ := io.ReadAll(w.in)
			if strings.Contains(string(all)+string(rest), "secret") {
				t.Errorf("got %q %q", all, rest)
			}
			entries := p.orders.gate.Finished(2)
			if e := entries[0]; e.Outcome.Status != tt.status || (tt.status == 502) != (e.Outcome.Error == route.UpstreamClosed) {
				t.Errorf("recorded %+v", e.Outcome)
			}
			if entries[1].Request.Path != "/hidden" || len(seen) != 2 {
				t.Errorf("decided on %s; the application saw %d requests", entries[1].Request.Path, len(seen))
			}
		})
	}
}

// A connection outlives renewal and changes of the mesh, and ends with the
// identity, with the application, and with the listener.
func TestWebSocketLives(t *testing.T) {
	t.Parallel()
	app, _ := wsApp(t, switched+"\r\n", func(c net.Conn, in io.Reader) {
		buf := make([]byte, 3)
		for {
			if _, err := io.ReadFull(in, buf); err != nil {
				return
			}
			if string(buf) == "die" {
				_ = c.(*net.TCPConn).SetLinger(0)
				return
			}
			_, _ = c.Write(buf)
		}
	})
	p := newPair(t, pairConfig{protocol: call.HTTP, app: app, ws: &snapshot.WebSocket{}})
	addr := p.web.addr("web.calls.orders")
	webID, ordersID := p.ca.ID(t, "web"), p.ca.ID(t, "orders")
	ended := func(t *testing.T, w *wsocket, n int, inbound, outbound string) {
		t.Helper()
		if rest, err := io.ReadAll(w.in); err == nil || errors.Is(err, io.EOF) || len(rest) > 0 {
			t.Errorf("it ended with %q, %v", rest, err)
		}
		in, out := p.orders.gate.Finished(n)[n-1], p.web.gate.Finished(n)[n-1]
		if in.Outcome.Error != inbound || out.Outcome.Error != outbound || in.Outcome.Status != 101 {
			t.Errorf("recorded %+v %+v", in.Outcome, out.Outcome)
		}
	}

	w := open(t, addr, asks+"\r\n", nil)
	w.say(t, "one")
	p.web.sources[webID].SetCredential(p.ca.Credential(t, "web", time.Hour))
	p.orders.sources[ordersID].SetCredential(p.ca.Credential(t, "orders", time.Hour))
	same := mtlstest.Trust(2, []*mtlstest.CA{p.ca}, webID, ordersID)
	p.orders.sources[ordersID].SetTrust(same)
	p.orders.proxy.TrustChanged(same)
	p.web.proxy.TrustChanged(same)
	p.web.apply(&p.out)
	p.orders.apply(&p.in)
	w.say(t, "two")
	for _, s := range p.web.proxy.Status() {
		if s.Connections != 1 {
			t.Errorf("%s has %d connections", s.Name, s.Connections)
		}
	}

	began := time.Now()
	gone := mtlstest.Trust(3, []*mtlstest.CA{p.ca}, ordersID)
	p.orders.sources[ordersID].SetTrust(gone)
	p.orders.proxy.TrustChanged(gone)
	ended(t, w, 1, route.TrustWithdrawn, route.UpstreamClosed)
	if d := time.Since(began); d > time.Second {
		t.Errorf("cut after %s", d)
	}
	p.orders.sources[ordersID].SetTrust(mtlstest.Trust(4, []*mtlstest.CA{p.ca}, webID, ordersID))

	w = open(t, addr, asks+"\r\n", nil)
	w.say(t, "six")
	_, _ = io.WriteString(w, "die")
	ended(t, w, 2, route.UpstreamClosed, route.UpstreamClosed)

	w = open(t, addr, asks+"\r\n", nil)
	w.say(t, "ten")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- p.orders.proxy.Drain(ctx) }()
	time.Sleep(100 * time.Millisecond)
	w.say(t, "end") // drains for as long as it may
	ended(t, w, 3, route.Stopped, route.UpstreamClosed)
	<-drained
}

// At an edge, pages of other sites are kept out; a browser sends its cookies along
// wherever the page is from.
func TestWebSocketAtEdge(t *testing.T) {
	t.Parallel()
	app, _ := wsApp(t, switched+"\r\n", echo)
	e := newEdge(t, app, false)
	e.in.Services[0].Inbound.WebSocket = &snapshot.WebSocket{}
	e.orders.apply(&e.in)
	secure := e.c.Transport.(*http.Transport).TLSClientConfig.Clone()
	secure.ServerName, secure.NextProtos = "localhost", []string{"http/1.1"}
	addr := e.gw.addr("gateway.edge")
	_, port, _ := net.SplitHostPort(addr)
	ask := strings.Replace(asks, "/chat", "/orders/chat", 1)
	ask = strings.Replace(ask, "Host: orders", "Host: localhost:"+port, 1)
	origin := func(o string) string { return ask + "Origin: " + o + "\r\n\r\n" }
	offered := &snapshot.WebSocket{Origins: []string{"https://shop.example"}}
	for _, tt := range []struct {
		ws     *snapshot.WebSocket
		raw    string
		status int
	}{
		{nil, ask + "\r\n", 501},
		{&snapshot.WebSocket{}, ask + "\r\n", 101},
		{&snapshot.WebSocket{}, origin("https://localhost:" + port), 101},
		{&snapshot.WebSocket{}, origin("http://localhost:" + port), 403},
		{&snapshot.WebSocket{}, origin("https://evil.example"), 403},
		{offered, origin("https://shop.example"), 101},
		{offered, origin("https://localhost:" + port), 403},
		{offered, origin("null"), 403},
		{offered, strings.Replace(ask, "/orders/chat", "/other", 1) + "\r\n", 501},
	} {
		e.gw.gate.Reset()
		e.snap.Gateways[0].Routes[0].WebSocket = tt.ws
		e.gw.apply(&e.snap)
		w := open(t, addr, tt.raw, secure)
		if w.head.StatusCode != tt.status {
			t.Errorf("%+v, %q: got %s", tt.ws, tt.raw, w.head.Status)
			continue
		}
		if tt.status == 101 {
			w.say(t, "hello")
			_ = w.Close()
		}
		if got := e.gw.gate.Finished(1)[0]; tt.status == 403 && (got.Code != route.OriginRefused || got.Request.Target != "orders") {
			t.Errorf("recorded %+v", got)
		}
	}
}

// WebSocket over HTTP/2 (RFC 8441) is not offered, so that clients open a connection
// of HTTP/1.1 for it; who tries all the same is refused and nothing reaches the
// application.
func TestExtendedConnect(t *testing.T) {
	t.Parallel()
	app, seen := wsApp(t, switched+"\r\n", echo)
	p := newPair(t, pairConfig{protocol: call.HTTP, app: app, ws: &snapshot.WebSocket{}})
	c := p.dial(t)
	fields := "\x02\x07CONNECT" + "\x00\x09:protocol\x09websocket" + "\x86\x84\x01\x06orders"
	_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"+
		"\x00\x00"+string(rune(len(fields)))+"\x01\x04\x00\x00\x00\x01"+fields)
	const resetStream, settings, enableConnect = 3, 4, 8
	for head := make([]byte, 9); head[3] != resetStream; {
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatalf("no refusal: %v", err)
		}
		payload := make([]byte, int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(c, payload); err != nil {
			t.Fatal(err)
		}
		for ; head[3] == settings && len(payload) >= 6; payload = payload[6:] {
			if payload[0] == 0 && payload[1] == enableConnect {
				t.Error("it is offered")
			}
		}
	}
	if len(seen) > 0 || len(p.orders.gate.Entries()) > 0 {
		t.Errorf("%d requests reached the application", len(seen))
	}
}
