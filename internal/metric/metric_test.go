package metric_test

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/metric"
)

func TestExposition(t *testing.T) {
	t.Parallel()
	r := metric.NewRegistry()
	calls := r.Counter("parley_calls_total", "Calls, by \"code\" and\na \\ line.", "source", "code")
	calls.With("web", "2xx").Add(1e6)
	calls.With("a \"quoted\\\nname", "5xx").Inc()
	calls.With("caf\xff", "5xx").Inc()
	h := r.Histogram("parley_call_duration_seconds", "Duration.", []float64{0.005, 0.1, 2.5}, "source")
	for _, v := range []float64{0.001, 0.005, 0.05, 3, math.NaN()} {
		h.With("web").Observe(v)
	}
	r.Counter("parley_unused_total", "Never asked for.", "reason")
	r.Counter("parley_plain_total", "No labels.").With().Inc()
	g := r.Gauge("parley_backlog_entries", "Backlog.", "log")
	g.Set(func() float64 { return -1.5 }, "b")
	g.Set(func() float64 { return 7 }, "a")
	g.Set(func() float64 { return 8 }, "gone")
	g.Remove("gone")
	want := `# HELP parley_backlog_entries Backlog.
# TYPE parley_backlog_entries gauge
parley_backlog_entries{log="a"} 7
parley_backlog_entries{log="b"} -1.5
# HELP parley_call_duration_seconds Duration.
# TYPE parley_call_duration_seconds histogram
parley_call_duration_seconds_bucket{source="web",le="0.005"} 2
parley_call_duration_seconds_bucket{source="web",le="0.1"} 3
parley_call_duration_seconds_bucket{source="web",le="2.5"} 3
parley_call_duration_seconds_bucket{source="web",le="+Inf"} 4
parley_call_duration_seconds_sum{source="web"} 3.056
parley_call_duration_seconds_count{source="web"} 4
# HELP parley_calls_total Calls, by "code" and\na \\ line.
# TYPE parley_calls_total counter
parley_calls_total{source="a \"quoted\\\nname",code="5xx"} 1
parley_calls_total{source="caf` + "\uFFFD" + `",code="5xx"} 1
parley_calls_total{source="web",code="2xx"} 1000000
# HELP parley_plain_total No labels.
# TYPE parley_plain_total counter
parley_plain_total 1
`
	got := string(r.Append(nil))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	samples := parse(t, got)
	if v := samples[`parley_calls_total source=a "quoted\`+"\n"+`name code=5xx`]; v != 1 {
		t.Errorf("escapes do not read back: %v", samples)
	}
	if len(samples) != 12 {
		t.Errorf("%d samples", len(samples))
	}
}

// parse reads the text format as its specification describes it.
func parse(t *testing.T, text string) map[string]float64 {
	t.Helper()
	samples, typed := map[string]float64{}, map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, _, _ := strings.Cut(rest, " ")
			if typed[name] {
				t.Fatalf("%s has two types", name)
			}
			typed[name] = true
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		key, rest := line, ""
		if open := strings.IndexByte(line, '{'); open >= 0 {
			key, rest = line[:open], line[open+1:]
			for !strings.HasPrefix(rest, "} ") {
				name, after, ok := strings.Cut(strings.TrimPrefix(rest, ","), `="`)
				value, n := unquote(after)
				if !ok || n < 0 {
					t.Fatalf("line %q", line)
				}
				key, rest = key+" "+name+"="+value, after[n:]
			}
			rest = rest[2:]
		} else {
			key, rest, _ = strings.Cut(line, " ")
		}
		v, err := strconv.ParseFloat(rest, 64)
		if _, twice := samples[key]; err != nil || twice {
			t.Fatalf("line %q: %v", line, err)
		}
		samples[key] = v
	}
	return samples
}

// unquote reads a label value up to its closing quote and says how long it was.
func unquote(s string) (value string, n int) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), i + 1
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteString(map[byte]string{'n': "\n", '\\': `\`, '"': `"`}[s[i]])
		default:
			b.WriteByte(s[i])
		}
	}
	return "", -1
}

func TestLabelValuesAreBounded(t *testing.T) {
	t.Parallel()
	r := metric.NewRegistry()
	c := r.Counter("parley_x_total", "X.", "a", "b")
	first := c.With("0", "b")
	for i := range 10_000 {
		c.With(strconv.Itoa(i), "b").Inc()
	}
	samples := parse(t, string(r.Append(nil)))
	if len(samples) > 4097 {
		t.Errorf("%d children", len(samples))
	}
	if got := samples["parley_x_total a=other b=other"]; got < 5000 {
		t.Errorf("other counts %v", got)
	}
	var sum float64
	for _, v := range samples {
		sum += v
	}
	if sum != 10_000 || c.With("0", "b") != first {
		t.Errorf("sum %v", sum)
	}
}

func TestDeclaredTwice(t *testing.T) {
	t.Parallel()
	r := metric.NewRegistry()
	a, b := r.Counter("a_total", "A.", "x"), r.Counter("a_total", "A.", "x")
	if a != b || a.With("1") != b.With("1") {
		t.Error("two metrics of one name")
	}
}

func TestDefectsPanic(t *testing.T) {
	t.Parallel()
	r := metric.NewRegistry()
	r.Counter("a_total", "A.", "x")
	for name, f := range map[string]func(){
		"other labels":    func() { r.Counter("a_total", "A.", "y") },
		"other kind":      func() { r.Gauge("a_total", "A.", "x") },
		"empty name":      func() { r.Counter("", "A.") },
		"digit":           func() { r.Counter("0a", "A.") },
		"dash":            func() { r.Counter("a-b", "A.") },
		"label colon":     func() { r.Counter("b", "A.", "a:b") },
		"reserved label":  func() { r.Counter("c", "A.", "__x") },
		"le":              func() { r.Histogram("d", "A.", nil, "le") },
		"label twice":     func() { r.Counter("e", "A.", "x", "x") },
		"too many labels": func() { r.Counter("f", "A.", "a", "b", "c", "d", "e", "f", "g") },
		"too few values":  func() { r.Counter("a_total", "A.", "x").With() },
		"too many values": func() { r.Counter("a_total", "A.", "x").With("1", "2") },
		"bounds":          func() { r.Histogram("g", "A.", []float64{1, 1}) },
		"infinite bound":  func() { r.Histogram("h", "A.", []float64{math.Inf(1)}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				if recover() == nil {
					t.Error("did not panic")
				}
			}()
			f()
		})
	}
}

func TestHandler(t *testing.T) {
	t.Parallel()
	r := metric.NewRegistry()
	r.Counter("a_total", "A.").With().Inc()
	for method, want := range map[string]int{"GET": 200, "HEAD": 200, "POST": 405, "DELETE": 405} {
		w := httptest.NewRecorder()
		r.Handler().ServeHTTP(w, httptest.NewRequest(method, "/metrics", http.NoBody))
		if w.Code != want {
			t.Errorf("%s: %d", method, w.Code)
		}
		if ct := w.Header().Get("Content-Type"); want == 200 && ct != "text/plain; version=0.0.4; charset=utf-8" {
			t.Errorf("%s: %q", method, ct)
		}
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	r := metric.NewRegistry()
	c := r.Counter("a_total", "A.", "x")
	h := r.Histogram("b_seconds", "B.", []float64{1})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				c.With(fmt.Sprint(i % 4)).Inc()
				h.With().Observe(float64(g % 2 * 2))
				if i%200 == 0 {
					r.Append(nil)
				}
			}
		})
	}
	wg.Wait()
	s := parse(t, string(r.Append(nil)))
	if s["a_total x=0"] != 2000 || s["b_seconds_count"] != 8000 || s["b_seconds_bucket le=1"] != 4000 || s["b_seconds_sum"] != 8000 || h.With().Count() != 8000 {
		t.Errorf("%v", s)
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	r := metric.NewRegistry()
	c := r.Counter("a_total", "A.", "x", "y")
	child := c.With("1", "2")
	h := r.Histogram("b_seconds", "B.", []float64{0.1, 1}).With()
	for name, f := range map[string]func(){
		"inc": child.Inc, "observe": func() { h.Observe(0.5) }, "with": func() { c.With("1", "2").Inc() },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkCounter(b *testing.B) {
	c := metric.NewRegistry().Counter("a_total", "A.", "x").With("1")
	b.ReportAllocs()
	for b.Loop() {
		c.Inc()
	}
}

func BenchmarkHistogram(b *testing.B) {
	bounds := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	h := metric.NewRegistry().Histogram("a_seconds", "A.", bounds).With()
	b.ReportAllocs()
	for b.Loop() {
		h.Observe(0.003)
	}
}
