package web_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/proxy/web"
	"github.com/parleymesh/parley/internal/proxy/xtest"
)

// A backend is an application written by hand, one function a connection.
type backend struct {
	addr  string
	conns atomic.Int32
	asked atomic.Int32 // requests but those that warm up
}

func newBackend(t *testing.T, serve func(*backend, net.Conn)) *backend {
	t.Helper()
	b := &backend{}
	b.addr = listen(t, func(ln net.Listener) error {
		for {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			b.conns.Add(1)
			go func() {
				defer c.Close()
				serve(b, c)
			}()
		}
	})
	return b
}

// http1 answers requests; one for /deed it carries out and says no word of it.
func (b *backend) http1(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/deed" {
			b.asked.Add(1)
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

// A request that an application may have carried out is not sent again, however
// idempotent it says it is, and has one event.
func TestNotSentAgain(t *testing.T) {
	t.Parallel()
	for _, head := range []string{
		"GET /deed HTTP/1.1\r\n",
		"HEAD /deed HTTP/1.1\r\n",
		"OPTIONS /deed HTTP/1.1\r\n",
		"POST /deed HTTP/1.1\r\nContent-Length: 0\r\nIdempotency-Key: k\r\n",
		"DELETE /deed HTTP/1.1\r\nX-Idempotency-Key: k\r\n",
		"PUT /deed HTTP/1.1\r\nContent-Length: 1\r\nIdempotency-Key: k\r\n",
	} {
		b, gate := newBackend(t, (*backend).http1), xtest.NewGate(t)
		addr := front(t, gate, clock.System{}, b.addr)
		// Connections that were used before, of which each might take it.
		var warm sync.WaitGroup
		for range 4 {
			warm.Go(func() {
				w := dial(t, addr)
				w.send("GET /warm HTTP/1.1\r\nHost: a\r\n\r\n")
				w.answer()
			})
		}
		warm.Wait()
		gate.Finished(4)
		gate.Reset()
		w := dial(t, addr)
		w.send(head + "Host: a\r\n\r\n")
		if strings.HasPrefix(head, "PUT") {
			w.send("x")
		}
		resp, err := http.ReadResponse(w.in, &http.Request{Method: strings.Fields(head)[0]})
		if err != nil || resp.StatusCode != http.StatusBadGateway {
			t.Fatalf("%q: %v %v", head, resp, err)
		}
		if n := b.asked.Load(); n != 1 {
			t.Errorf("%q was carried out %d times", head, n)
		}
		if e := gate.Finished(1)[0]; e.Outcome.Error != "upstream_closed" || e.Outcome.Upstream != b.addr {
			t.Errorf("%q was recorded as %+v", head, e.Outcome)
		}
	}
}

// An application that closes idle connections is asked on another one.
func TestIdleConnectionClosed(t *testing.T) {
	t.Parallel()
	b := newBackend(t, func(_ *backend, c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	gate := xtest.NewGate(t)
	addr := front(t, gate, clock.System{}, b.addr)
	w := dial(t, addr)
	for i := range 100 {
		w.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
		if status := w.answer(); status != http.StatusOK {
			t.Fatalf("request %d: %d", i, status)
		}
		time.Sleep(time.Millisecond) // the close is behind the answer
	}
}

// An upstream has so many connections and no more: a request waits for its turn,
// and is told when there is none.
func TestPoolLimit(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	app := listen(t, (&http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			<-release
		}
	})}).Serve)
	gate, up := xtest.NewGate(t), web.NewApp(app, false, clock.System{})
	up.Limit = func() int { return 2 }
	t.Cleanup(up.Close)
	addr := edgeOf(t, gate, clock.System{}, up)
	ask := func(path string) chan int {
		status, w := make(chan int, 1), dial(t, addr)
		w.send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n")
		go func() { status <- w.answer() }()
		return status
	}
	held := []chan int{ask("/hold"), ask("/hold")}
	for len(gate.Entries()) < 2 {
		time.Sleep(time.Millisecond)
	}
	if status := <-ask("/late"); status != http.StatusServiceUnavailable {
		t.Errorf("without room: %d", status)
	}
	waiting := []chan int{ask("/a"), ask("/b"), ask("/c")}
	gone := dial(t, addr)
	gone.send("GET /gone HTTP/1.1\r\nHost: a\r\n\r\n")
	for len(gate.Entries()) < 7 {
		time.Sleep(time.Millisecond)
	}
	_ = gone.Close()
	close(release)
	for _, c := range append(held, waiting...) {
		if status := <-c; status != http.StatusOK {
			t.Errorf("in its turn: %d", status)
		}
	}
	var busy int
	for _, e := range gate.Finished(7) {
		if e.Outcome.Error == "upstream_busy" {
			busy++
		}
	}
	if busy != 1 {
		t.Errorf("%d calls were recorded as upstream_busy", busy)
	}
}

// skipping is a clock whose seconds pass in no time for who sleeps.
type skipping struct {
	clock.System
	ahead *atomic.Int64
}

func (s skipping) Now() time.Time { return s.System.Now().Add(time.Duration(s.ahead.Load())) }

// Connections are used again, and closed when they have been idle.
func TestPoolKeepsAndSweeps(t *testing.T) {
	t.Parallel()
	var ended atomic.Int32
	b := newBackend(t, func(b *backend, c net.Conn) {
		b.http1(c)
		ended.Add(1)
	})
	ahead := new(atomic.Int64)
	addr := front(t, xtest.NewGate(t), skipping{ahead: ahead}, b.addr)
	w := dial(t, addr)
	ask := func() {
		w.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
		if status := w.answer(); status != http.StatusOK {
			t.Fatal(status)
		}
	}
	for range 20 {
		ask()
	}
	if n := b.conns.Load(); n != 1 || ended.Load() != 0 {
		t.Errorf("%d connections for one request after the other, %d ended", n, ended.Load())
	}
	ahead.Store(int64(time.Hour))
	ask()
	for n := 0; ended.Load() != 1; n++ {
		if n == 200 {
			t.Fatal("a connection outlives its time")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if n := b.conns.Load(); n != 2 {
		t.Errorf("%d connections, want a new one", n)
	}
}

// Codes of RFC 9113 section 7.
const (
	noError       = 0
	protocolError = 1
	internalError = 2
	refusedStream = 7
	cancel        = 8
)

// http2 answers the first request of a connection and treats the second one of
// the first connection with fault.
func http2(fault func(c net.Conn, stream uint32)) func(*backend, net.Conn) {
	var first atomic.Bool
	return func(b *backend, c net.Conn) {
		faulty := first.CompareAndSwap(false, true)
		preface := make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
		if _, err := io.ReadFull(c, preface); err != nil {
			return
		}
		writeFrame(c, 4, 0, 0, nil) // SETTINGS
		for n := 0; ; {
			var head [9]byte
			if _, err := io.ReadFull(c, head[:]); err != nil {
				return
			}
			size := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
			if _, err := io.CopyN(io.Discard, c, int64(size)); err != nil {
				return
			}
			stream := binary.BigEndian.Uint32(head[5:])
			switch {
			case head[3] == 4 && head[4] == 0: // SETTINGS
				writeFrame(c, 4, 1, 0, nil)
			case head[3] == 1: // HEADERS
				if n++; n > 1 || !faulty {
					b.asked.Add(1)
				}
				if n > 1 && faulty {
					fault(c, stream)
				} else {
					writeFrame(c, 1, 5, stream, []byte{0x88}) // :status 200, END_STREAM
				}
			}
		}
	}
}

func writeFrame(c net.Conn, kind, flags byte, stream uint32, payload []byte) {
	b := append([]byte{0, 0, byte(len(payload)), kind, flags}, binary.BigEndian.AppendUint32(nil, stream)...)
	_, _ = c.Write(append(b, payload...))
}

func reset(code uint32) func(net.Conn, uint32) {
	return func(c net.Conn, stream uint32) {
		writeFrame(c, 3, 0, stream, binary.BigEndian.AppendUint32(nil, code))
	}
}

// goAway says that streams up to last were or will be looked at, and closes.
func goAway(last, code uint32) func(net.Conn, uint32) {
	return func(c net.Conn, _ uint32) {
		writeFrame(c, 7, 0, 0, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, last), code))
		_ = c.(*net.TCPConn).CloseWrite()
	}
}

// Over HTTP/2 a server can say that it has not looked at a request, and only then
// it is sent again, once.
func TestNotSentAgainHTTP2(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fault  func(net.Conn, uint32)
		asked  int32
		conns  int32
		status int
	}{
		"refused":                  {reset(refusedStream), 2, 1, 502}, // and again refused
		"protocol error":           {reset(protocolError), 1, 1, 502},
		"cancel":                   {reset(cancel), 1, 1, 502},
		"internal error":           {reset(internalError), 1, 1, 502},
		"closed":                   {func(c net.Conn, _ uint32) { _ = c.Close() }, 1, 1, 502},
		"going away, unseen":       {goAway(1, noError), 2, 2, 200},
		"going away, seen":         {goAway(3, noError), 1, 1, 502},
		"going away with an error": {goAway(1, internalError), 2, 2, 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, gate := newBackend(t, http2(tt.fault)), xtest.NewGate(t)
			up := web.NewApp(b.addr, true, clock.System{})
			t.Cleanup(up.Close)
			addr := edgeOf(t, gate, clock.System{}, up)
			w := dial(t, addr)
			ask := func() int {
				w.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
				return w.answer()
			}
			if status := ask(); status != http.StatusOK {
				t.Fatal(status)
			}
			if status := ask(); status != tt.status {
				t.Errorf("status %d, want %d", status, tt.status)
			}
			if asked, conns := b.asked.Load(), b.conns.Load(); asked != tt.asked || conns != tt.conns {
				t.Errorf("asked %d times on %d connections, want %d and %d", asked, conns, tt.asked, tt.conns)
			}
			gate.Finished(2)
		})
	}
}
