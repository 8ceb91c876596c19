package proxy

import (
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/proxy/balance"
)

// meters count by listener, whose names are the mesh file's.
type meters struct {
	connections *metric.GaugeFamily
	refusals    *metric.CounterFamily
	surpluses   *metric.CounterFamily
	redirects   *metric.CounterFamily
	unread      *metric.CounterFamily
	endpoints   *metric.GaugeFamily
	avoided     *metric.GaugeFamily
	unreached   *metric.CounterFamily
}

func newMeters(r *metric.Registry) meters {
	if r == nil {
		r = metric.NewRegistry()
	}
	return meters{
		connections: r.Gauge("parley_proxy_connections", "Open connections by listener.", "listener"),
		refusals:    r.Counter("parley_proxy_handshakes_refused_total", "TLS handshakes that did not complete, by listener.", "listener"),
		surpluses:   r.Counter("parley_proxy_connections_surplus_total", "Connections closed at once because the listener had too many, by listener.", "listener"),
		redirects:   r.Counter("parley_proxy_redirects_total", "Requests over plaintext HTTP that were told the way to HTTPS, by gateway.", "gateway"),
		unread:      r.Counter("parley_proxy_requests_unreadable_total", "Connections that ended in a request which could not be read, by listener.", "listener"),
		endpoints:   r.Gauge("parley_proxy_endpoints", "Endpoints of a called service, by who calls and whom.", "local", "service"),
		avoided:     r.Gauge("parley_proxy_endpoints_avoided", "Endpoints that are left out for a while since they could not be reached, by who calls and whom.", "local", "service"),
		unreached:   r.Counter("parley_proxy_endpoint_failures_total", "Tries that found an endpoint unreachable, by who calls and whom.", "local", "service"),
	}
}

func (m meters) handshake(listener string) *metric.Counter { return m.refusals.With(listener) }

func (m meters) surplus(listener string) *metric.Counter { return m.surpluses.With(listener) }

func (m meters) unreadable(listener string) *metric.Counter { return m.unread.With(listener) }

func (m meters) watch(l *listener) {
	m.connections.Set(func() float64 { return float64(l.service.connections()) }, l.fixed.name)
}

func (m meters) watchEndpoints(at places, endpoints balance.Endpoints) {
	m.endpoints.Set(func() float64 { return float64(endpoints.Len()) }, at.local, at.service)
	m.avoided.Set(func() float64 { return float64(endpoints.Avoided()) }, at.local, at.service)
}

func (m meters) forgetEndpoints(at places) {
	m.endpoints.Remove(at.local, at.service)
	m.avoided.Remove(at.local, at.service)
}

func (m meters) forget(l *listener) { m.connections.Remove(l.fixed.name) }
