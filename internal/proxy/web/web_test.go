package web_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/proxy/web"
	"github.com/parleymesh/parley/internal/proxy/xtest"
)

// behind is a clock that is late by a fixed time. A limit of five minutes that is
// set by it as a deadline of a connection passes in moments.
type behind struct {
	clock.System
	by time.Duration
}

func (b behind) Now() time.Time { return b.System.Now().Add(-b.by) }

// serve runs an edge without TLS in front of app and returns its
// address.
func serve(t *testing.T, gate *xtest.Gate, clk clock.Clock, app http.HandlerFunc) string {
	t.Helper()
	backend := &http.Server{Handler: app, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	t.Cleanup(func() { _ = backend.Close() })
	return front(t, gate, clk, listen(t, backend.Serve))
}

// front is serve for an application at an address.
func front(t *testing.T, gate *xtest.Gate, clk clock.Clock, app string) string {
	t.Helper()
	up := web.NewApp(app, false, clk)
	t.Cleanup(up.Close)
	return edgeOf(t, gate, clk, up)
}

// edgeOf is an edge before up.
func edgeOf(t *testing.T, gate *xtest.Gate, clk clock.Clock, up web.Upstream) string {
	t.Helper()
	return edgeWith(t, web.Config{Gate: gate, Clock: clk, Logger: slog.New(slog.DiscardHandler)}, up)
}

func edgeWith(t *testing.T, cfg web.Config, up web.Upstream) string {
	t.Helper()
	hop := web.Hop{Target: "orders", PolicyTarget: "orders", Upstream: up}
	s := web.NewServer(cfg, &web.Site{
		End: call.Edge, Listener: "gateway.edge", Local: "edge",
		Match: func(string, string, string) web.Hop { return hop },
	})
	return listen(t, s.Serve)
}

func listen(t *testing.T, serve func(net.Listener) error) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() { _ = serve(ln) }()
	return ln.Addr().String()
}

// A wire is a client's connection, written to by hand.
type wire struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, addr string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return &wire{t, c, bufio.NewReader(c)}
}

func (w *wire) send(raw string) {
	w.t.Helper()
	if _, err := io.WriteString(w, raw); err != nil {
		w.t.Fatal(err)
	}
}

// answer reads one response and returns its status.
func (w *wire) answer() int {
	w.t.Helper()
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode
}

// A client that does not send the body it announced gets its refusal at once,
// and does not keep the connection for ever.
func TestRefusalDoesNotWaitForBody(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{
		"length":        "POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 100\r\n\r\n",
		"chunked":       "POST /a HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n",
		"expect":        "POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n",
		"not canonical": "POST /a/../b HTTP/1.1\r\nHost: orders\r\nContent-Length: 100\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gate := xtest.NewGate(t)
			gate.Decide(func(*call.Request) call.Verdict { return call.Verdict{Status: 403, Code: "call_not_allowed"} })
			// The rest of a body gets five seconds; half a second of them are left.
			c := dial(t, serve(t, gate, behind{by: 4500 * time.Millisecond}, nil))
			began := time.Now()
			c.send(head)
			if status := c.answer(); status/100 != 4 {
				t.Errorf("status %d", status)
			}
			if d := time.Since(began); d > 400*time.Millisecond {
				t.Errorf("the refusal came after %s", d)
			}
			if _, err := c.in.ReadByte(); err != io.EOF {
				t.Errorf("the connection goes on: %v", err)
			}
			gate.Finished(1)
		})
	}
}

// A refused request whose body does come leaves the connection usable.
func TestRefusalKeepsConnection(t *testing.T) {
	t.Parallel()
	gate := xtest.NewGate(t)
	gate.Decide(func(*call.Request) call.Verdict { return call.Verdict{Status: 403, Code: "call_not_allowed"} })
	c := dial(t, serve(t, gate, clock.System{}, nil))
	for range 3 {
		c.send("POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 20000\r\n\r\n")
		if status := c.answer(); status != 403 {
			t.Fatalf("status %d", status)
		}
		c.send(strings.Repeat("a", 20000))
	}
	gate.Finished(3)
}

// What is left of a body is never read as the next request.
func TestRestOfBodyIsNoRequest(t *testing.T) {
	t.Parallel()
	smuggled := "GET /smuggled HTTP/1.1\r\nHost: orders\r\n\r\n"
	for name, allow := range map[string]bool{"allowed": true, "denied": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gate := xtest.NewGate(t)
			gate.Decide(func(*call.Request) call.Verdict {
				return call.Verdict{Allow: allow, Status: 403, Code: "call_not_allowed"}
			})
			early := func(w http.ResponseWriter, _ *http.Request) {
				_ = http.NewResponseController(w).EnableFullDuplex()
				w.WriteHeader(http.StatusUnauthorized)
				_ = http.NewResponseController(w).Flush()
			}
			c := dial(t, serve(t, gate, behind{by: 4700 * time.Millisecond}, early))
			c.send(fmt.Sprintf("POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: %d\r\n\r\n", len(smuggled)))
			if status := c.answer(); status/100 != 4 {
				t.Fatalf("status %d", status)
			}
			time.Sleep(600 * time.Millisecond) // longer than the rest is waited for
			_, _ = io.WriteString(c, smuggled)
			if resp, err := http.ReadResponse(c.in, nil); err == nil {
				t.Errorf("the body was answered: %s", resp.Status)
			}
			gate.Finished(1)
		})
	}
}

// A client that never reads does not keep the connection by refusals.
func TestUnreadRefusals(t *testing.T) {
	t.Parallel()
	gate := xtest.NewGate(t)
	gate.Decide(func(*call.Request) call.Verdict { return call.Verdict{Status: 403, Code: "call_not_allowed"} })
	// Five minutes for a write, of which 300 milliseconds are left.
	c := dial(t, serve(t, gate, behind{by: 5*time.Minute - 300*time.Millisecond}, nil))
	_ = c.SetWriteDeadline(time.Now().Add(8 * time.Second))
	batch := strings.Repeat("GET /"+strings.Repeat("a", 8000)+" HTTP/1.1\r\nHost: orders\r\n\r\n", 16)
	for {
		_, err := io.WriteString(c, batch)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the connection is kept")
		}
		if err != nil {
			return
		}
	}
}

// An application that stands still in the middle of a request's body does not
// keep the call, whose client may be gone, for as long as it does.
func TestStuckApplication(t *testing.T) {
	t.Parallel()
	gate := xtest.NewGate(t)
	app := listen(t, func(ln net.Listener) error {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = ln.Accept() // until the test is over
		return err
	})
	c := dial(t, front(t, gate, behind{by: 5*time.Minute - 300*time.Millisecond}, app))
	c.send("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1000000000\r\n\r\n")
	_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		if _, err := c.Write(make([]byte, 1<<20)); err != nil {
			break
		}
	}
	_ = c.Close()
	if e := gate.Finished(1)[0]; e.Outcome.Error == "" {
		t.Errorf("recorded %+v", e.Outcome)
	}
}

// What net/http answers by itself leaves no event; it is counted, and nothing else
// is.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		raw                    string
		status, count, entries int
	}{
		"no host":     {"GET / HTTP/1.1\r\n\r\n", 400, 1, 0},
		"no request":  {"hello, is anybody there?\r\n\r\n", 400, 1, 0},
		"expectation": {"GET / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n", 417, 1, 0},
		"coding":      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, 1, 0},
		"too large":   {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", 431, 1, 0},
		"broken off":  {"GET / HTTP/1.1\r\nHost:", 0, 1, 0},
		"second":      {"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n", 404, 1, 1},
		"good":        {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404, 0, 1},
		"last":        {"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404, 0, 1},
		"refused":     {"GET // HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0, 1},
		"silent":      {"", 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var count atomic.Int32
			gate, app := xtest.NewGate(t), web.NewApp(listen(t, (&http.Server{}).Serve), false, clock.System{})
			t.Cleanup(app.Close)
			c := dial(t, edgeWith(t, web.Config{
				Gate: gate, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler), Unreadable: func() { count.Add(1) },
			}, app))
			_, _ = io.WriteString(c, tt.raw)
			if tt.status != 0 {
				if resp, err := http.ReadResponse(c.in, nil); err != nil || resp.StatusCode != tt.status {
					t.Fatalf("got %v %v, want %d", resp, err, tt.status)
				}
			}
			_ = c.Conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c.in) // until the connection is over
			for n := 0; int(count.Load()) != tt.count && n < 200; n++ {
				time.Sleep(5 * time.Millisecond)
			}
			time.Sleep(5 * time.Millisecond)
			if int(count.Load()) != tt.count {
				t.Errorf("counted %d, want %d", count.Load(), tt.count)
			}
			gate.Finished(tt.entries)
		})
	}
}

// A client of HTTP/2 that grants no room for an answer keeps neither the stream
// nor what serves it.
func TestNoRoomForAnswer(t *testing.T) {
	t.Parallel()
	for name, app := range map[string]http.HandlerFunc{
		"denied": nil,
		"length": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") },
		"stream": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "ok")
			_ = http.NewResponseController(w).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testNoRoom(t, app)
		})
	}
}

func testNoRoom(t *testing.T, app http.HandlerFunc) {
	gate := xtest.NewGate(t)
	gate.Decide(func(*call.Request) call.Verdict {
		return call.Verdict{Allow: app != nil, Status: 403, Code: "call_not_allowed"}
	})
	c := dial(t, serve(t, gate, behind{by: 5*time.Minute - 300*time.Millisecond}, app))
	const settings, headers = 4, 1
	c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c.frame(settings, 0, 0, "\x00\x04\x00\x00\x00\x00")    // SETTINGS_INITIAL_WINDOW_SIZE = 0
	c.frame(headers, 4|1, 1, "\x82\x86\x84\x01\x06orders") // GET http / orders, the whole request
	c.untilReset()
	gate.Finished(1)
}

// A stranger who begins a body over HTTP/2 and sends no more of it does not keep
// the application's connection.
func TestBodyStandsStillHTTP2(t *testing.T) {
	t.Parallel()
	gate := xtest.NewGate(t)
	c := dial(t, serve(t, gate, behind{by: 5*time.Minute - 300*time.Millisecond}, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c.frame(4, 0, 0, "")                           // SETTINGS
	c.frame(1, 4, 1, "\x83\x86\x84\x01\x06orders") // POST http / orders, without its end
	c.frame(0, 0, 1, "x")                          // DATA
	c.untilReset()
	if e := gate.Finished(1)[0]; e.Outcome.Error != "client_closed" || e.Outcome.BytesIn != 1 {
		t.Errorf("recorded %+v", e.Outcome)
	}
}

// untilReset reads frames of HTTP/2 up to a RST_STREAM.
func (w *wire) untilReset() {
	w.t.Helper()
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(w.in, head); err != nil {
			w.t.Fatalf("the stream was not reset: %v", err)
		}
		if head[3] == 3 {
			return
		}
		if _, err := w.in.Discard(int(head[0])<<16 | int(head[1])<<8 | int(head[2])); err != nil {
			w.t.Fatal(err)
		}
	}
}

// frame sends a frame of HTTP/2 (RFC 9113 section 4.1).
func (w *wire) frame(kind, flags byte, stream byte, payload string) {
	w.t.Helper()
	w.send(string([]byte{0, 0, byte(len(payload)), kind, flags, 0, 0, 0, stream}) + payload)
}

// TestAFailureOfOurOwn: a request in which this program fails is cut, recorded, and
// logged without what was sent; the next one is served.
func TestAFailureOfOurOwn(t *testing.T) {
	t.Parallel()
	var logged lockedBuffer
	gate := xtest.NewGate(t)
	fails := atomic.Bool{}
	fails.Store(true)
	up := web.NewApp(listen(t, (&http.Server{Handler: http.NotFoundHandler()}).Serve), false, clock.System{})
	t.Cleanup(up.Close)
	gate.Decide(func(r *call.Request) call.Verdict {
		if fails.Swap(false) {
			panic("secret: " + r.Header.Values("Cookie")[0])
		}
		return call.Verdict{Allow: true}
	})
	addr := edgeWith(t, web.Config{Gate: gate, Clock: clock.System{}, Logger: logging.New(&logged, logging.JSON, slog.LevelDebug, clock.System{})}, up)
	w := dial(t, addr)
	w.send("GET /fails HTTP/1.1\r\nHost: orders\r\nX-Request-Id: r1\r\nCookie: secret-cookie\r\n\r\n")
	if n, err := w.in.Read(make([]byte, 1)); err == nil {
		t.Errorf("it is answered: %d bytes", n)
	}
	w = dial(t, addr)
	w.send("GET /goes HTTP/1.1\r\nHost: orders\r\n\r\n")
	if got := w.answer(); got != http.StatusNotFound {
		t.Errorf("the next one got %d", got)
	}
	got := logged.String()
	if strings.Contains(got, "secret") || strings.Count(got, "\n") != 1 || !strings.Contains(got, `"request_id":"r1"`) || !strings.Contains(got, `"what":"string"`) || !strings.Contains(got, "TestAFailureOfOurOwn") {
		t.Error(got)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
