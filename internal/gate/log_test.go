package gate_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/logging"
)

// TestEachCallIsOneLineAtDebug: with the ids that lead from a line to the event and to
// the other hops; at the level above it there is none.
func TestEachCallIsOneLineAtDebug(t *testing.T) {
	f := newFixture(t)
	var b bytes.Buffer
	logger := logging.New(&b, logging.JSON, slog.LevelInfo, clock.System{})
	f.Gate = gate.New(gate.Config{Host: "host-1", Recorder: f.log, Clock: f.clock, Logger: logger, Metrics: f.metrics, Issuers: f.idp})
	if err := f.Apply(f.snap); err != nil {
		t.Fatal(err)
	}
	f.SetTrust(f.trust.Load)
	calls := map[string]func() *call.Request{
		"allowed": func() *call.Request {
			r := inbound(t)
			f.Check(r)
			f.Done(r, call.Outcome{Status: 502, Error: "upstream_refused", Cause: errors.New("connection refused"), Answered: start.Add(2 * time.Millisecond), End: start.Add(5 * time.Millisecond)})
			return r
		},
		"denied": func() *call.Request {
			r := inbound(t)
			r.Method, r.Header = http.MethodDelete, http.Header{"Cookie": {"secret-cookie"}, "Authorization": {"Bearer secret-token"}}
			f.Check(r)
			f.Done(r, call.Outcome{Status: 403, End: start.Add(time.Millisecond)})
			return r
		},
		"of bad form": func() *call.Request {
			r := inbound(t)
			f.Refuse(r, "header_refused", errors.New("a header name is empty"))
			return r
		},
		"a handshake": func() *call.Request {
			r := f.edge(t, "0", "")
			f.Refuse(r, gate.CodeHandshakeRefused, errors.New("no certificate"))
			f.Refuse(r, gate.CodeHandshakeRefused, errors.New("no certificate")) // not recorded, and logged all the same
			return r
		},
	}
	for name, do := range calls {
		do()
		if b.Len() > 0 {
			t.Errorf("%s is logged at info: %s", name, &b)
		}
	}
	logging.Of(logger).Set(slog.LevelDebug, time.Hour)
	for name, do := range calls {
		b.Reset()
		r := do()
		all := strings.Split(strings.TrimSpace(b.String()), "\n")
		if want := map[bool]int{true: 2, false: 1}[name == "a handshake"]; len(all) != want {
			t.Errorf("%s is %d lines, want %d: %s", name, len(all), want, &b)
		}
		var line struct {
			Level, Msg, Component, Decision, Outcome, Reason, Caller, Method, Error string
			RequestID                                                               string `json:"request_id"`
			TraceID                                                                 string `json:"trace_id"`
			SpanID                                                                  string `json:"span_id"`
			Duration                                                                int64  `json:"duration_us"`
			Answered                                                                int64  `json:"answered_us"`
		}
		if err := json.Unmarshal([]byte(all[len(all)-1]), &line); err != nil {
			t.Fatal(err)
		}
		if line.Level != "DEBUG" || line.Msg != "call" || line.Component != "gate" || line.Decision != r.Verdict.ID || line.Reason == "" ||
			line.RequestID != r.RequestID || line.TraceID != r.Trace.TraceID || line.SpanID != r.Trace.SpanID || line.Method != r.Method {
			t.Errorf("%s: %s", name, &b)
		}
		if name == "allowed" && (line.Outcome != "allowed" || line.Duration != 5000 || line.Answered != 2000 || line.Error != "connection refused") {
			t.Errorf("%s: %s", name, &b)
		}
		if strings.Contains(b.String(), "secret") {
			t.Errorf("%s: a secret is logged: %s", name, &b)
		}
	}
}
