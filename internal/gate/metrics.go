package gate

import (
	"sync"
	"sync/atomic"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/snapshot"
)

// unknown stands for every name that is not in the configuration: labels never
// come from requests.
const unknown = "unknown"

// classes are the values of code_class, by the first digit of the HTTP status.
// TCP, and a client that left before its answer, have none.
var classes = [...]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

// durations are the bounds of request durations, in seconds.
var durations = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// metrics are gate's own.
type metrics struct {
	requests   *metric.CounterFamily
	duration   *metric.HistogramFamily
	handshakes *metric.CounterFamily
	plaintext  *metric.CounterFamily
}

func newMetrics(r *metric.Registry) metrics {
	return metrics{
		requests: r.Counter("parley_requests_total", "HTTP requests and TCP connections, at each end that saw them.",
			"source", "destination", "protocol", "code_class", "decision", "end"),
		duration: r.Histogram("parley_request_duration_seconds", "Time from the first byte of a request to the last of its answer, for TCP the life of the connection.",
			durations, "source", "destination", "protocol", "end"),
		handshakes: r.Counter("parley_handshake_failures_total", "TLS peers that were not admitted.", "reason"),
		plaintext:  r.Counter("parley_plaintext_observed_total", "HTTP requests and TCP connections without TLS that were let in because their service observes them, by service.", "service"),
	}
}

// meters are where calls of one snapshot are counted, by who calls whom. Names
// that the snapshot does not hold are unknown, so meters are bounded by it.
type meters struct {
	names map[string]bool

	mu    sync.RWMutex
	edges map[edge]*meter // guarded by mu
}

// An edge is one direction of calls as one end sees it.
type edge struct {
	source, destination string
	protocol            call.Protocol
	end                 call.End
}

// A meter is an edge's children, by code class and whether allowed. The counters
// are resolved when first used, so that none stands at zero for ever.
type meter struct {
	counts   [len(classes)][2]atomic.Pointer[metric.Counter]
	duration *metric.Histogram
}

// of prepares meters for the names of snap.
func (m *metrics) of(snap *snapshot.Snapshot) *meters {
	names := map[string]bool{}
	for _, id := range snap.Members {
		names[id.Name()] = true
	}
	for _, s := range snap.Services {
		names[s.Name] = true
		for _, o := range s.Outbound {
			names[o.To] = true
		}
	}
	for _, g := range snap.Gateways {
		for _, r := range g.Routes {
			names[r.To] = true
		}
	}
	return &meters{names: names, edges: map[edge]*meter{}}
}

// done counts a call that ended.
func (m *metrics) done(ms *meters, r *call.Request, o *call.Outcome) {
	e := ms.edge(r)
	mt := m.meter(ms, e)
	class, allowed, decision := class(o.Status), 0, string(audit.Denied)
	if r.Verdict.Allow {
		allowed, decision = 1, string(audit.Allowed)
	}
	counter := mt.counts[class][allowed].Load()
	if counter == nil {
		counter = m.requests.With(e.source, e.destination, string(e.protocol), classes[class], decision, string(e.end))
		mt.counts[class][allowed].Store(counter)
	}
	counter.Inc()
	if !r.Start.IsZero() {
		mt.duration.Observe(max(0, o.End.Sub(r.Start).Seconds()))
	}
}

// meter finds or makes the meter of e.
func (m *metrics) meter(ms *meters, e edge) *meter {
	ms.mu.RLock()
	mt := ms.edges[e]
	ms.mu.RUnlock()
	if mt != nil {
		return mt
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.edges[e] == nil {
		ms.edges[e] = &meter{duration: m.duration.With(e.source, e.destination, string(e.protocol), string(e.end))}
	}
	return ms.edges[e]
}

// refused counts what Refuse was called for.
func (m *metrics) refused(ms *meters, r *call.Request, o *call.Outcome, action audit.Action) {
	switch action {
	case audit.HandshakeRefused:
		m.handshakes.With(r.Verdict.Reason).Inc()
		return
	case audit.ConnectionRefused:
		return // the listener counts those
	}
	m.done(ms, r, o)
}

// edge says between which names of the configuration r is.
func (ms *meters) edge(r *call.Request) edge {
	e := edge{source: unknown, destination: r.Target, protocol: r.Protocol, end: r.End}
	switch r.End {
	case call.Outbound:
		e.source = ms.name(r.Local)
	case call.Inbound:
		e.source, e.destination = ms.name(r.Peer.ID.Name()), r.Local
	}
	e.destination = ms.name(e.destination)
	return e
}

// name is s where the configuration holds it.
func (ms *meters) name(s string) string {
	if !ms.names[s] {
		return unknown
	}
	return s
}

// class is the index in classes of an HTTP status.
func class(status int) int {
	if c := status / 100; c >= 0 && c < len(classes) {
		return c
	}
	return 0
}
