package metric

import (
	"fmt"
	"math"
	"sync/atomic"
)

// A CounterFamily is a counter with its labels.
type CounterFamily struct{ family[Counter] }

// With is the counter for these values of the labels, in the order of their
// declaration. Keep it: finding it takes longer than counting.
func (f *CounterFamily) With(values ...string) *Counter { return f.child(values) }

// A Counter only grows. It is safe for concurrent use.
type Counter struct{ n atomic.Uint64 }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Add adds n.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Value is the count so far.
func (c *Counter) Value() uint64 { return c.n.Load() }

// A HistogramFamily is a histogram with its labels.
type HistogramFamily struct{ family[Histogram] }

// With is the histogram for these values of the labels, in the order of their
// declaration. Keep it: finding it takes longer than observing.
func (f *HistogramFamily) With(values ...string) *Histogram { return f.child(values) }

// A Histogram counts observations by size. It is safe for concurrent use.
type Histogram struct {
	bounds []float64
	counts []atomic.Uint64 // one more than bounds
	sum    atomic.Uint64   // bits of a float64
}

func newHistogram(bounds []float64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts v in its bucket. A v that is no number is left out: it would
// make the sum one for ever.
func (h *Histogram) Observe(v float64) {
	if math.IsNaN(v) {
		return
	}
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Count is how many observations there were.
func (h *Histogram) Count() (n uint64) {
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

func checkBounds(name string, bounds []float64) {
	for i, b := range bounds {
		if math.IsNaN(b) || math.IsInf(b, 0) || i > 0 && b <= bounds[i-1] {
			panic(fmt.Sprintf("metric %s: bucket bounds are finite and ascend", name))
		}
	}
}

// A GaugeFamily is a gauge with its labels.
type GaugeFamily struct{ family[gauge] }

// A gauge is a function; nil until it is set.
type gauge struct {
	read atomic.Pointer[func() float64]
}

// Set makes read the gauge for these values of the labels, in place of the one
// before. read must be safe for concurrent use and return at once.
func (f *GaugeFamily) Set(read func() float64, values ...string) { f.child(values).read.Store(&read) }

// Remove takes the gauge for these values away.
func (f *GaugeFamily) Remove(values ...string) {
	k := f.key(values)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.children, k)
}
