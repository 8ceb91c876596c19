package mtls_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/mtls"
)

func TestSlowHandshakes(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := serve(t, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{MaxHandshakes: func() int { return 3 }, Timeout: time.Minute})
	var idle []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	// The listener is full of silent peers; an honest one is still served, once
	// the oldest has had its second.
	if _, err := exchange(m.dialer, s.addr); err != nil {
		t.Fatal(err)
	}
	if _, err := s.lastRefusal(t); !errors.Is(err, mtls.ErrCrowded) {
		t.Errorf("recorded %v", err)
	}
	_ = idle[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := idle[0].Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the oldest is still there: %v", err)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := serve(t, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{Timeout: 50 * time.Millisecond})
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.ReadAll(c)
	var timeout net.Error
	if _, err := s.lastRefusal(t); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("recorded %v", err)
	}
}

func TestListenerClose(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := mtls.NewListener(inner, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{Clock: clock.System{}})
	silent, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ready, err := m.dialer.DialContext(context.Background(), "tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	done := make(chan error, 1)
	go func() { done <- ln.Close() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Close waits for a silent peer")
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept says %v", err)
	}
}

func TestCloseRefused(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	var conns mtls.Conns
	m.dialer.Conns = &conns
	dial := func() net.Conn {
		t.Helper()
		c, err := m.dialer.DialContext(context.Background(), "tcp", m.listener.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c := dial()
	if n := conns.CloseRefused(m.trust(2, m.web, m.db)); n != 0 || mtls.Withdrawn(c) {
		t.Fatalf("%d members were cut", n)
	}
	if n := conns.CloseRefused(m.trust(3, m.web)); n != 1 {
		t.Fatalf("%d were cut, want 1", n)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) || !mtls.Withdrawn(c) {
		t.Errorf("Read says %v", err)
	}
	if conns.Len() != 0 {
		t.Errorf("%d registrations are left", conns.Len())
	}
	// Our own identity counts as well, and a closed connection is forgotten.
	dial()
	_ = dial().Close()
	if n := conns.CloseRefused(m.trust(4, m.db)); n != 1 || conns.Len() != 0 {
		t.Errorf("%d were cut, %d are left", n, conns.Len())
	}
}
