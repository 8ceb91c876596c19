package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// maxFaults bounds the faults of one problem.
const maxFaults = 1000

// fail answers err as a problem: the one place where an error becomes a status.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		// The server stops, or the client left and will not read this.
		err = fault.New(fault.Unreachable, "try again when it is back: parley status", "the server is stopping")
	}
	faults := s.faults(r.Context(), err)
	s.write(w, r, status(faults[0].Code), faults)
}

// badRequest answers what could not be read as the operation's input.
func (s *Server) badRequest(w http.ResponseWriter, r *http.Request, err error) {
	if len(fault.All(err)) > 0 {
		s.fail(w, r, err)
		return
	}
	code := http.StatusBadRequest
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		code = http.StatusRequestEntityTooLarge
	}
	s.write(w, r, code, fault.List{fault.New(fault.BadRequest, "", "%s", clip(err.Error()))})
}

// faults are what of err a person may know; never none.
func (s *Server) faults(ctx context.Context, err error) fault.List {
	faults := fault.All(err)
	switch {
	case len(faults) > 0 && faults[0].Code != fault.Internal:
		return faults[:min(len(faults), maxFaults)]
	case errors.Is(err, ErrNotFound):
		return fault.List{fault.New(fault.NotFound, "", "there is nothing of that name or number")}
	case errors.Is(err, ErrConflict):
		return fault.List{fault.New(fault.Conflict, "look at the newest revision and try again: parley config history", "the state moved in the meantime")}
	}
	s.cfg.Logger.ErrorContext(ctx, "admin request failed", "component", "control", "error", err)
	return fault.List{internalFault(ctx)}
}

func internalFault(ctx context.Context) *fault.Fault {
	return fault.New(fault.Internal, "look for request "+requestID(ctx)+" in the server's log", "the server failed")
}

// write answers a problem (RFC 9457).
func (s *Server) write(w http.ResponseWriter, r *http.Request, status int, faults fault.List) {
	p := api.Problem{
		Type:     "urn:parley:fault:" + string(faults[0].Code),
		Title:    http.StatusText(status),
		Status:   status,
		Instance: "urn:parley:request:" + requestID(r.Context()),
		Code:     string(faults[0].Code),
		Detail:   faults[0].Error(),
	}
	for _, f := range faults {
		p.Faults = append(p.Faults, api.NewFault(f))
	}
	body, err := json.Marshal(p)
	if err != nil {
		s.cfg.Logger.ErrorContext(r.Context(), "problem not encoded", "component", "control", "error", err)
		body = []byte("{}")
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		s.cfg.Logger.DebugContext(r.Context(), "reply not sent", "component", "control", "error", err)
	}
}

// status is the HTTP status of a fault.
func status(code fault.Code) int {
	switch code {
	case fault.Usage, fault.BadRequest:
		return http.StatusBadRequest
	case fault.NotPermitted:
		return http.StatusForbidden
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict, fault.PortOccupied, fault.PortForbidden, fault.AppPortHeld, fault.SocketPath:
		return http.StatusConflict
	case fault.MeshTooLarge:
		return http.StatusRequestEntityTooLarge
	case fault.StoreFull, fault.LogFull:
		return http.StatusInsufficientStorage
	case fault.StoreCorrupt, fault.StoreReadOnly, fault.StoreBusy, fault.StoreVersion, fault.StoreUnreachable, fault.StoreRefused, fault.StoreUntrusted,
		fault.LogBroken, fault.ClockWrong, fault.NotRunning, fault.Unreachable:
		return http.StatusServiceUnavailable
	case fault.Internal:
		return http.StatusInternalServerError
	}
	return http.StatusUnprocessableEntity // the mesh file, keys, certificates
}

// clip bounds what a message repeats of outside bytes.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
