package web

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/proxy/xtest"
)

// TestPrepare: a request says who calls by the certificate of the connection that
// it goes over, and one that was sent before is left as it was.
func TestPrepare(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "shop.example")
	edge, orders := ca.ID(t, "gateway/edge"), ca.ID(t, "orders")
	trust := mtlstest.Trust(1, []*mtlstest.CA{ca}, edge, orders)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	far := mtls.NewListener(ln, mtls.Server(mtlstest.NewSource(ca.Credential(t, "orders", time.Hour), trust), clock.System{}, mtls.HTTP1), mtls.ListenerConfig{Clock: clock.System{}})
	t.Cleanup(func() { _ = far.Close() })
	go func() {
		for {
			c, err := far.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c) }()
		}
	}()
	source := mtlstest.NewSource(ca.Credential(t, "gateway/edge", time.Hour), trust)
	d := mtls.NewDialer(source, orders, clock.System{}, mtls.HTTP1)
	dial := func() (net.Conn, *identity.Credential) {
		c, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		cred, err := source.Credential()
		if err != nil {
			t.Fatal(err)
		}
		return c, cred
	}
	gate := xtest.NewGate(t)
	gate.Vouching(func(_ *call.Request, own *identity.Credential, to identity.ID) (string, error) {
		return own.Serial() + " for " + to.Name(), nil
	})
	x := &exchange{server: &Server{cfg: Config{Gate: gate, Logger: slog.New(slog.DiscardHandler)}}, site: &Site{End: call.Edge}}
	old, before := dial()
	source.SetCredential(ca.Credential(t, "gateway/edge", time.Hour))
	fresh, after := dial()

	first := &http.Request{Header: http.Header{}}
	want := func(what string, r *http.Request, cred *identity.Credential) {
		t.Helper()
		if got := r.Header[call.IdentityField]; len(got) != 1 || got[0] != cred.Serial()+" for orders" {
			t.Errorf("%s: %q", what, got)
		}
	}
	// The credential of the old connection is no longer the source's.
	sent, err := x.prepare(old, first)
	if err != nil || sent != first {
		t.Fatalf("copied, or %v", err)
	}
	want("first", first, before)
	if again, err := x.prepare(old, first); again != first || err != nil {
		t.Errorf("sent again on a connection of the same certificate it is copied, or %v", err)
	}
	again, err := x.prepare(fresh, first)
	if err != nil {
		t.Fatal(err)
	}
	want("sent again", again, after)
	want("the one that was sent", first, before)
	if x.upstream.get() != fresh {
		t.Error("the connection is not remembered")
	}

	gate.Vouching(func(*call.Request, *identity.Credential, identity.ID) (string, error) { return "", errors.New("no") })
	_, err = x.prepare(fresh, &http.Request{Header: http.Header{}})
	if code, status := route.Failure(err); !errors.Is(err, route.ErrUnsigned) || code != route.IdentityUnsigned || status != http.StatusServiceUnavailable {
		t.Errorf("unsigned: %s, %d, %v", code, status, err)
	}
	// No other end says anything, nor does an edge to what is not of the mesh.
	local, _ := net.Pipe()
	for end, c := range map[call.End]net.Conn{call.Outbound: fresh, call.Inbound: fresh, call.Edge: local} {
		x.site = &Site{End: end}
		if r, err := x.prepare(c, &http.Request{Header: http.Header{}}); err != nil || len(r.Header) > 0 {
			t.Errorf("%s: %v, %v", end, r, err)
		}
	}
}
