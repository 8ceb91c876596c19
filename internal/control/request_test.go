package control_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
)

// TestIdsOfARequest: one id and one trace lead from the answer to the log and to the
// event, whether the request brought its own or, malformed, did not.
func TestIdsOfARequest(t *testing.T) {
	t.Parallel()
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for name, tt := range map[string]struct {
		header []string
		id     string // empty for one that is made
		trace  string
	}{
		"its own":   {[]string{"X-Request-Id", "mine-1", "Traceparent", "00-" + trace + "-" + parent + "-01"}, "mine-1", trace},
		"none":      {nil, "", ""},
		"malformed": {[]string{"X-Request-Id", "a\r\n\x1b[2J", "Traceparent", "00-x\u202e"}, "", ""},
	} {
		h := newServer(t)
		w := try(h, newRequest("POST", "/v1/keys", `{"name":"ci"}`, tt.header...))
		id := w.Header().Get("X-Request-Id")
		if w.Code != 201 || tt.id != "" && id != tt.id || tt.id == "" && len(id) != 32 {
			t.Fatalf("%s: status %d, id %q", name, w.Code, id)
		}
		e, err := audit.Decode(h.events[0].Body)
		if err != nil {
			t.Fatal(err)
		}
		if e.Actor.RequestID != id || e.Trace == nil || tt.trace != "" && (e.Trace.TraceID != tt.trace || e.Trace.ParentID != parent) {
			t.Errorf("%s: actor %+v, trace %+v", name, e.Actor, e.Trace)
		}
		var line struct {
			Msg       string
			RequestID string `json:"request_id"`
			TraceID   string `json:"trace_id"`
			SpanID    string `json:"span_id"`
			Path      string
			Status    int
		}
		text := h.logged.String()
		if err := json.Unmarshal([]byte(text), &line); err != nil || strings.Count(text, "\n") != 1 {
			t.Fatalf("%s: the log says %s: %v", name, text, err)
		}
		if line.Msg != "admin request" || line.RequestID != id || line.TraceID != e.Trace.TraceID || line.SpanID != e.Trace.SpanID || line.Path != "/v1/keys" || line.Status != 201 {
			t.Errorf("%s: the log says %s", name, text)
		}
	}
}
