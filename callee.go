package parley

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
)

// Limits of connections to a service.
const (
	idleTime = 90 * time.Second
	maxIdle  = 64
	// leafMargin is how long before the end of a leaf its connections are left:
	// a request that was just sent still arrives in time.
	leafMargin = 2 * time.Second
)

// A callee is a service that we call. HTTP connections come in generations: when
// our credential or the trust is another, or a leaf that a connection stands on
// is about to end, new requests use new connections and old ones end in peace.
type callee struct {
	r         *running
	raw, http *mtls.Dialer

	mu  sync.Mutex // guards cur
	cur *generation
}

type generation struct {
	credential *identity.Credential
	trust      *identity.Trust
	http       *http.Transport

	mu   sync.Mutex // guards ends
	ends time.Time  // earliest end of a leaf in use
}

// transport is that of the present generation.
func (c *callee) transport() (*http.Transport, error) {
	cred, err := c.r.src.Credential()
	if err != nil {
		return nil, fmt.Errorf("parley: %w", err)
	}
	trust := c.r.src.Trust()
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.cur; g != nil && g.credential == cred && g.trust == trust && c.r.clk.Now().Before(g.end()) {
		return g.http, nil
	}
	if c.cur != nil {
		c.cur.http.CloseIdleConnections() // net/http closes the rest as it becomes idle
	}
	c.cur = &generation{credential: cred, trust: trust, ends: cred.NotAfter()}
	c.cur.http = c.cur.transport(c.http)
	return c.cur.http, nil
}

// Close closes what is idle.
func (c *callee) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cur != nil {
		c.cur.http.CloseIdleConnections()
	}
	return nil
}

func (g *generation) transport(d *mtls.Dialer) *http.Transport {
	h := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("parley: the URL has to be https: a service is called by mutual TLS only")
		},
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			g.lower(c)
			return c, nil
		},
		IdleConnTimeout: idleTime, MaxIdleConns: maxIdle, MaxIdleConnsPerHost: maxIdle,
		Protocols: new(http.Protocols),
	}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(true)
	return h
}

func (g *generation) end() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ends
}

// lower keeps the earliest end of the connections' leaves.
func (g *generation) lower(c *tls.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if end := mtls.Ends(c).Add(-leafMargin); end.Before(g.ends) {
		g.ends = end
	}
}
