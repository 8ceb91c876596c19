package parley

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"github.com/parleymesh/parley/internal/mtls"
)

// Dial connects to service at a TCP address. It fails unless the other side
// proves to be exactly that service. service is a name of this process's trust
// domain ("orders") or a SPIFFE ID.
//
// Whether the service accepts this process shows with the first Read: in TLS 1.3
// a client's handshake is complete before the server has judged it.
func (w *Workload) Dial(ctx context.Context, service, addr string) (net.Conn, error) {
	r, err := w.started(ctx)
	if err != nil {
		return nil, err
	}
	c, err := r.callee(service)
	if err != nil {
		return nil, err
	}
	conn, err := c.raw.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("parley: dial %s: %w", service, err)
	}
	return conn, nil
}

// HTTPClient is a client of service, by HTTP/2 or HTTP/1.1. Its URLs are https
// and their hosts addresses of the service; whoever answers there has to prove
// to be it. Redirects are not followed, and proxies of the environment not used.
// It has no time limit of its own: use the request's context, or set one. All
// clients of a service share their connections, which are replaced as
// certificates renew.
func (w *Workload) HTTPClient(service string) *http.Client {
	return &http.Client{
		Transport:     roundTripper{w, service},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type roundTripper struct {
	w       *Workload
	service string
}

// RoundTrip implements http.RoundTripper.
func (t roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	h, err := t.transport(req.Context())
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	return h.RoundTrip(passOn(req))
}

func (t roundTripper) transport(ctx context.Context) (*http.Transport, error) {
	r, err := t.w.started(ctx)
	if err != nil {
		return nil, err
	}
	c, err := r.callee(t.service)
	if err != nil {
		return nil, err
	}
	return c.transport()
}

// callee is the service called name, or of that SPIFFE ID.
func (r *running) callee(name string) (*callee, error) {
	id, err := r.named(name)
	if err != nil {
		return nil, fmt.Errorf("parley: service %q: %w", name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	c := r.callees[id]
	if c == nil {
		c = &callee{r: r, raw: mtls.NewDialer(r.src, id, r.clk), http: mtls.NewDialer(r.src, id, r.clk, mtls.HTTP2, mtls.HTTP1)}
		r.callees[id] = c
	}
	return c, nil
}
