package parley

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"sync"

	"github.com/parleymesh/parley/internal/call"
)

// The fields of W3C Trace Context, and that of a request's id.
const (
	traceParent = "Traceparent"
	traceState  = "Tracestate"
	requestID   = "X-Request-Id"
)

// A passage is what a request brings along from hop to hop. It is read when it is
// first needed, which for most requests is never.
type passage struct {
	header  http.Header // as it came
	once    sync.Once
	trace   call.Trace
	state   []string // tracestate, of a trace that is the caller's
	request string
}

type passageKey struct{}

// read is what came, or where that is malformed or missing a new one.
func (p *passage) read() {
	p.once.Do(func() {
		kept := false
		if p.trace, kept = call.NextTrace(p.header[traceParent]); kept {
			p.state = p.header[traceState]
		}
		p.request = call.RequestID(p.header[requestID])
	})
}

// attrs are the ids that a line of the log has about the request.
func (p *passage) attrs() slog.Attr {
	p.read()
	return slog.Group("", slog.String("request_id", p.request), slog.String("trace_id", p.trace.TraceID), slog.String("span_id", p.trace.SpanID))
}

// passOn is req with what the request that is being served brought, if its context
// says so and req has no trace of its own.
func passOn(req *http.Request) *http.Request {
	p, ok := req.Context().Value(passageKey{}).(*passage)
	if !ok || len(req.Header[traceParent]) > 0 {
		return req
	}
	p.read()
	out := req.WithContext(req.Context())
	out.Header = maps.Clone(req.Header)
	if out.Header == nil {
		out.Header = http.Header{}
	}
	out.Header[traceParent] = []string{call.FormatTraceParent(p.trace)}
	delete(out.Header, traceState)
	if len(p.state) > 0 {
		out.Header[traceState] = p.state
	}
	if len(out.Header[requestID]) == 0 {
		out.Header[requestID] = []string{p.request}
	}
	return out
}

// withPassage is ctx, in which passOn finds p.
func withPassage(ctx context.Context, p *passage) context.Context {
	return context.WithValue(ctx, passageKey{}, p)
}
