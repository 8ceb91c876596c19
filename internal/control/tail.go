package control

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// Timing of a tail.
const (
	tailPoll  = 200 * time.Millisecond // between looks at the store
	tailBeat  = 15 * time.Second       // between empty lines when nothing happens
	tailBatch = 200
)

func (o operations) TailEvents(ctx context.Context, r api.TailEventsRequestObject) (api.TailEventsResponseObject, error) {
	p := r.Params
	if p.Last < 0 || p.Last > maxPage {
		return nil, fault.New(fault.BadRequest, "", "last is 0 to %d", maxPage)
	}
	if p.Last > 0 && p.Cursor != "" {
		return nil, fault.New(fault.BadRequest, "leave one of them out", "last and cursor contradict each other")
	}
	after, err := position(p.Cursor)
	if err != nil {
		return nil, err
	}
	o.cfg.Collector.Settle(ctx)
	t := &tail{server: o.Server, ctx: ctx, follow: p.Follow, filter: Filter{
		From: p.From, To: p.To, Action: p.Action, Outcome: p.Outcome, TraceID: p.TraceID, RequestID: p.RequestID, CallID: p.CallID, Subject: p.Subject,
		After: after, Limit: tailBatch,
	}}
	if p.Cursor == "" {
		err = t.begin(p.Last)
	}
	return t, err
}

// A tail is the events of a filter, line by line.
type tail struct {
	server *Server
	ctx    context.Context // the request's; the generated Visit does not pass it on
	follow bool
	filter Filter
	first  []StoredEvent
	rc     *http.ResponseController
	beat   time.Time // of the last line
}

// begin takes the newest events, and stands behind everything that is there now,
// whether it matches the filter or not.
func (t *tail) begin(last int) (err error) {
	if t.filter.After, err = t.newest(); err != nil {
		return fmt.Errorf("find the newest event: %w", err)
	}
	if last == 0 {
		return nil
	}
	f := t.filter
	f.After, f.Newest, f.Limit = 0, true, last
	if t.first, err = t.server.cfg.Events.Search(t.ctx, f); err != nil {
		return fmt.Errorf("find the newest events: %w", err)
	}
	if n := len(t.first); n > 0 { // one may have arrived in between
		t.filter.After = max(t.filter.After, t.first[n-1].Position)
	}
	return nil
}

// VisitTailEventsResponse writes until the client leaves, the server ends, or,
// without follow, there is nothing more. An error after the first line can only
// cut the reply.
func (t *tail) VisitTailEventsResponse(w http.ResponseWriter) error {
	t.rc = http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	if err := t.run(w); err != nil && t.ctx.Err() == nil {
		t.server.cfg.Logger.WarnContext(t.ctx, "tail of the events ended early", "component", "control", "error", err)
		panic(http.ErrAbortHandler) // the client must not take it for the end
	}
	return nil
}

func (t *tail) run(w http.ResponseWriter) error {
	if err := t.write(w, t.first); err != nil {
		return err
	}
	for {
		events, err := t.next()
		if err != nil {
			return err
		}
		if err := t.write(w, events); err != nil {
			return err
		}
		switch {
		case len(events) > 0:
			t.filter.After = events[len(events)-1].Position
		case !t.follow:
			return nil
		default:
			if err := t.server.cfg.Clock.Sleep(t.ctx, tailPoll); err != nil {
				return err
			}
		}
	}
}

// next is what is there behind the last event. It steps over what does not
// match, so that a filter that matches little does not read it again and again.
func (t *tail) next() ([]StoredEvent, error) {
	newest, err := t.newest()
	if err != nil || newest <= t.filter.After {
		return nil, err
	}
	events, err := t.server.cfg.Events.Search(t.ctx, t.filter)
	if err == nil && len(events) == 0 {
		t.filter.After = newest
	}
	return events, err
}

// newest is the position of the newest event, 0 for none.
func (t *tail) newest() (int64, error) {
	events, err := t.server.cfg.Events.Search(t.ctx, Filter{Newest: true, Limit: 1})
	if err != nil || len(events) == 0 {
		return 0, err
	}
	return events[0].Position, nil
}

// write sends events at once, and an empty line where there were none for long.
func (t *tail) write(w http.ResponseWriter, events []StoredEvent) error {
	var lines bytes.Buffer
	for i := range events {
		line, err := encodeExact(entryOf(&events[i]))
		if err != nil {
			return err
		}
		lines.Write(line)
	}
	now := t.server.cfg.Clock.Now()
	first := t.beat.IsZero() // the client waits for the head of the reply
	if lines.Len() == 0 && !first {
		if now.Sub(t.beat) < tailBeat {
			return nil
		}
		lines.WriteByte('\n')
	}
	t.beat = now
	_ = t.rc.SetWriteDeadline(now.Add(writeTimeout)) // a recorder has none
	if _, err := w.Write(lines.Bytes()); err != nil {
		return err
	}
	return t.rc.Flush()
}
