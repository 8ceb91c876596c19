package proxy_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// tcpApp serves each connection on loopback, or on a Unix socket.
func tcpApp(t testing.TB, network string, serve func(net.Conn)) string {
	t.Helper()
	at := "127.0.0.1:0"
	if network == "unix" {
		at = filepath.Join(t.TempDir(), "app.sock")
	}
	ln, err := net.Listen(network, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	if network == "unix" {
		return "unix:" + at
	}
	return ln.Addr().String()
}

func echoApp(c net.Conn) { _, _ = io.Copy(c, c) }

func (p *pair) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.web.addr("web.calls.orders"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn)
}

// wantReset connects and reads until the connection is reset, which may come
// before connect has returned.
func (p *pair) wantReset(t testing.TB) []byte {
	t.Helper()
	c, err := net.Dial("tcp", p.web.addr("web.calls.orders"))
	var got []byte
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		got, err = io.ReadAll(c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q ended with %v, not with a reset", got, err)
	}
	return got
}

func say(t testing.TB, c net.Conn, s string) {
	t.Helper()
	buf := make([]byte, len(s))
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != s {
		t.Fatalf("got %q, %v", buf, err)
	}
}

func TestTCP(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			app := tcpApp(t, network, echoApp)
			p := newPair(t, pairConfig{protocol: call.TCP, app: app})
			c := p.dial(t)
			body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
			go func() {
				_, _ = c.Write(body)
				_ = c.CloseWrite() // the answer goes on after our end
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			// The end of the stream came after the record.
			out, in := p.web.gate.Entries()[0], p.orders.gate.Entries()[0]
			if !out.Done || !in.Done || in.Outcome.BytesIn != int64(len(body)) || out.Outcome.BytesOut != int64(len(body)) || in.Outcome.Status != 0 || in.Outcome.Error != "" {
				t.Errorf("recorded %+v %+v", out.Outcome, in.Outcome)
			}
			if in.Request.Peer.ID != p.ca.ID(t, "web") || in.Request.Protocol != call.TCP || in.Request.PolicyTarget != "orders" || out.Request.Process.PID != 42 {
				t.Errorf("decided on %+v %+v", out.Request, in.Request)
			}
			if out.Outcome.UpstreamTLS.Connection != in.Request.TLS.Connection || out.Outcome.UpstreamPeer.ID != p.ca.ID(t, "orders") {
				t.Errorf("connections %+v %+v", out.Outcome, in.Request.TLS)
			}
		})
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	app := tcpApp(t, "tcp", func(c net.Conn) { _, _ = io.WriteString(c, "220 ready\r\n") })
	p := newPair(t, pairConfig{protocol: call.TCP, app: app})
	// The client says nothing; nothing waits for it to say something.
	began := time.Now()
	if got, err := io.ReadAll(p.dial(t)); err != nil || string(got) != "220 ready\r\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("the greeting came after %s", d)
	}
}

func TestTCPDenied(t *testing.T) {
	t.Parallel()
	reached := make(chan struct{}, 1)
	app := tcpApp(t, "tcp", func(net.Conn) { reached <- struct{}{} })
	p := newPair(t, pairConfig{protocol: call.TCP, app: app})
	p.orders.gate.Decide(func(*call.Request) call.Verdict { return call.Verdict{Code: "call_not_allowed", Status: 403} })
	if got := p.wantReset(t); len(got) > 0 {
		t.Errorf("a refused connection was sent %q", got)
	}
	if e := p.orders.gate.Finished(1)[0]; e.Outcome.BytesOut != 0 || e.Request.Verdict.Allow {
		t.Errorf("recorded %+v", e)
	}
	p.web.gate.Finished(1)
	select {
	case <-reached:
		t.Error("the application was connected to")
	default:
	}
}

// A stream that breaks on one side is not a complete one on the other.
func TestTCPBroken(t *testing.T) {
	t.Parallel()
	app := tcpApp(t, "tcp", func(c net.Conn) {
		_, _ = io.WriteString(c, "half")
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	p := newPair(t, pairConfig{protocol: call.TCP, app: app})
	p.wantReset(t)
	if e := p.orders.gate.Finished(1)[0]; e.Outcome.Error != route.UpstreamClosed {
		t.Errorf("inbound recorded %+v", e.Outcome)
	}
	if e := p.web.gate.Finished(1)[0]; e.Outcome.Error != route.UpstreamClosed {
		t.Errorf("outbound recorded %+v", e.Outcome)
	}
}

func TestTCPNoApp(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.TCP, app: "127.0.0.1:1"})
	if got := p.wantReset(t); len(got) > 0 {
		t.Errorf("got %q", got)
	}
	if e := p.orders.gate.Finished(1)[0]; e.Outcome.Error != route.UpstreamRefused || e.Outcome.Upstream != "127.0.0.1:1" {
		t.Errorf("inbound recorded %+v", e.Outcome)
	}
}

func TestTCPTrust(t *testing.T) {
	t.Parallel()
	app := tcpApp(t, "tcp", echoApp)
	p := newPair(t, pairConfig{protocol: call.TCP, app: app})
	webID, ordersID := p.ca.ID(t, "web"), p.ca.ID(t, "orders")
	c := p.dial(t)
	say(t, c, "one")

	// Renewal on both sides, and a change of trust that keeps both members.
	p.web.sources[webID].SetCredential(p.ca.Credential(t, "web", time.Hour))
	p.orders.sources[ordersID].SetCredential(p.ca.Credential(t, "orders", time.Hour))
	same := mtlstest.Trust(2, []*mtlstest.CA{p.ca}, webID, ordersID)
	p.orders.sources[ordersID].SetTrust(same)
	p.orders.proxy.TrustChanged(same)
	p.web.proxy.TrustChanged(same)
	say(t, c, "two")

	// web leaves the mesh, as orders' host sees it.
	gone := mtlstest.Trust(3, []*mtlstest.CA{p.ca}, ordersID)
	p.orders.sources[ordersID].SetTrust(gone)
	p.orders.proxy.TrustChanged(gone)
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the connection of a withdrawn caller ended with %v", err)
	}
	if e := p.orders.gate.Finished(1)[0]; e.Outcome.Error != route.TrustWithdrawn || e.Outcome.BytesIn != 6 {
		t.Errorf("inbound recorded %+v", e.Outcome)
	}
	p.wantReset(t)
	if e := p.orders.gate.Finished(2)[1]; e.Code != route.HandshakeRefused || e.Request.Peer.ID != webID || e.Request.Target != "orders" {
		t.Errorf("the refused handshake is recorded as %+v", e)
	}

	back := mtlstest.Trust(4, []*mtlstest.CA{p.ca}, webID, ordersID)
	p.orders.sources[ordersID].SetTrust(back)
	p.orders.proxy.TrustChanged(back)
	say(t, p.dial(t), "three")

	// The callee leaves, as web's host sees it.
	c = p.dial(t)
	say(t, c, "four")
	gone = mtlstest.Trust(5, []*mtlstest.CA{p.ca}, webID)
	p.web.sources[webID].SetTrust(gone)
	p.web.proxy.TrustChanged(gone)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection to a withdrawn callee goes on")
	}
}

// A connection outlives the leaves that it began with.
func TestTCPOutlivesLeaf(t *testing.T) {
	t.Parallel()
	app := tcpApp(t, "tcp", echoApp)
	p := newPair(t, pairConfig{protocol: call.TCP, app: app})
	p.web.sources[p.ca.ID(t, "web")].SetCredential(p.ca.Credential(t, "web", 1200*time.Millisecond))
	c := p.dial(t)
	say(t, c, "one")
	time.Sleep(1500 * time.Millisecond)
	say(t, c, "two")
}
