package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/snapshot"
)

// observe lets callers of orders in without TLS until until.
func (p *pair) observe(until time.Time) {
	p.orders.t.Helper()
	in := *p.in.Services[0].Inbound
	in.PlaintextUntil = until
	next := p.in
	next.Services = append([]snapshot.Service{}, p.in.Services...)
	next.Services[0].Inbound = &in
	p.orders.apply(&next)
}

func soon() time.Time { return time.Now().Add(time.Hour) }

// A request without TLS reaches the application as one of nobody's, marked as such
// and without anything that it claims of itself; a marked one of the mesh is not.
func TestPlaintextHTTP(t *testing.T) {
	t.Parallel()
	seen := make(chan *http.Request, 1)
	p := newPair(t, pairConfig{protocol: call.HTTP, app: httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		_, _ = io.WriteString(w, "ok")
	}))})
	url := "http://" + p.orders.addr("orders.inbound")
	ask := func(c *http.Client, url string) (int, error) {
		r, err := http.NewRequest(http.MethodPost, url+"/orders?x=1", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range []string{"Parley-Plaintext", "parley-identity", "X-Parley-Caller", "X-Forwarded-For", "X-Forwarded-Client-Cert", "Forwarded", "X-Spiffe-Id", "X-Real-Ip"} {
			r.Header.Set(h, "spiffe://shop.example/web")
		}
		resp, err := c.Do(r)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	for _, h2 := range []bool{false, true} {
		c := client(t, h2)
		if status, err := ask(c, url); err == nil {
			t.Fatalf("a strict listener answered %d", status)
		}
		p.observe(soon())
		p.orders.gate.Reset()
		status, err := ask(c, url)
		if err != nil || status != 200 {
			t.Fatalf("HTTP/2 %v: got %d, %v", h2, status, err)
		}
		r := <-seen
		if got := r.Header.Values(route.Plaintext); len(got) != 1 || got[0] != "observed" {
			t.Errorf("the application got %v", r.Header)
		}
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, ""), "spiffe://") {
				t.Errorf("the application got %s: %q", name, values)
			}
		}
		e := p.orders.gate.Finished(1)[0]
		if !e.Request.Plaintext || e.Request.Peer != (call.Peer{}) || e.Request.TLS != (call.TLS{}) || e.Request.Path != "/orders" || e.Request.End != call.Inbound || !e.Request.Remote.IsValid() || e.Outcome.BytesIn != 4 {
			t.Errorf("recorded %+v", e)
		}

		if status, err := ask(c, p.url); err != nil || status != 200 {
			t.Fatalf("meshed: got %d, %v", status, err)
		}
		if r := <-seen; r.Header.Get(route.Plaintext) != "" {
			t.Errorf("a call of the mesh is marked: %v", r.Header)
		}
		if e := p.orders.gate.Finished(2)[1]; e.Request.Plaintext || e.Request.Peer.ID != p.ca.ID(t, "web") {
			t.Errorf("recorded %+v", e)
		}
		p.observe(time.Time{})
	}
}

// Without TLS a client of TCP may speak first, or wait for the server; those of the
// mesh wait for nothing.
func TestPlaintextTCP(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.TCP, app: tcpApp(t, "tcp", func(c net.Conn) {
		_, _ = io.WriteString(c, "220 ready\n")
		_, _ = io.Copy(c, c)
	})})
	p.observe(soon())
	talk := func(addr, first string) time.Duration {
		began := time.Now()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if first != "" {
			_, _ = io.WriteString(c, first)
		}
		in := bufio.NewReader(c)
		if line, err := in.ReadString('\n'); err != nil || line != "220 ready\n" {
			t.Fatalf("got %q, %v", line, err)
		}
		took := time.Since(began)
		_, _ = io.WriteString(c, "bye")
		_ = c.(*net.TCPConn).CloseWrite()
		if rest, err := io.ReadAll(in); err != nil || string(rest) != first+"bye" {
			t.Errorf("got %q, %v", rest, err)
		}
		return took
	}
	in := p.orders.addr("orders.inbound")
	if took := talk(in, ""); took < 2*time.Second {
		t.Errorf("after %s of silence it was taken for plaintext", took)
	}
	talk(in, "hello")
	if took := talk(p.web.addr("web.calls.orders"), ""); took > 1500*time.Millisecond {
		t.Errorf("a caller of the mesh waited %s", took)
	}
	for i, e := range p.orders.gate.Finished(3) {
		if e.Request.Plaintext != (i < 2) || e.Request.Peer.ID.IsZero() != (i < 2) {
			t.Errorf("recorded %+v", e.Request)
		}
	}
}

// When the end comes, connections that are open are cut once, with what is under way
// on them, and said to be.
func TestPlaintextEnded(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	p := newPair(t, pairConfig{protocol: call.HTTP, app: httpApp(t, http.HandlerFunc(func(_ http.ResponseWriter, _ *http.Request) {
		entered <- struct{}{}
		<-release
	}))})
	until := time.Now().Add(3 * time.Second)
	p.observe(until)
	failed := make(chan error, 1)
	go func() {
		resp, err := client(t, false).Get("http://" + p.orders.addr("orders.inbound"))
		if err == nil {
			_ = resp.Body.Close()
			err = fmt.Errorf("answered %s", resp.Status)
		} else {
			err = nil
		}
		failed <- err
	}()
	<-entered
	if ended := p.orders.proxy.PlaintextEnded(); len(ended) > 0 {
		t.Errorf("before the end: %+v", ended)
	}
	time.Sleep(time.Until(until))
	ended := p.orders.proxy.PlaintextEnded()
	if len(ended) != 1 || ended[0].Listener != "orders.inbound" || ended[0].Service != "orders" || ended[0].Cut != 1 || !ended[0].Until.Equal(until) {
		t.Errorf("ended %+v", ended)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	if e := p.orders.gate.Finished(1)[0]; e.Outcome.Error != route.PlaintextEnded {
		t.Errorf("recorded %+v", e.Outcome)
	}
	if ended := p.orders.proxy.PlaintextEnded(); len(ended) > 0 {
		t.Errorf("once more: %+v", ended)
	}
	p.observe(until) // another revision with the same date opens nothing, and ends nothing again
	if _, err := client(t, false).Get("http://" + p.orders.addr("orders.inbound")); err == nil {
		t.Error("let in after the end")
	}
	if ended := p.orders.proxy.PlaintextEnded(); len(ended) > 0 {
		t.Errorf("after another revision: %+v", ended)
	}
}

// While a service changes between strict and observe under load, no call of the mesh
// is lost: neither one by HTTP in either version, nor a TCP or WebSocket connection
// that stays open throughout. What is open without TLS is cut.
func TestPlaintextSwitches(t *testing.T) {
	t.Parallel()
	upgraded, _ := wsApp(t, switched+"\r\n", echo)
	pairs := map[string]*pair{
		"http/1.1": newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "ok")}),
		"h2":       newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "ok")}),
		"tcp":      newPair(t, pairConfig{protocol: call.TCP, app: tcpApp(t, "tcp", func(c net.Conn) { echo(c, c) })}),
		"ws":       newPair(t, pairConfig{protocol: call.HTTP, app: upgraded, ws: &snapshot.WebSocket{}}),
	}
	var over atomic.Bool
	var calls atomic.Int64
	var wg sync.WaitGroup
	load := func(what string, once func() error) {
		wg.Go(func() {
			for !over.Load() {
				if err := once(); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	for _, proto := range []string{"http/1.1", "h2"} {
		kept := client(t, proto == "h2")
		fresh := client(t, proto == "h2")
		ask := func(c *http.Client) error {
			resp, err := c.Get(pairs[proto].url)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok" {
				return fmt.Errorf("got %s %q, %w", resp.Status, body, err)
			}
			return nil
		}
		load(proto, func() error { return ask(kept) })
		load(proto+", new connections", func() error {
			defer fresh.CloseIdleConnections()
			return ask(fresh)
		})
	}
	say := func(c net.Conn, in io.Reader) error {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err
		}
		buf := make([]byte, 5)
		_, err := io.ReadFull(in, buf)
		return err
	}
	kept, err := net.Dial("tcp", pairs["tcp"].web.addr("web.calls.orders"))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	load("the TCP connection", func() error { return say(kept, kept) })
	load("new TCP connections", func() error {
		c, err := net.Dial("tcp", pairs["tcp"].web.addr("web.calls.orders"))
		if err != nil {
			return err
		}
		defer c.Close()
		return say(c, c)
	})
	ws := open(t, pairs["ws"].web.addr("web.calls.orders"), asks+"\r\n", nil)
	load("the WebSocket connection", func() error { return say(ws, ws.in) })

	plain := func(name, first string) net.Conn {
		c, err := net.Dial("tcp", pairs[name].orders.addr("orders.inbound"))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, first)
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Errorf("%s without TLS: %v", name, err)
		}
		return c
	}
	for range 10 {
		for _, p := range pairs {
			p.observe(soon())
		}
		open := map[string]net.Conn{
			"http/1.1": plain("http/1.1", "GET / HTTP/1.1\r\nHost: orders\r\n\r\n"),
			"tcp":      plain("tcp", "hello"),
			"ws":       plain("ws", asks+"\r\n"),
		}
		time.Sleep(20 * time.Millisecond)
		for _, p := range pairs {
			p.observe(time.Time{})
		}
		for name, c := range open {
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s without TLS was not cut: %v", name, err)
			}
			_ = c.Close()
		}
	}
	over.Store(true)
	wg.Wait()
	if calls.Load() < 100 {
		t.Errorf("only %d calls", calls.Load())
	}
}
