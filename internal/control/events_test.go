package control_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// record puts e into the log as an agent would.
func (m *memory) record(t testing.TB, e *audit.Event) {
	t.Helper()
	if e.ID == "" {
		e.ID = audit.NewID(start)
	}
	if e.Time.IsZero() {
		e.Time = start
	}
	e.Class, e.Reporter = audit.Access, "agent"
	body, err := audit.Encode(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(body)
}

func (m *memory) recordCalls(t testing.TB, n int) (ids []string) {
	t.Helper()
	for i := range n {
		e := &audit.Event{
			Action: audit.Call, Outcome: audit.Allowed, Time: start.Add(time.Duration(i) * time.Second),
			Call:   &audit.CallFacts{End: "inbound", RequestID: fmt.Sprintf("r%d", i), Path: "/a<b>&\u2028"},
			Caller: &audit.Party{Service: "web"}, Callee: &audit.Party{Service: "orders"},
		}
		m.record(t, e)
		ids = append(ids, e.ID)
	}
	return ids
}

// ids are the ids of the events of entries.
func ids(t *testing.T, entries []api.Entry) (out []string) {
	t.Helper()
	for _, e := range entries {
		event, err := audit.Decode(e.Event)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, event.ID)
	}
	return out
}

func TestEventsArePagedAndFiltered(t *testing.T) {
	t.Parallel()
	h := serve(t)
	want := h.recordCalls(t, 5)
	h.record(t, &audit.Event{Action: audit.Finding, Outcome: audit.Failure})
	var got []string
	p := api.ListEventsParams{From: "web", To: "orders", Action: "call", Outcome: "allowed", Limit: 2}
	for {
		list, err := h.client.Events(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ids(t, list.Items)...)
		if p.Cursor = list.Next; p.Cursor == "" {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, c := range map[string]struct {
		params api.ListEventsParams
		want   []string
	}{
		"newest":  {api.ListEventsParams{Newest: true, Limit: 2, Action: "call"}, want[3:]},
		"since":   {api.ListEventsParams{Since: start.Add(3 * time.Second)}, want[3:]},
		"until":   {api.ListEventsParams{Until: start.Add(time.Second), Action: "call"}, want[:1]},
		"request": {api.ListEventsParams{RequestID: "r2"}, want[2:3]},
		"nothing": {api.ListEventsParams{From: "nobody"}, nil},
	} {
		list, err := h.client.Events(t.Context(), c.params)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, ids(t, list.Items)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestEventIsItsStoredBytes(t *testing.T) {
	t.Parallel()
	h := serve(t)
	id := h.recordCalls(t, 1)[0]
	got, err := h.client.Event(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Event) != string(h.events[0].Body) {
		t.Errorf("got %s, stored %s", got.Event, h.events[0].Body)
	}
	leaf := audit.LeafHash(got.Event)
	if got.Leaf != fmt.Sprintf("%x", leaf[:]) || got.Log != "server" || got.Index != 0 {
		t.Errorf("entry %+v", got)
	}
	// The other replies with events keep the bytes, too.
	list, err := h.client.Events(t.Context(), api.ListEventsParams{})
	if err != nil || !cmp.Equal(list.Items, []api.Entry{*got}) {
		t.Errorf("list %+v, %v", list, err)
	}
	err = h.client.Tail(t.Context(), api.TailEventsParams{Last: 1}, func(e *api.Entry) error {
		if !cmp.Equal(e, got) {
			t.Errorf("tail %+v", e)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := h.client.Event(t.Context(), "nothing"); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.NotFound {
		t.Errorf("an unknown event: %v", err)
	}
}

func TestTailFollows(t *testing.T) {
	t.Parallel()
	h := serve(t)
	old := h.recordCalls(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var got []string
	var late string
	enough := errors.New("enough")
	err := h.client.Tail(ctx, api.TailEventsParams{Last: 2, Follow: true, Action: "call"}, func(e *api.Entry) error {
		got = append(got, ids(t, []api.Entry{*e})...)
		switch len(got) {
		case 2: // one that the filter does not want, then one that it does
			h.record(t, &audit.Event{Action: audit.Finding, Outcome: audit.Failure})
			late = h.recordCalls(t, 1)[0]
		case 3:
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("tail ended with %v after %v", err, got)
	}
	if diff := cmp.Diff([]string{old[1], old[2], late}, got); diff != "" {
		t.Error(diff)
	}
}

func TestTailWithoutFollowEnds(t *testing.T) {
	t.Parallel()
	h := serve(t)
	all := h.recordCalls(t, 450)
	n := 0
	err := h.client.Tail(t.Context(), api.TailEventsParams{Cursor: "0"}, func(*api.Entry) error { n++; return nil })
	if err != nil || n != len(all) {
		t.Errorf("%d events, %v", n, err)
	}
}

func TestTailEndsWithTheServer(t *testing.T) {
	t.Parallel()
	h := serve(t)
	h.recordCalls(t, 1)
	ended := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		ended <- h.client.Tail(context.WithoutCancel(t.Context()), api.TailEventsParams{Last: 1, Follow: true}, func(*api.Entry) error { close(started); return nil })
	}()
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := h.server.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	select {
	case <-ended:
	case <-ctx.Done():
		t.Error("the tail goes on")
	}
}

func TestVerifyReportsEveryLog(t *testing.T) {
	t.Parallel()
	h := serve(t)
	v, err := h.client.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if v.Intact || len(v.Logs) != 2 || v.Logs[0].Fault != "" || v.Logs[1].Fault == "" {
		t.Errorf("%+v", v)
	}
}

func TestTailReadsWhatDoesNotMatchOnce(t *testing.T) {
	t.Parallel()
	h := serve(t)
	h.recordCalls(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	_ = h.client.Tail(ctx, api.TailEventsParams{Cursor: "0", Follow: true, Action: "key.created"}, func(e *api.Entry) error {
		t.Errorf("got %s", e.Event)
		return nil
	}) // it ends with ctx
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.filtered != 1 {
		t.Errorf("%d searches for what is not there", h.filtered)
	}
}

func TestTailOutlivesTheReadTimeout(t *testing.T) {
	t.Parallel()
	h := serve(t)
	h.recordCalls(t, 1)
	late := time.AfterFunc(500*time.Millisecond, func() { h.recordCalls(t, 1) })
	defer late.Stop()
	n, enough := 0, errors.New("enough")
	err := h.client.Tail(t.Context(), api.TailEventsParams{Last: 1, Follow: true}, func(*api.Entry) error {
		if n++; n == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("ended with %v after %d events", err, n)
	}
}

func TestPageOfLargeEventsEndsEarly(t *testing.T) {
	t.Parallel()
	events := make([]control.StoredEvent, 300)
	for i := range events {
		events[i].Position = int64(i + 1)
		events[i].Body = make([]byte, audit.MaxEvent)
	}
	page := control.EventPage(events, 1000, false)
	if n := len(page.Items); n == 0 || n*audit.MaxEvent > 8<<20 || page.Next != page.Items[n-1].Cursor {
		t.Errorf("%d events, next %q", n, page.Next)
	}
	page = control.EventPage(events, 1000, true)
	if n := len(page.Items); n == 0 || n*audit.MaxEvent > 8<<20 || page.Next != "" || page.Items[n-1].Cursor != "300" {
		t.Errorf("%d newest events, next %q", n, page.Next)
	}
}
