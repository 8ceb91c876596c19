package control_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// levels are the logs of a server, of web1's agent, of web2's that is too old, and of
// web3's that does not answer.
type levels struct {
	mu    sync.Mutex // guards what follows
	set   []string
	level map[string]string
}

func newLevels() *levels {
	return &levels{level: map[string]string{"": "info", "web1": "info", "web3": "warn"}}
}

func (l *levels) LogLevels() []api.LogLevel {
	l.mu.Lock()
	defer l.mu.Unlock()
	return []api.LogLevel{
		{Process: "server", Level: l.level[""], Normal: "info"},
		{Process: "agent", Host: "web1", Level: l.level["web1"], Normal: "info"},
		{Process: "agent", Host: "web2", Note: "its agent is too old"},
		{Process: "agent", Host: "web3", Level: l.level["web3"], Normal: "warn"},
	}
}

func (l *levels) SetLogLevel(_ context.Context, host, level string, d time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if host == "web3" {
		return fault.New(fault.Unreachable, "", "it has not answered")
	}
	l.level[host] = level
	l.set = append(l.set, fmt.Sprintf("%s=%s for %s", host, level, d))
	return nil
}

// TestLogLevels: each change is recorded before it is made, one that cannot be made is
// neither, and what came of it is said.
func TestLogLevels(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		r              api.LogLevelRequest
		set, on, notes []string
		fails          fault.Code
	}{
		"server":       {r: api.LogLevelRequest{Level: "debug"}, set: []string{"=debug for 10m0s"}, on: []string{"server: debug for 10m0s"}},
		"an agent":     {r: api.LogLevelRequest{Level: "warn", Hosts: []string{"web1", "web1"}, Seconds: 60}, set: []string{"web1=warn for 1m0s"}, on: []string{"web1: warn for 1m0s"}},
		"all":          {r: api.LogLevelRequest{Level: "default", All: true}, set: []string{"= for 10m0s", "web1= for 10m0s"}, on: []string{"server: default", "web1: default", "web3: default"}, notes: []string{"web3: it has not answered"}},
		"too old":      {r: api.LogLevelRequest{Level: "debug", Hosts: []string{"web2"}}, notes: []string{"web2: its agent is too old"}},
		"no level":     {r: api.LogLevelRequest{Level: "loud"}, fails: fault.BadRequest},
		"none":         {r: api.LogLevelRequest{}, fails: fault.BadRequest},
		"too long":     {r: api.LogLevelRequest{Level: "debug", Seconds: 86401}, fails: fault.BadRequest},
		"before":       {r: api.LogLevelRequest{Level: "debug", Seconds: -1}, fails: fault.BadRequest},
		"both":         {r: api.LogLevelRequest{Level: "debug", All: true, Hosts: []string{"web1"}}, fails: fault.BadRequest},
		"nobody":       {r: api.LogLevelRequest{Level: "debug", Hosts: []string{"web9"}}, fails: fault.NotFound},
		"hostile":      {r: api.LogLevelRequest{Level: "debug", Hosts: []string{"\x1b[2J"}}, fails: fault.BadRequest},
		"empty host":   {r: api.LogLevelRequest{Level: "debug", Hosts: []string{""}}, fails: fault.BadRequest},
		"not recorded": {r: api.LogLevelRequest{Level: "debug"}, fails: fault.StoreFull},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := serve(t)
			if name == "not recorded" {
				h.failWith(fault.New(fault.StoreFull, "", "no space"))
			}
			got, err := h.client.SetLogLevel(t.Context(), tt.r)
			var f *fault.Fault
			if tt.fails != "" && (!errors.As(err, &f) || f.Code != tt.fails) || tt.fails == "" && err != nil {
				t.Fatalf("got %v, want %q", err, tt.fails)
			}
			var notes, on []string
			if err == nil {
				for _, l := range got.Items {
					if l.Note != "" {
						notes = append(notes, l.Host+": "+l.Note)
					}
				}
			}
			for _, s := range h.events {
				e, err := audit.Decode(s.Body)
				if err != nil || e.Action != audit.LogLevelChanged || e.Class != audit.Security || e.Actor == nil || e.Actor.UID == nil {
					t.Fatalf("recorded %s: %v", s.Body, err)
				}
				on = append(on, e.Object.Name+": "+e.Object.Detail)
			}
			if d := cmp.Diff([][]string{tt.set, tt.on, tt.notes}, [][]string{h.levels.set, on, notes}); d != "" {
				t.Error(strings.TrimSpace(d))
			}
		})
	}
}
