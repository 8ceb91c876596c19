package metric

import (
	"math"
	"net/http"
	"strconv"
	"strings"
)

// contentType is that of the Prometheus text exposition format.
const contentType = "text/plain; version=0.0.4; charset=utf-8"

// The escapes of the text format: label values also escape the quote.
var (
	helpEscapes  = strings.NewReplacer("\\", `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`)
)

// Handler serves all metrics to GET and HEAD.
func (r *Registry) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
			return
		}
		body := r.Append(nil)
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) // the reader went away: nobody is left to tell
	})
}

// expose implements exposer.
func (f *CounterFamily) expose(dst []byte) []byte {
	keys, children := f.sorted()
	for i, c := range children {
		dst = f.head(dst, i)
		dst = f.sample(dst, "", &keys[i], "", float64(c.Value()))
	}
	return dst
}

// expose implements exposer.
func (f *GaugeFamily) expose(dst []byte) []byte {
	keys, children := f.sorted()
	n := 0
	for i, c := range children {
		if read := c.read.Load(); read != nil {
			dst = f.head(dst, n)
			dst = f.sample(dst, "", &keys[i], "", (*read)())
			n++
		}
	}
	return dst
}

// expose implements exposer. The count is the last bucket's, so that the two
// always agree, whatever is observed meanwhile.
func (f *HistogramFamily) expose(dst []byte) []byte {
	keys, children := f.sorted()
	for i, h := range children {
		dst = f.head(dst, i)
		var n uint64
		for b := range h.counts {
			n += h.counts[b].Load()
			bound := math.Inf(1)
			if b < len(h.bounds) {
				bound = h.bounds[b]
			}
			dst = f.sample(dst, "_bucket", &keys[i], number(bound), float64(n))
		}
		dst = f.sample(dst, "_sum", &keys[i], "", math.Float64frombits(h.sum.Load()))
		dst = f.sample(dst, "_count", &keys[i], "", float64(n))
	}
	return dst
}

// head writes the two comments before a metric's first sample.
func (d *desc) head(dst []byte, sample int) []byte {
	if sample > 0 {
		return dst
	}
	dst = append(dst, "# HELP "+d.name+" "+helpEscapes.Replace(d.help)+"\n"...)
	return append(dst, "# TYPE "+d.name+" "+d.kind+"\n"...)
}

// sample writes one line; le is a bucket's bound, if it is one.
func (d *desc) sample(dst []byte, suffix string, k *key, le string, v float64) []byte {
	dst = append(append(dst, d.name...), suffix...)
	open := byte('{')
	label := func(name, value string) {
		dst = append(append(append(dst, open), name...), `="`...)
		dst = append(append(dst, labelEscapes.Replace(value)...), '"')
		open = ','
	}
	for i, name := range d.labels {
		label(name, k[i])
	}
	if le != "" {
		label("le", le)
	}
	if open == ',' {
		dst = append(dst, '}')
	}
	return append(append(append(dst, ' '), number(v)...), '\n')
}

// number writes whole numbers without an exponent, for people who read along.
func number(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case v == math.Trunc(v) && math.Abs(v) < 1e15:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
