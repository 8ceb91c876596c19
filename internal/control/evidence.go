package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// ErrUnsigned is that of an event that no signed checkpoint of its log covers yet.
var ErrUnsigned = errors.New("no signed checkpoint covers it")

// Evidence shows to others what the logs are. Implementations are safe for concurrent
// use.
type Evidence interface {
	// Logs are all of them, by name.
	Logs(ctx context.Context) ([]api.LogInfo, error)
	// LogStats are the figures of all logs, by name.
	LogStats(ctx context.Context) ([]api.LogStats, error)
	// Actions are how many events there were since, the most frequent first.
	Actions(ctx context.Context, since time.Time) ([]api.ActionCount, error)
	// Prove is the proof file of one event by its id; ErrNotFound, ErrUnsigned.
	Prove(ctx context.Context, id string) ([]byte, error)
	// Entries are up to limit entries of a log from index first on, each with its
	// committed bytes, none behind its end; ErrNotFound.
	Entries(ctx context.Context, log string, first uint64, limit int) ([]audit.Entry, error)
}

func (o operations) ListLogs(ctx context.Context, _ api.ListLogsRequestObject) (api.ListLogsResponseObject, error) {
	o.cfg.Collector.Settle(ctx)
	logs, err := o.cfg.Evidence.Logs(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the logs: %w", err)
	}
	return api.ListLogs200JSONResponse{Items: append([]api.LogInfo{}, logs...)}, nil
}

func (o operations) ProveEvent(ctx context.Context, r api.ProveEventRequestObject) (api.ProveEventResponseObject, error) {
	if _, err := o.recorded(ctx, r.ID); err != nil {
		return nil, err
	}
	file, err := o.cfg.Evidence.Prove(ctx, r.ID)
	if errors.Is(err, ErrUnsigned) {
		return nil, fault.New(fault.NotFound, "a second later there should be one; see which logs are signed: parley audit stats",
			"the event %q cannot be proven yet: %v", clip(r.ID), err)
	}
	if err != nil {
		return nil, fmt.Errorf("prove an event: %w", err)
	}
	return api.ProveEvent200TextResponse(file), nil
}

func (o operations) CountEvents(ctx context.Context, r api.CountEventsRequestObject) (api.CountEventsResponseObject, error) {
	o.cfg.Collector.Settle(ctx)
	since := r.Params.Since.UTC().Truncate(time.Minute)
	actions, err := o.cfg.Evidence.Actions(ctx, since)
	if err != nil {
		return nil, fmt.Errorf("count the events: %w", err)
	}
	logs, err := o.cfg.Evidence.LogStats(ctx)
	if err != nil {
		return nil, fmt.Errorf("count the entries: %w", err)
	}
	return api.CountEvents200JSONResponse{
		Since: since, Actions: append([]api.ActionCount{}, actions...), Logs: append([]api.LogStats{}, logs...),
	}, nil
}

func (o operations) ExportEntries(ctx context.Context, r api.ExportEntriesRequestObject) (api.ExportEntriesResponseObject, error) {
	p := r.Params
	if p.First < 0 || p.To < p.First {
		return nil, fault.New(fault.BadRequest, "", "first is 0 or more, and to is not below it")
	}
	e := &export{server: o.Server, ctx: ctx, log: r.Log, next: uint64(p.First), to: uint64(p.To)}
	// What there is not is said before the reply begins.
	first, err := e.page()
	if errors.Is(err, ErrNotFound) {
		return nil, fault.New(fault.NotFound, "see which there are: parley audit keys", "there is no log %q", clip(r.Log))
	}
	if err != nil {
		return nil, fmt.Errorf("export a log: %w", err)
	}
	if len(first) == 0 && e.next < e.to {
		return nil, fault.New(fault.NotFound, "", "the log %q has no entry %d", clip(r.Log), e.next)
	}
	e.first = first
	return e, nil
}

// An export is the entries of a log, line by line, a page of which is in memory.
type export struct {
	server   *Server
	ctx      context.Context // the request's; the generated Visit does not pass it on
	log      string
	next, to uint64
	first    []audit.Entry
}

const (
	exportPage = 256
)

func (e *export) page() ([]audit.Entry, error) {
	return e.server.cfg.Evidence.Entries(e.ctx, e.log, e.next, int(min(exportPage, e.to-e.next)))
}

// VisitExportEntriesResponse writes until the end. An error after the first line can
// only cut the reply.
func (e *export) VisitExportEntriesResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	if err := e.run(w); err != nil {
		if e.ctx.Err() == nil {
			e.server.cfg.Logger.Warn("export of a log ended early", "log", e.log, "request", requestID(e.ctx), "error", err)
		}
		panic(http.ErrAbortHandler) // the client must not take it for the end
	}
	return nil
}

func (e *export) run(w http.ResponseWriter) error {
	rc := http.NewResponseController(w)
	for entries := e.first; ; {
		var lines bytes.Buffer
		for _, n := range entries {
			line, err := encodeExact(api.LogEntry{Index: int64(n.Index), Leaf: hexHash(n.Leaf), Event: n.Body})
			if err != nil {
				return err
			}
			lines.Write(line)
		}
		_ = rc.SetWriteDeadline(e.server.cfg.Clock.Now().Add(writeTimeout)) // a recorder has none
		if _, err := w.Write(lines.Bytes()); err != nil {
			return err
		}
		if e.next += uint64(len(entries)); e.next >= e.to {
			return nil
		}
		var err error
		if entries, err = e.page(); err != nil {
			return err
		}
		if len(entries) == 0 {
			return fmt.Errorf("entry %d is not there", e.next)
		}
	}
}
