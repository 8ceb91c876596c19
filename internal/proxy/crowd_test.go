package proxy_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
)

// hold opens a connection without a word on it.
func hold(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return c
}

// shut says that the other end closes c at once.
func shut(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	return err != nil && (!errors.As(err, &timeout) || !timeout.Timeout())
}

// Connections that shake hands are connections: whoever says nothing has descriptors
// all the same.
func TestHandshakesCount(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.TCP, app: tcpApp(t, "tcp", echoApp)})
	small := newSmallHouse(t, p.ca, p.trust, 4, "orders")
	small.apply(&p.in)
	addr := small.addr("orders.inbound")
	p.out.Services[0].Outbound[0].Endpoints = []string{addr}
	p.web.apply(&p.out)
	for range 3 {
		say(t, p.dial(t), "hello")
	}
	silent := hold(t, addr)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		fifth := hold(t, addr)
		if shut(fifth) {
			break
		}
		_ = fifth.Close()
		if time.Now().After(end) {
			t.Fatal("a fifth connection is held")
		}
	}
	_ = silent.Close()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		// A reset may come before connect returns.
		if c, err := net.Dial("tcp", p.web.addr("web.calls.orders")); err == nil {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = c.Write([]byte("hello"))
			_, err := c.Read(make([]byte, 5))
			_ = c.Close()
			if err == nil {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatal("there is no room again")
		}
	}
}
