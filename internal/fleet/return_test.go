package fleet_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fleet/link"
)

func announced(addr string) *link.AgentMessage {
	return &link.AgentMessage{Report: &link.Report{Endpoints: []link.Endpoint{{Service: "site", Address: addr}}}}
}

// A server that started anew tells nobody of anything before the hosts of called
// services are back: the first to come is not told that there are none.
func TestServerThatStartedAwaitsAgents(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	h.fleet.AwaitReturn()
	a := h.raw("a").greeted(hello("a"))
	b, c := h.raw("b").greeted(hello("b")), h.raw("c").greeted(hello("c"))
	got := make(chan []string, 10)
	go func() { // ends with the stream
		for {
			var m link.ServerMessage
			if a.RecvMsg(&m) != nil {
				return
			}
			if u, err := m.Update.Update(); err == nil {
				got <- places(*u)
			}
		}
	}()
	b.send(announced("0.0.0.0:1"))
	select {
	case first := <-got:
		t.Fatalf("told %v while c is not back", first)
	case <-time.After(300 * time.Millisecond):
	}
	c.send(announced("0.0.0.0:2"))
	select {
	case first := <-got:
		if diff := cmp.Diff([]string{"127.0.0.1:1", "127.0.0.1:2"}, first); diff != "" {
			t.Error(diff)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("told nothing")
	}
}

// It waits no longer than eight seconds, and not at all where something changes.
func TestWaitForAgentsEnds(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*house){
		"by a revision": func(h *house) { h.publish(h.shop(2)) },
		"by a ban":      func(h *house) { h.fleet.Ban(nil) },
		"by itself":     func(*house) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.publish(h.shop(1))
			h.fleet.AwaitReturn()
			a := h.raw("a").greeted(hello("a"))
			change(h)
			began := time.Now()
			a.update()
			if took := time.Since(began); (name == "by itself") != (took > 7*time.Second) || took > 10*time.Second {
				t.Errorf("after %s", took)
			}
		})
	}
}
