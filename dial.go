package parley

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/workload/client"
)

var errNotAllowed = errors.New("the caller is not among those that Allow names")

// Dial connects to service at addr (host:port) over mutual TLS. The other side
// must prove that it is exactly that service: its name in this trust domain
// ("payments"), or a whole SPIFFE ID. What addr resolves to proves nothing. The
// service may still refuse this process; that error comes with the first Read.
func (w *Workload) Dial(ctx context.Context, service, addr string) (net.Conn, error) {
	if err := w.Start(ctx); err != nil {
		return nil, err
	}
	id, err := w.serviceID(service)
	if err != nil {
		return nil, err
	}
	// A nil *tls.Conn must not become a net.Conn that is not nil.
	c, err := w.dialer(id).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("parley: dial %s: %w", service, err)
	}
	return c, nil
}

func (w *Workload) serviceID(service string) (identity.ID, error) {
	own, err := w.source.Credential()
	if err != nil {
		return identity.ID{}, fmt.Errorf("parley: %w", err)
	}
	id, err := parseID(own.ID.TrustDomain(), service)
	if err != nil {
		return identity.ID{}, fmt.Errorf("parley: service: %w", err)
	}
	return id, nil
}

// dialer is kept for each service, and its TLS sessions with it.
func (w *Workload) dialer(id identity.ID) *mtls.Dialer {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, ok := w.dialers[id]
	if !ok {
		d = mtls.NewDialer(w.source, id, clock.System{})
		w.dialers[id] = d
	}
	return d
}

// HTTPClient is a client whose https requests go to service and to nobody else,
// whatever host their URL names: the URL's host and port say only where to
// connect. Redirects are not followed. It has no timeout of its own: use the
// request's context, or set one.
func (w *Workload) HTTPClient(service string) (*http.Client, error) {
	source, err := w.started()
	if err != nil {
		return nil, err
	}
	id, err := w.serviceID(service)
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport:     &transport{source: source, dialer: mtls.NewDialer(source, id, clock.System{}, "h2", "http/1.1")},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// transport keeps one pool of connections for each credential, so that no
// request goes out on a connection whose certificate has ended.
type transport struct {
	source *client.Client
	dialer *mtls.Dialer

	mu         sync.Mutex // guards what follows
	credential *identity.Credential
	pool       *http.Transport
}

// errPlaintext is for a URL that would leave the process unprotected.
var errPlaintext = errors.New("parley: the URL is not https")

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, errPlaintext
	}
	return t.current().RoundTrip(r)
}

// CloseIdleConnections is what http.Client.CloseIdleConnections calls.
func (t *transport) CloseIdleConnections() { t.current().CloseIdleConnections() }

func (t *transport) current() *http.Transport {
	// Without a credential the pool stays, and its dials say what is wrong.
	cred, err := t.source.Credential()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pool != nil && (err != nil || cred == t.credential) {
		return t.pool
	}
	if t.pool != nil {
		// Requests under way end on it; it then closes within its idle time.
		t.pool.CloseIdleConnections()
	}
	t.credential = cred
	t.pool = &http.Transport{
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := t.dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     time.Minute,
	}
	return t.pool
}
