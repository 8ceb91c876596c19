package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

func (o operations) ListEvents(ctx context.Context, r api.ListEventsRequestObject) (api.ListEventsResponseObject, error) {
	p := r.Params
	o.cfg.Collector.Settle(ctx)
	limit, err := pageSize(p.Limit)
	if err != nil {
		return nil, err
	}
	after, err := position(p.Cursor)
	if err != nil {
		return nil, err
	}
	if p.Newest && p.Cursor != "" {
		return nil, fault.New(fault.BadRequest, "leave one of them out", "newest and cursor contradict each other")
	}
	f := Filter{
		From: p.From, To: p.To, Action: p.Action, Outcome: p.Outcome, TraceID: p.TraceID, RequestID: p.RequestID, CallID: p.CallID, Subject: p.Subject,
		Since: p.Since, Until: p.Until, After: after, Newest: p.Newest, Limit: limit + 1,
	}
	if f.Newest {
		f.Limit = limit
	}
	events, err := o.cfg.Events.Search(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("search the events: %w", err)
	}
	return exact[api.EventList]{eventPage(events, limit, f.Newest)}, nil
}

// eventPage is the first limit events, or fewer that stay below maxPageBytes;
// of the newest it keeps the last ones.
func eventPage(events []StoredEvent, limit int, newest bool) api.EventList {
	list := api.EventList{Items: []api.Entry{}}
	if newest {
		size := 0
		for i := len(events) - 1; i >= 0; i-- {
			if size += len(events[i].Body); size > maxPageBytes {
				events = events[i+1:]
				break
			}
		}
	}
	size := 0
	for i := range events {
		size += len(events[i].Body)
		if i > 0 && (i == limit || size > maxPageBytes) {
			list.Next = cursorOf(&events[i-1])
			break
		}
		list.Items = append(list.Items, entryOf(&events[i]))
	}
	return list
}

func cursorOf(e *StoredEvent) string { return strconv.FormatInt(e.Position, 10) }

func (o operations) GetEvent(ctx context.Context, r api.GetEventRequestObject) (api.GetEventResponseObject, error) {
	e, err := o.recorded(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return exact[api.Entry]{entryOf(e)}, nil
}

// recorded is one event by its id.
func (s *Server) recorded(ctx context.Context, id string) (*StoredEvent, error) {
	e, err := s.cfg.Events.Event(ctx, id)
	if errors.Is(err, ErrNotFound) {
		s.cfg.Collector.Settle(ctx)
		e, err = s.cfg.Events.Event(ctx, id)
	}
	if errors.Is(err, ErrNotFound) {
		return nil, fault.New(fault.NotFound, "an event arrives up to a second after its call; see the newest: parley audit search",
			"there is no event %q", clip(id))
	}
	if err != nil {
		return nil, fmt.Errorf("read an event: %w", err)
	}
	return e, nil
}

func (o operations) VerifyAudit(ctx context.Context, _ api.VerifyAuditRequestObject) (api.VerifyAuditResponseObject, error) {
	o.cfg.Collector.Settle(ctx) // hosts look at the server's log with that
	reports, err := o.cfg.Events.VerifyLogs(ctx)
	if err != nil {
		return nil, fmt.Errorf("verify the logs: %w", err)
	}
	v := api.Verification{Intact: true, Logs: []api.LogReport{}}
	for i := range reports {
		v.Intact = v.Intact && reports[i].Fault == "" && reports[i].Contradiction == ""
		v.Logs = append(v.Logs, reportOf(&reports[i]))
	}
	return verification{v, o.cfg.Clock.Now}, nil
}

// A verification takes as long as the logs are, so its reply has a deadline of
// its own.
type verification struct {
	api.Verification
	now func() time.Time
}

func (v verification) VisitVerifyAuditResponse(w http.ResponseWriter) error {
	_ = http.NewResponseController(w).SetWriteDeadline(v.now().Add(writeTimeout)) // a recorder has none
	return api.VerifyAudit200JSONResponse(v.Verification).VisitVerifyAuditResponse(w)
}
