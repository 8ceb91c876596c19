package control

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"strings"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/logging"
)

// Handler is the API with everything that stands before it: recovery, limits,
// who connected, and what a browser would betray itself by.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	strict := api.NewStrictHandlerWithOptions(operations{s}, nil, api.StrictHTTPServerOptions{
		RequestErrorHandlerFunc:  s.badRequest,
		ResponseErrorHandlerFunc: s.fail,
	})
	api.HandlerWithOptions(strict, api.StdHTTPServerOptions{
		BaseRouter:       mux,
		Middlewares:      []api.MiddlewareFunc{s.strictInput},
		ErrorHandlerFunc: s.badRequest,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = identify(r)
		w.Header().Set(RequestIDField, requestID(r.Context()))
		if s.cfg.Logger.Enabled(r.Context(), slog.LevelDebug) {
			seen := &watched{ResponseWriter: w, status: http.StatusOK}
			defer s.said(r, seen, s.cfg.Clock.Now())
			w = seen
		}
		defer s.recover(w, r)
		s.guard(w, r, mux)
	})
}

// guard lets a request through to mux, or answers what is wrong with it.
func (s *Server) guard(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	// A recorder in a test has no deadlines; a connection always has.
	_ = http.NewResponseController(w).SetWriteDeadline(s.cfg.Clock.Now().Add(writeTimeout))
	if err := s.admit(r); err != nil {
		h.Set("Connection", "close")
		s.fail(w, r, err)
		return
	}
	if !strings.HasPrefix(r.URL.Path, "/") || path.Clean(r.URL.Path) != r.URL.Path || r.URL.RawPath != "" || r.Method == http.MethodConnect {
		s.fail(w, r, unknownPath(r)) // ServeMux would redirect to what it guesses
		return
	}
	_, pattern := mux.Handler(r)
	if pattern == "" || r.Method == http.MethodHead {
		s.unrouted(w, r, mux)
		return
	}
	if err := s.authorise(r.Context(), pattern); err != nil {
		s.fail(w, r, err)
		return
	}
	r = r.WithContext(context.WithValue(r.Context(), patternKey{}, pattern))
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	mux.ServeHTTP(w, r)
}

// admit checks who connected and that no browser speaks.
func (s *Server) admit(r *http.Request) error {
	p, known := peerFrom(r.Context())
	if !known || p.id.IsZero() && p.uid != 0 && p.uid != s.uid {
		s.refused(r.Context(), p, known)
		return fault.New(fault.NotPermitted, "run this as root or as the server's own user", "this user may not administer the mesh")
	}
	// No browser can dial a Unix socket; whatever brings these headers relays
	// for one (DNS rebinding, cross-site requests).
	if len(r.Header["Origin"]) > 0 || len(r.Header["Sec-Fetch-Site"]) > 0 {
		return fault.New(fault.NotPermitted, "use the command line", "requests of web pages are refused")
	}
	if r.Host != "parley" && r.Host != "localhost" {
		return fault.New(fault.NotPermitted, "send the host name parley or localhost", "the host name is not the admin API's")
	}
	return nil
}

// refused records a caller that was turned away. A caller that goes on is
// recorded once a period, with a count, so that it cannot fill the log.
func (s *Server) refused(ctx context.Context, p peer, known bool) {
	if !known {
		p.uid = -1
	}
	more, due := s.refusals.Count(refusal{p.uid, p.id}, s.cfg.Clock.Now())
	if !due {
		return
	}
	e := s.event(ctx, audit.AdminRefused, audit.Denied, nil)
	e.Reason = "not_administrator"
	if more > 0 {
		e.Message = fmt.Sprintf("%d more refusals of this user since the last record", more)
	}
	if err := s.cfg.Events.Log(ctx, e); err != nil {
		s.cfg.Logger.ErrorContext(ctx, "refused administrator not recorded", "uid", p.uid, "error", err)
	}
}

// A refusal is whose are counted together.
type refusal struct {
	uid int
	id  identity.ID
}

// unrouted answers what mux has no pattern for: an unknown path, or the wrong
// method for a known one. HEAD, which mux takes for GET, is no method of the API:
// a tail that nobody reads would not end.
func (s *Server) unrouted(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	asked := r.Clone(r.Context())
	if r.Method == http.MethodHead {
		asked.Method = "NONE"
	}
	h, _ := mux.Handler(asked)
	probe := &statusProbe{header: http.Header{}}
	h.ServeHTTP(probe, asked)
	if probe.status != http.StatusMethodNotAllowed {
		s.fail(w, r, unknownPath(r))
		return
	}
	w.Header().Set("Allow", probe.header.Get("Allow"))
	s.write(w, r, http.StatusMethodNotAllowed, fault.List{fault.New(fault.BadRequest,
		"the methods are "+probe.header.Get("Allow"), "%q is no method of %s", clip(r.Method), clip(r.URL.Path))})
}

func unknownPath(r *http.Request) error {
	return fault.New(fault.NotFound, "the paths are in the API's OpenAPI document", "there is no %q in the admin API", clip(r.URL.Path))
}

// statusProbe catches the status that net/http's own handlers answer.
type statusProbe struct {
	header http.Header
	status int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *statusProbe) WriteHeader(status int)      { p.status = status }

// recover turns a panic into a problem that tells nothing but the id under which
// the log has it.
func (s *Server) recover(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares it the same way
		panic(v)
	}
	s.cfg.Logger.ErrorContext(r.Context(), "a request failed in this program", "component", "control", logging.Panicked(v))
	s.write(w, r, http.StatusInternalServerError, fault.List{internalFault(r.Context())})
}
