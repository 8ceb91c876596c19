package control

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/logging"
)

// RequestIDField is the field by which a request brings its id and its answer tells it.
const RequestIDField = "X-Request-Id"

// A request is what the log, the events and the problems of one request share.
type request struct {
	id    string
	trace call.Trace
}

type requestKey struct{}

// identify gives a request its ids: its own where they are well formed.
func identify(r *http.Request) *http.Request {
	q := request{id: call.RequestID(r.Header[RequestIDField])}
	q.trace, _ = call.NextTrace(r.Header["Traceparent"])
	ctx := logging.NewContext(context.WithValue(r.Context(), requestKey{}, q),
		slog.String("request_id", q.id), slog.String("trace_id", q.trace.TraceID), slog.String("span_id", q.trace.SpanID))
	return r.WithContext(ctx)
}

func requestOf(ctx context.Context) request {
	q, _ := ctx.Value(requestKey{}).(request)
	return q
}

// requestID is the id that log and problem share.
func requestID(ctx context.Context) string { return requestOf(ctx).id }

// watched is an answer whose status is kept for the log.
type watched struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *watched) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// said logs one request at level debug.
func (s *Server) said(r *http.Request, w *watched, began time.Time) {
	s.cfg.Logger.LogAttrs(r.Context(), slog.LevelDebug, "admin request", slog.String("component", "control"),
		slog.String("actor", actor(r.Context())), slog.String("method", r.Method), slog.String("path", clip(r.URL.Path)),
		slog.Int("status", w.status), slog.Int64("duration_us", s.cfg.Clock.Now().Sub(began).Microseconds()))
}
