package fleet_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fleet"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// sockets is a shop whose site lets WebSocket through, which an agent has to know
// of, and whose web has left.
func (h *house) sockets(revision int64) *snapshot.Snapshot {
	s := h.shop(revision)
	s.Services[1].Inbound.WebSocket = &snapshot.WebSocket{}
	s.Members = []identity.ID{h.ca.ID(h.t, "site")}
	return s
}

// named is what is known of b.
func (h *house) named() fleet.Host {
	all := h.fleet.Hosts()
	return all[slices.IndexFunc(all, func(x fleet.Host) bool { return x.Name == "b" })]
}

// An agent that lacks what the newest snapshot needs keeps the last one, is named
// with the capability, and hears all the same whom it is not to let in any more: who
// is banned, and who left. Once it has what it lacked, it gets the newest.
func TestLaggard(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	old := hello("b")
	old.Capabilities = slices.DeleteFunc(old.Capabilities, func(c string) bool { return c == link.WebSocket })
	s := h.raw("b").greeted(old)
	first := s.update()
	s.send(&link.AgentMessage{Report: &link.Report{Generation: first.Generation, Revision: 1}})

	g := h.publish(h.sockets(2))
	m := s.recv()
	if m.Withdraw == nil || m.Update != nil {
		t.Fatalf("got %+v", m)
	}
	next, err := m.Withdraw.From(first)
	if err != nil {
		t.Fatal(err)
	}
	web, site := h.ca.ID(t, "web"), h.ca.ID(t, "site")
	if next.Snapshot.Revision != 1 || !slices.Equal(next.Snapshot.Members, []identity.ID{site}) || len(first.Snapshot.Members) != 2 {
		t.Errorf("it runs by %+v", next.Snapshot)
	}
	s.send(&link.AgentMessage{Report: &link.Report{Generation: next.Generation, Revision: 1}})
	if got := h.behind(g)["b"]; !strings.HasSuffix(got, "it lacks websocket") {
		t.Errorf("named %q", got)
	}
	eventually(t, "it says what it runs by", func() bool { return h.named().Report.Revision == 1 })
	if b := h.named(); b.Current || !cmp.Equal(b.Lacks, []string{link.WebSocket}) {
		t.Errorf("known is %+v", b)
	}

	g = h.fleet.Ban([]identity.ID{web})
	if got := h.confirm(g)["b"]; got == "" {
		t.Error("a ban that it has not answered is confirmed")
	}
	m = s.recv()
	if m.Withdraw == nil || !slices.Equal(m.Withdraw.Banned, []identity.ID{web}) {
		t.Fatalf("got %+v", m)
	}
	s.send(&link.AgentMessage{Report: &link.Report{Generation: m.Withdraw.Generation, Revision: 1}})
	eventually(t, "the ban is confirmed", func() bool { return len(h.confirm(g)) == 0 })
	if b := h.named(); b.Current || len(b.Lacks) == 0 {
		t.Errorf("that it knows the ban makes it no younger: %+v", b)
	}

	// What changes nothing of that is not sent: the next message is the answer to a
	// question.
	h.publish(h.sockets(3))
	go h.fleet.Settle(t.Context())
	if m = s.recv(); m.Settle == 0 {
		t.Errorf("got %+v", m)
	}

	// A revision that it can enforce reaches it whole, without a new connection.
	g = h.publish(h.shop(4))
	u := s.update()
	if u.Snapshot.Revision != 4 || !slices.Equal(u.Banned, []identity.ID{web}) || len(u.Snapshot.Members) != 2 {
		t.Errorf("got %+v", u)
	}
	s.send(&link.AgentMessage{Report: &link.Report{Generation: u.Generation, Revision: 4}})
	eventually(t, "it is current", func() bool { return len(h.behind(g)) == 0 && h.named().Current })

	g = h.publish(h.sockets(5))
	s.recv()
	young := h.raw("b").greeted(hello("b"))
	u = young.update()
	if u.Snapshot.Revision != 5 || u.Snapshot.Services[0].Inbound.WebSocket == nil {
		t.Errorf("upgraded, it got %+v", u.Snapshot)
	}
	young.send(&link.AgentMessage{Report: &link.Report{Generation: u.Generation, Revision: 5}})
	eventually(t, "upgraded, it is current", func() bool { return len(h.behind(g)) == 0 && h.named().Current && h.named().Lacks == nil })
}

// A laggard that does not know withdrawals either is sent nothing that it would not
// know, and a ban names it at once.
func TestLaggardThatHearsOfNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	old := hello("b")
	old.Capabilities = nil
	s := h.raw("b").greeted(old)
	u := s.update()
	s.send(&link.AgentMessage{Report: &link.Report{Generation: u.Generation, Revision: 1}})
	h.publish(h.sockets(2))
	g := h.fleet.Ban([]identity.ID{h.ca.ID(t, "web")})
	began := time.Now()
	eventually(t, "it is named", func() bool { return strings.Contains(h.confirm(g)["b"], "too old") })
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("waited %s for who cannot answer", d)
	}
	h.publish(h.shop(3))
	if u = s.update(); u.Snapshot.Revision != 3 || len(u.Banned) != 1 {
		t.Errorf("got %+v", u)
	}
}

// The lack of an earlier revision is not held against an agent that has all that the
// newest needs.
func TestLaggardCatchesUp(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.sockets(1))
	old := hello("b")
	old.Capabilities = []string{link.Withdraws}
	s := h.raw("b").greeted(old)
	if m := s.recv(); m.Withdraw == nil {
		t.Fatalf("got %+v", m)
	}
	for i := range int64(20) {
		g := h.publish(h.shop(2 + 2*i))
		if got := h.behind(g)["b"]; strings.Contains(got, "lacks") {
			t.Fatalf("it can run revision %d and is named: %s", 2+2*i, got)
		}
		h.publish(h.sockets(3 + 2*i))
	}
}
