package control_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

func (m *memory) Logs(context.Context) ([]api.LogInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []api.LogInfo{{Log: "server", Origin: "shop.example/server", Own: true, Size: int64(len(m.events))}}, nil
}

func (m *memory) LogStats(context.Context) ([]api.LogStats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []api.LogStats{{Log: "server", Entries: int64(len(m.events))}}, nil
}

func (m *memory) Actions(_ context.Context, since time.Time) ([]api.ActionCount, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := int64(0)
	for i := range m.events {
		if e, err := audit.Decode(m.events[i].Body); err == nil && !e.Time.Before(since) {
			n++
		}
	}
	return []api.ActionCount{{Action: "call", Outcome: "allowed", Events: n}}, nil
}

func (m *memory) Prove(ctx context.Context, id string) ([]byte, error) {
	e, err := m.Event(ctx, id)
	if err != nil {
		return nil, err
	}
	if e.Index%2 == 1 {
		return nil, fmt.Errorf("entry %d: %w", e.Index, control.ErrUnsigned)
	}
	return []byte("the proof of " + id + "\n"), nil
}

func (m *memory) Entries(_ context.Context, log string, first uint64, limit int) (out []audit.Entry, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if log != "server" {
		return nil, control.ErrNotFound
	}
	for i := int(first); i < len(m.events) && len(out) < limit; i++ {
		out = append(out, m.events[i].Entry)
	}
	return out, nil
}

func TestExportIsWhatIsStored(t *testing.T) {
	t.Parallel()
	h := serve(t)
	h.recordCalls(t, 700)
	var got []audit.Entry
	err := h.client.Entries(t.Context(), "server", api.ExportEntriesParams{First: 3, To: 650}, func(e *api.LogEntry) error {
		got = append(got, audit.Entry{Log: "server", Index: uint64(e.Index), Leaf: audit.LeafHash(e.Event), Body: e.Event})
		if e.Leaf != fmt.Sprintf("%x", got[len(got)-1].Leaf) {
			t.Errorf("entry %d: leaf %s", e.Index, e.Leaf)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want, err := h.memory.Entries(t.Context(), "server", 3, 647)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	none := func(e *api.LogEntry) error { return fmt.Errorf("entry %d came", e.Index) }
	if err := h.client.Entries(t.Context(), "server", api.ExportEntriesParams{First: 700, To: 700}, none); err != nil {
		t.Errorf("nothing: %v", err)
	}
	stop := errors.New("enough")
	if err := h.client.Entries(t.Context(), "server", api.ExportEntriesParams{To: 700}, func(*api.LogEntry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a client that stops: %v", err)
	}
	for name, tt := range map[string]struct {
		log   string
		first int64
		to    int64
		code  fault.Code
	}{
		"no such log":    {"other", 0, 1, fault.NotFound},
		"behind the end": {"server", 700, 701, fault.NotFound},
		"too far":        {"server", 600, 701, fault.Unreachable}, // cut: the client must not take it for the end
		"backwards":      {"server", 5, 4, fault.BadRequest},
		"negative":       {"server", -1, 4, fault.BadRequest},
	} {
		err := h.client.Entries(t.Context(), tt.log, api.ExportEntriesParams{First: tt.first, To: tt.to}, func(*api.LogEntry) error { return nil })
		if all := fault.All(err); len(all) != 1 || all[0].Code != tt.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestProofs(t *testing.T) {
	t.Parallel()
	h := serve(t)
	ids := h.recordCalls(t, 2)
	if file, err := h.client.Proof(t.Context(), ids[0]); err != nil || string(file) != "the proof of "+ids[0]+"\n" {
		t.Errorf("%q, %v", file, err)
	}
	for id, says := range map[string]string{ids[1]: "cannot be proven yet: entry 1", "nobody": "there is no event"} {
		_, err := h.client.Proof(t.Context(), id)
		if all := fault.All(err); len(all) != 1 || all[0].Code != fault.NotFound || !strings.Contains(err.Error(), says) || all[0].Hint == "" {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	h := serve(t)
	h.recordCalls(t, 90) // one a second
	got, err := h.client.Stats(t.Context(), api.CountEventsParams{Since: start.Add(70 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	since := start.Add(70 * time.Second).Truncate(time.Minute)
	want := &api.AuditStats{Since: since, Logs: []api.LogStats{{Log: "server", Entries: 90}}, Actions: []api.ActionCount{{Action: "call", Outcome: "allowed", Events: int64(90 - since.Sub(start).Seconds())}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	logs, err := h.client.Logs(t.Context())
	if err != nil || len(logs.Items) != 1 || logs.Items[0].Origin != "shop.example/server" {
		t.Errorf("%+v, %v", logs, err)
	}
}
