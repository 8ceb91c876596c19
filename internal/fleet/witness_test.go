package fleet_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	logs "github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/fault"
)

// What an agent says of its log arrives in the name of its host, and the server's log
// is shown to it, whole.
func TestLogsAreShown(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.sink.growth = logs.Growth{Key: "vkey", Note: []byte("note")}
	c := h.client("a", h.agentSource("a", time.Hour), h.addr)
	receipt, err := c.Witness(t.Context(), "a-0123abcd", logs.Statement{Host: "b", Key: "k", Note: []byte("n")})
	if err != nil || string(receipt) != "receipt" {
		t.Errorf("%q, %v", receipt, err)
	}
	if diff := cmp.Diff(logs.Statement{Host: "a", Key: "k", Note: []byte("n")}, h.sink.said); diff != "" {
		t.Error(diff)
	}
	g, err := c.Growth(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&logs.Growth{Key: "vkey", Note: []byte("note"), Proof: make([]audit.Hash, 3)}, g); diff != "" {
		t.Error(diff)
	}
}

// A host speaks of its own log alone.
func TestLogsOfOthers(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.client("a", h.agentSource("a", time.Hour), h.addr)
	for _, log := range []string{"b-0123abcd", "srv-0123abcd", "a", "", "a-b-0123abcd"} {
		if _, err := c.Witness(t.Context(), log, logs.Statement{}); err == nil || len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.NotPermitted {
			t.Errorf("%q: %v", log, err)
		}
	}
	if h.sink.said.Host != "" {
		t.Error("it was heard")
	}
}

// A fork is told as what it is, and nothing else of the server's errors.
func TestLogsThatDoNotFit(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := h.client("a", h.agentSource("a", time.Hour), h.addr)
	for err, code := range map[error]fault.Code{logs.ErrFork: fault.LogForked, logs.ErrKey: fault.LogForked, io.ErrShortWrite: ""} {
		h.sink.mu.Lock()
		h.sink.refuse = err
		h.sink.mu.Unlock()
		_, got := c.Witness(t.Context(), "a-0123abcd", logs.Statement{})
		known := fault.All(got)
		if got == nil || strings.Contains(got.Error(), "canary") || (len(known) > 0) != (code != "") || code != "" && known[0].Code != code || errors.Is(got, errors.ErrUnsupported) {
			t.Errorf("%v: told %v", err, got)
		}
	}
}
