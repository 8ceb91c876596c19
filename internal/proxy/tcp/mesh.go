package tcp

import (
	"context"
	"net"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/balance"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// Mesh is a service behind mTLS, at any number of endpoints.
type Mesh struct {
	dialer *mtls.Dialer
	set    *balance.Set[struct{}]
}

// NewMesh reaches the service expect with src's credential, at no endpoint before
// Update. Connections are registered in conns.
func NewMesh(src identity.Source, expect identity.ID, clk clock.Clock, conns *mtls.Conns) *Mesh {
	m := &Mesh{dialer: mtls.NewDialer(src, expect, clk)}
	m.dialer.Conns = conns
	m.set = balance.New(clk, func(*balance.Endpoint[struct{}]) struct{} { return struct{}{} }, func(struct{}) {})
	return m
}

// Endpoints are where the service is called.
func (m *Mesh) Endpoints() balance.Endpoints { return m.set }

// Address implements Upstream.
func (m *Mesh) Address() string { return m.set.Addresses() }

// Dial implements Upstream. Nothing was sent where it fails, so another endpoint
// may be tried.
func (m *Mesh) Dial(ctx context.Context) (net.Conn, func(), error) {
	try := m.set.Begin()
	for try.Endpoint != nil {
		c, err := m.dial(ctx, try.Endpoint.Address)
		if err == nil {
			try.Reached()
			return c, try.Done, nil
		}
		code, _ := route.Failure(err)
		try.Failed(ctx, err, code == route.NoCredential)
	}
	return nil, nil, try.Err
}

func (m *Mesh) dial(ctx context.Context, addr string) (net.Conn, error) {
	if limit := m.set.DialTime(); limit > 0 {
		var done func()
		ctx, done = context.WithTimeout(ctx, limit)
		defer done()
	}
	c, err := m.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err // not c, which would be an interface of nothing
	}
	return c, nil
}
