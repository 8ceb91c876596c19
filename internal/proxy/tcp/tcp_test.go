package tcp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/proxy/tcp"
	"github.com/parleymesh/parley/internal/proxy/xtest"
)

// join is a relay between two TCP connections whose outer ends it returns.
func join(t *testing.T, idle time.Duration) (client, server net.Conn, gate *xtest.Gate, stop context.CancelFunc) {
	t.Helper()
	gate = xtest.NewGate(t)
	client, down := pipe(t)
	up, server := pipe(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tcp.New(tcp.Config{Gate: gate, Clock: clock.System{}, Idle: idle}).
			Serve(ctx, down, &call.Request{}, to{conn: up})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return client, server, gate, cancel
}

func pipe(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
	}
	return a, b
}

func TestIdle(t *testing.T) {
	t.Parallel()
	client, server, gate, _ := join(t, 800*time.Millisecond)
	// One busy direction keeps the other, which is silent, alive.
	go func() {
		for range 12 {
			_, _ = server.Write([]byte("x"))
			time.Sleep(100 * time.Millisecond)
		}
	}()
	start := time.Now()
	got, err := io.ReadAll(client)
	if len(got) != 12 || err == nil {
		t.Errorf("got %q, %v", got, err)
	}
	if d := time.Since(start); d < 1200*time.Millisecond || d > 8*time.Second {
		t.Errorf("ended after %v", d)
	}
	if e := gate.Finished(1)[0]; e.Outcome.Error != route.IdleTimeout || e.Outcome.BytesOut != 12 {
		t.Errorf("recorded %+v", e.Outcome)
	}
}

// A server that closed leaves a client that does not notice; the call is over.
func TestServerEnded(t *testing.T) {
	t.Parallel()
	client, server, gate, _ := join(t, 150*time.Millisecond)
	_ = server.Close()
	if _, err := io.ReadAll(client); err != nil {
		t.Errorf("the end arrives as %v", err)
	}
	gate.Finished(1)
}

func TestStopped(t *testing.T) {
	t.Parallel()
	client, _, gate, stop := join(t, 0)
	time.Sleep(10 * time.Millisecond)
	stop()
	if _, err := io.ReadAll(client); err == nil {
		t.Error("a stopped relay looks like an end")
	}
	if e := gate.Finished(1)[0]; e.Outcome.Error != route.Stopped {
		t.Errorf("recorded %+v", e.Outcome)
	}
}

func TestDialFails(t *testing.T) {
	t.Parallel()
	gate := xtest.NewGate(t)
	client, down := pipe(t)
	tcp.New(tcp.Config{Gate: gate, Clock: clock.System{}}).Serve(context.Background(), down, &call.Request{},
		to{err: errors.New("x")})
	if _, err := io.ReadAll(client); err == nil {
		t.Error("a failed call looks like an empty answer")
	}
	if e := gate.Finished(1)[0]; e.Outcome.Error != route.UpstreamClosed || e.Outcome.Upstream != "there" {
		t.Errorf("recorded %+v", e.Outcome)
	}
}

// to is an upstream with one connection, or none.
type to struct {
	conn net.Conn
	err  error
}

func (to) Address() string { return "there" }

func (u to) Dial(context.Context) (net.Conn, func(), error) { return u.conn, func() {}, u.err }
