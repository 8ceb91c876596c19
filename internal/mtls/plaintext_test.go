package mtls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/mtls"
)

// plainly says hello without TLS on a new connection and wants it back.
func plainly(t *testing.T, addr string) (net.Conn, error) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, hello(c)
}

func hello(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil {
		return err
	}
	if string(buf) != "hello" {
		return errors.New("got " + string(buf))
	}
	return nil
}

// Whoever comes without TLS gets in while a listener observes and no longer; whoever
// comes with TLS is judged as ever, and keeps its connection through every change.
func TestObserve(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := serve(t, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{Conns: new(mtls.Conns)})
	ln := s.ln.(*mtls.Listener)
	if _, err := plainly(t, s.addr); err == nil {
		t.Fatal("let in without TLS from the beginning")
	}
	meshed, err := m.dialer.DialContext(context.Background(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer meshed.Close()
	if err := hello(meshed); err != nil { // it is served by now, and so seen
		t.Fatal(err)
	}

	ln.Observe(time.Now().Add(time.Hour))
	c, err := plainly(t, s.addr)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	if n := len(s.seen) - 1; s.seen[n] != (call.Peer{}) || s.tls[n] != (call.TLS{}) {
		t.Errorf("known of it: %+v %+v", s.seen[n], s.tls[n])
	}
	s.mu.Unlock()
	if _, err := exchange(m.dialer, s.addr); err != nil {
		t.Error(err)
	}
	if stranger, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true}); err == nil && echo(stranger) == nil {
		t.Error("a stranger with TLS got in")
	}
	m.server.SetTrust(m.trust(2, m.db)) // web left
	if _, err := exchange(m.dialer, s.addr); err == nil {
		t.Error("with TLS, who is no member got in")
	}
	m.server.SetTrust(m.trust(3, m.web, m.db))

	ln.Observe(time.Time{})
	if err := hello(c); err == nil {
		t.Error("a connection without TLS outlived the change to strict")
	}
	if _, err := plainly(t, s.addr); err == nil {
		t.Error("let in without TLS after the change to strict")
	}
	if err := hello(meshed); err != nil {
		t.Errorf("a connection of the mesh did not outlive it: %v", err)
	}
	if n := ln.EndPlaintext(); n != 0 {
		t.Errorf("%d are still known", n)
	}
}

// The end is the clock's: after it nobody new is let in, and EndPlaintext cuts those
// who are.
func TestObserveUntil(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := serve(t, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{})
	ln, until := s.ln.(*mtls.Listener), time.Now().Add(2*time.Second)
	ln.Observe(until)
	c, err := plainly(t, s.addr)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(until))
	if ln.Observes() {
		t.Error("it still observes")
	}
	if _, err := plainly(t, s.addr); err == nil {
		t.Error("let in after the end")
	}
	var record tls.RecordHeaderError
	if _, err := s.lastRefusal(t); !errors.As(err, &record) {
		t.Errorf("recorded %v", err)
	}
	if n := ln.EndPlaintext(); n != 1 {
		t.Errorf("%d were cut, want 1", n)
	}
	if hello(c) == nil {
		t.Error("not cut")
	}
}

// A silent peer is one whose server speaks first, where that is said, and otherwise
// one that is too slow.
func TestObserveSilence(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := mtls.NewListener(inner, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{Clock: clock.System{}, Silence: 50 * time.Millisecond})
	defer ln.Close()
	ln.Observe(time.Now().Add(time.Hour))
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "220 ready")
			_ = c.Close()
		}
	}()
	c, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if got, err := io.ReadAll(c); err != nil || string(got) != "220 ready" {
		t.Errorf("got %q, %v", got, err)
	}

	s := serve(t, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{Timeout: 50 * time.Millisecond})
	s.ln.(*mtls.Listener).Observe(time.Now().Add(time.Hour))
	if c, err = net.Dial("tcp", s.addr); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.ReadAll(c)
	var timeout net.Error
	if _, err := s.lastRefusal(t); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("recorded %v", err)
	}
}

// Silent peers take the room of handshakes, and give way like those.
func TestObserveCrowded(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := serve(t, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{MaxHandshakes: func() int { return 3 }, Timeout: time.Minute})
	s.ln.(*mtls.Listener).Observe(time.Now().Add(time.Hour))
	for range 3 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if _, err := exchange(m.dialer, s.addr); err != nil {
		t.Fatal(err)
	}
	if _, err := s.lastRefusal(t); !errors.Is(err, mtls.ErrCrowded) {
		t.Errorf("recorded %v", err)
	}
}

// Where a change finds a handshake under way, even one of which no byte has come, it
// completes.
func TestObserveUnderWay(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := serve(t, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{})
	ln := s.ln.(*mtls.Listener)
	for _, observed := range []bool{false, true} {
		first, then := time.Time{}, time.Now().Add(time.Hour)
		if observed {
			first, then = then, first
		}
		ln.Observe(first)
		front := late(t, s.addr, func() { ln.Observe(then) })
		if _, err := exchange(m.dialer, front); err != nil {
			t.Errorf("begun while it observed %v: %v", observed, err)
		}
	}
	// One without TLS that comes into a strict listener late is refused like any.
	ln.Observe(time.Now().Add(time.Hour))
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	time.Sleep(20 * time.Millisecond)
	ln.Observe(time.Time{})
	if hello(c) == nil {
		t.Error("let in")
	}
}

// late is where to find the server at addr, which has each connection for a while, and
// then hears of change, before its first byte comes.
func late(t *testing.T, addr string, change func()) string {
	t.Helper()
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = front.Close() })
	go func() { // ends with front
		c, err := front.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		back, err := net.Dial("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer back.Close()
		time.Sleep(50 * time.Millisecond)
		change()
		go func() { _, _ = io.Copy(back, c) }()
		_, _ = io.Copy(c, back)
	}()
	return front.Addr().String()
}
