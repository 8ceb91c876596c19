// Package metric counts: counters, histograms and gauges with a few labels, and
// their exposition in the Prometheus text format. A child is resolved once, at
// start or when a configuration is applied, and counting is then an atomic add.
//
// It refuses unbounded labels: a metric keeps so many children and no more, and
// what is asked for beyond goes to children labelled "other". It is nothing but
// the standard library, has no global registry, and pushes nothing anywhere.
//
// A metric that is declared wrongly (a malformed name, two kinds under one name,
// the wrong number of label values) is a defect of the program and panics where
// it is declared, not where it is read.
package metric

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

const (
	// maxLabels is how many labels a metric may have.
	maxLabels = 6
	// maxChildren is how many combinations of label values a metric keeps.
	maxChildren = 4096
	// overflow is the value of every label of what came after maxChildren.
	overflow = "other"
)

// A Registry holds metrics by name. It is safe for concurrent use.
type Registry struct {
	mu      sync.Mutex
	metrics map[string]exposer // guarded by mu
}

// An exposer is a metric with all its children.
type exposer interface {
	describe() *desc
	expose(dst []byte) []byte
}

// NewRegistry is a registry without metrics.
func NewRegistry() *Registry { return &Registry{metrics: map[string]exposer{}} }

// Counter declares a counter; name ends in _total. The same declaration again
// gives the same metric.
func (r *Registry) Counter(name, help string, labels ...string) *CounterFamily {
	f := &CounterFamily{}
	f.init(desc{name, help, "counter", labels}, func() *Counter { return new(Counter) })
	return register(r, f)
}

// Histogram declares a histogram with the upper bounds of its buckets, ascending;
// the bucket for everything above is added. The same declaration again gives the
// same metric, with the bounds of the first.
func (r *Registry) Histogram(name, help string, bounds []float64, labels ...string) *HistogramFamily {
	checkBounds(name, bounds)
	bounds = slices.Clone(bounds)
	f := &HistogramFamily{}
	f.init(desc{name, help, "histogram", labels}, func() *Histogram { return newHistogram(bounds) })
	return register(r, f)
}

// Gauge declares a gauge, whose children are functions that are asked when the
// metrics are read. The same declaration again gives the same metric.
func (r *Registry) Gauge(name, help string, labels ...string) *GaugeFamily {
	f := &GaugeFamily{}
	f.init(desc{name, help, "gauge", labels}, func() *gauge { return new(gauge) })
	return register(r, f)
}

// register keeps f, or returns what is there by its name.
func register[F exposer](r *Registry, f F) F {
	d := f.describe()
	d.check()
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.metrics[d.name]
	if !ok {
		r.metrics[d.name] = f
		return f
	}
	same, ok := old.(F)
	if !ok || !slices.Equal(old.describe().labels, d.labels) {
		panic(fmt.Sprintf("metric %s is declared twice, differently", d.name))
	}
	return same
}

// Append appends all metrics in the Prometheus text format 0.0.4, in order of
// name and label values.
func (r *Registry) Append(dst []byte) []byte {
	r.mu.Lock()
	all := slices.Collect(maps.Values(r.metrics))
	r.mu.Unlock()
	slices.SortFunc(all, func(a, b exposer) int { return compare(a.describe().name, b.describe().name) })
	for _, m := range all {
		dst = m.expose(dst)
	}
	return dst
}
