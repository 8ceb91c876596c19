package control_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

func TestErase(t *testing.T) {
	t.Parallel()
	h := serve(t)
	want := &api.EraseResult{Events: 3, Logs: []api.Extent{{Log: "agent", From: 3, To: 9, Count: 2}, {Log: "server", From: 1, To: 1, Count: 1}}}
	got, err := h.client.Erase(t.Context(), api.EraseRequest{Subject: "alice", Issuer: "https://id", DryRun: true})
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("asked: %v\n%s", err, diff)
	}
	if len(h.erased) != 0 || len(h.events) != 0 {
		t.Errorf("asking erased %v", h.erased)
	}
	want.Done = true
	got, err = h.client.Erase(t.Context(), api.EraseRequest{Subject: "alice", Issuer: "https://id"})
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("done: %v\n%s", err, diff)
	}
	if diff := cmp.Diff([]control.Person{{Subject: "alice", Issuer: "https://id"}}, h.erased); diff != "" {
		t.Error(diff)
	}
	if e := h.last(t); e.Action != audit.Erased || e.Outcome != audit.Success || e.Class != audit.Security || e.Actor == nil || strings.Contains(string(h.events[0].Body), "alice") {
		t.Errorf("recorded %s", h.events[0].Body)
	}
	for name, r := range map[string]api.EraseRequest{
		"nobody": {}, "long": {Subject: strings.Repeat("x", 513)}, "long issuer": {Subject: "x", Issuer: strings.Repeat("x", 513)},
	} {
		if _, err := h.client.Erase(t.Context(), r); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.BadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
}
