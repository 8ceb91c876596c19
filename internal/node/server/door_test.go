package server_test

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/mtls"
)

// Who connects before the server has a certificate of its own waits for it, and is
// not refused.
func TestDoorWaitsForItsCertificate(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), clock.System{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(l, []string{l.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	shaken := make(chan error, 1)
	go func() {
		d := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{mtls.Join}}}
		ctx, done := context.WithTimeout(context.Background(), 10*time.Second)
		defer done()
		c, err := d.DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		shaken <- err
	}()
	select {
	case err := <-shaken:
		t.Fatalf("there was an answer before the certificate: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	if err := <-shaken; err != nil {
		t.Error(err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
