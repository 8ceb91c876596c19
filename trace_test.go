package parley_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/call"
)

// TestATraceGoesThrough: what a service calls while it serves a request belongs to
// that request's trace, and what it calls otherwise does not.
func TestATraceGoesThrough(t *testing.T) {
	t.Parallel()
	last, a, _ := process(t, nil, "last", "middle")
	middle, _, _ := process(t, a.CA, "middle", "first")
	first, _, _ := process(t, a.CA, "first")
	seen := make(chan http.Header, 2)
	end := serveWith(t, last, func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header })
	between := serveWith(t, middle, func(rw http.ResponseWriter, r *http.Request) {
		req, _ := http.NewRequestWithContext(r.Context(), http.MethodGet, end, nil)
		if own := r.Header.Get("X-Own"); own != "" {
			req.Header.Set("Traceparent", own)
		}
		resp, err := middle.HTTPClient("last").Do(req)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadGateway)
			return
		}
		resp.Body.Close()
		if len(req.Header["X-Request-Id"]) > 0 {
			http.Error(rw, "the program's own request was changed", http.StatusInternalServerError)
		}
	})
	const trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for name, tt := range map[string]struct {
		header  map[string]string
		trace   string
		state   string
		request string
	}{
		"kept":      {map[string]string{"Traceparent": "00-" + trace + "-" + span + "-00", "Tracestate": "a=b", "X-Request-Id": "r1"}, trace, "a=b", "r1"},
		"none":      {nil, "", "", ""},
		"malformed": {map[string]string{"Traceparent": "00-" + trace, "Tracestate": "a=b", "X-Request-Id": "not one"}, "", "", ""},
		"its own":   {map[string]string{"X-Own": "00-" + strings.Repeat("1", 32) + "-" + span + "-01"}, strings.Repeat("1", 32), "", "-"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, between, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range tt.header {
			req.Header.Set(k, v)
		}
		resp, err := first.HTTPClient("middle").Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", name, resp.StatusCode, body)
		}
		h := <-seen
		got, ok := call.ParseTraceParent(h.Get("Traceparent"))
		if !ok || tt.trace != "" && got.TraceID != tt.trace || name == "kept" && (got.ParentID == span || got.Sampled) || h.Get("Tracestate") != tt.state {
			t.Errorf("%s: %v", name, h)
		}
		if id := h.Get("X-Request-Id"); tt.request == "-" && id != "" || tt.request == "" && len(id) != 32 || len(tt.request) > 1 && id != tt.request {
			t.Errorf("%s: request id %q", name, id)
		}
	}
}
