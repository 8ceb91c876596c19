package fleet_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/snapshot"
)

// behind is who has not tried generation soon.
func (h *house) behind(generation uint64) map[string]string {
	ctx, done := context.WithTimeout(h.t.Context(), 300*time.Millisecond)
	defer done()
	return h.fleet.Wait(ctx, generation)
}

// confirm is who has not confirmed soon what generation withdraws.
func (h *house) confirm(generation uint64) map[string]string {
	ctx, done := context.WithTimeout(h.t.Context(), 300*time.Millisecond)
	defer done()
	return h.fleet.WaitWithdrawn(ctx, generation)
}

func TestWaitNamesThoseWhoHaveNotAnswered(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	g := h.publish(h.shop(1))
	if got := h.behind(g); len(got) != 0 {
		t.Errorf("nobody is connected: %v", got)
	}
	a, b := h.raw("a").greeted(hello("a")), h.raw("b").greeted(hello("b"))
	ua, ub := a.update(), b.update()
	if diff := cmp.Diff(map[string]string{"a": "it has not answered yet", "b": "it has not answered yet"}, h.behind(g)); diff != "" {
		t.Error(diff)
	}
	a.send(&link.AgentMessage{Report: &link.Report{Generation: ua.Generation, Revision: 1}})
	b.send(&link.AgentMessage{Report: &link.Report{Generation: ub.Generation, Fault: "the port is taken"}})
	eventually(t, "both answered", func() bool { return cmp.Equal(map[string]string{"b": "the port is taken"}, h.behind(g)) })
	for _, host := range h.fleet.Hosts() {
		want := host.Name == "a"
		if host.Current != want || host.Connected != (host.Name != "c") {
			t.Errorf("%+v", host)
		}
	}
	// What changes nothing for a host is not sent, and not waited for.
	other := h.shop(1)
	other.Services[1].RunsAs.User = "else"
	g = h.publish(other)
	b.update()
	if got := h.behind(g); got["a"] != "" || got["b"] == "" {
		t.Errorf("behind: %v", got)
	}
}

// An agent cannot have tried what it was not sent.
func TestForgedGenerationConfirmsNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	a := h.raw("a").greeted(hello("a"))
	a.update()
	a.send(&link.AgentMessage{Report: &link.Report{Generation: 1 << 60, Revision: 99}})
	eventually(t, "heard", func() bool { return h.fleet.Hosts()[0].Report.Revision == 99 })
	g := h.fleet.Ban([]identity.ID{h.ca.ID(t, "web")})
	a.update() // it is sent, and not answered
	if got := h.behind(g); got["a"] == "" {
		t.Error("the ban counts as confirmed before it was heard of")
	}
}

func TestNewestConnectionWins(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	old := h.raw("b").greeted(hello("b"))
	old.update()
	old.send(&link.AgentMessage{Report: &link.Report{Endpoints: []link.Endpoint{{Service: "site", Address: "0.0.0.0:1"}}}})
	viewer := h.raw("a").greeted(hello("a"))
	eventually(t, "announced", func() bool { return len(places(*viewer.update())) == 1 })
	again := h.raw("b").greeted(hello("b"))
	again.update()
	for err := error(nil); err == nil; {
		err = old.RecvMsg(new(link.ServerMessage))
	}
	old.send(&link.AgentMessage{Report: &link.Report{Revision: 77}})
	again.send(&link.AgentMessage{Report: &link.Report{Revision: 1, Endpoints: []link.Endpoint{{Service: "site", Address: "0.0.0.0:2"}}}})
	// Its endpoints stay until it says something else: there is no moment without.
	if diff := cmp.Diff([]string{"127.0.0.1:2"}, places(*viewer.update())); diff != "" {
		t.Error(diff)
	}
	for _, host := range h.fleet.Hosts() {
		if host.Name == "b" && (!host.Connected || host.Report.Revision != 1) {
			t.Errorf("%+v", host)
		}
	}
}

// large is a mesh whose update is more than the window of a stream holds.
func (h *house) large(revision int64) *snapshot.Snapshot {
	s := h.shop(revision)
	for i := range 1000 {
		s.Members = append(s.Members, must(identity.NewID(h.ca.Domain, fmt.Sprintf("/s%d/%s", i, strings.Repeat("x", 200)))))
	}
	return s
}

// ended wants the connection of s to end, which is seen without reading it.
func ended(t *testing.T, what string, s *stream) {
	t.Helper()
	for range 250 {
		if s.Context().Err() != nil || s.SendMsg(&link.AgentMessage{Report: &link.Report{}}) != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%s is open still", what)
}

// What an agent does not read is held for it, no longer than its connection is the
// newest.
func TestConnectionThatIsNotReadEnds(t *testing.T) {
	t.Parallel()
	h := houseOf(t, xtest.NewCA(t, "shop.example"), hurried{})
	h.publish(h.large(1))
	first := h.raw("a").greeted(hello("a"))
	h.publish(h.large(2))
	h.publish(h.large(3))
	h.raw("a").greeted(hello("a"))
	ended(t, "the connection before", first)
}

// And once for a connection.
func TestOneStreamAConnection(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.large(1))
	r := h.raw("a")
	first := r.greeted(hello("a"))
	second := r.open()
	second.send(&link.AgentMessage{Hello: hello("a")})
	ended(t, "the first", first)
	ended(t, "the second", second)
	r.greeted(hello("a")).update()
}

func TestGreetingIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	with := func(change func(*link.Hello)) *link.AgentMessage {
		m := hello("a")
		change(m)
		return &link.AgentMessage{Hello: m}
	}
	for name, m := range map[string]*link.AgentMessage{
		"nothing":          {},
		"a report":         {Report: &link.Report{}},
		"both":             {Hello: hello("a"), Report: &link.Report{}},
		"an answer":        {Hello: hello("a"), Settled: 1},
		"protocol":         with(func(m *link.Hello) { m.Protocol = 2 }),
		"another host":     with(func(m *link.Hello) { m.Host = "b" }),
		"no host":          with(func(m *link.Hello) { m.Host = "" }),
		"metadata service": with(func(m *link.Hello) { m.Advertise = "169.254.169.254" }),
		"mapped":           with(func(m *link.Hello) { m.Advertise = "::ffff:169.254.169.254" }),
		"nowhere":          with(func(m *link.Hello) { m.Advertise = "::ffff:0.0.0.0" }),
		"everybody":        with(func(m *link.Hello) { m.Advertise = "255.255.255.255" }),
		"a name":           with(func(m *link.Hello) { m.Advertise = "web.example" }),
		"version":          with(func(m *link.Hello) { m.Version = strings.Repeat("v", 1000) }),
		"capability":       with(func(m *link.Hello) { m.Capabilities = []string{strings.Repeat("v", 1000)} }),
		"capabilities":     with(func(m *link.Hello) { m.Capabilities = make([]string, 10_000) }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := h.raw("a").open()
			s.send(m)
			if err := s.RecvMsg(new(link.ServerMessage)); status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Cleanup(func() {
		for _, host := range h.fleet.Hosts() {
			if host.Connected {
				t.Errorf("%+v", host)
			}
		}
	})
}

// hurried is a clock whose sleeps last a fiftieth.
type hurried struct{}

func (hurried) Now() time.Time { return time.Now() }

func (hurried) Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d / 50):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestStreamWithoutAHelloEnds(t *testing.T) {
	t.Parallel()
	h := houseOf(t, xtest.NewCA(t, "shop.example"), hurried{})
	s := h.raw("a").open()
	done := make(chan error, 1)
	go func() { done <- s.RecvMsg(new(link.ServerMessage)) }()
	select {
	case err := <-done:
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it waits for ever")
	}
}

func TestMessagesThatEndAStream(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	for name, m := range map[string]any{
		"nothing":       &link.AgentMessage{},
		"a hello":       &link.AgentMessage{Hello: hello("a")},
		"two at once":   &link.AgentMessage{Report: &link.Report{}, Settled: 1},
		"unknown field": map[string]any{"report": map[string]any{"generation": 1, "trusted": true}},
		"unknown kind":  map[string]any{"command": map[string]any{}},
		"no object":     []int{1},
	} {
		t.Run(name, func(t *testing.T) {
			s := h.raw("a").greeted(hello("a"))
			s.update()
			if err := s.SendMsg(m); err != nil {
				t.Fatal(err)
			}
			if err := s.RecvMsg(new(link.ServerMessage)); err == nil {
				t.Error("the stream goes on")
			}
		})
	}
}

// A report is kept in memory and shown to people: it is cut to its bounds.
func TestReportIsBounded(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	s := h.raw("a").greeted(hello("a"))
	s.update()
	r := &link.Report{Revision: 7, Fault: strings.Repeat("é", 1<<20), Findings: make([]link.FindingReport, 100_000), Endpoints: make([]link.Endpoint, 50_000)}
	r.Services = []link.ServiceReport{{Name: "web", State: "splendid", Note: strings.Repeat("x", 1<<20)}}
	s.send(&link.AgentMessage{Report: r})
	eventually(t, "heard", func() bool { return h.fleet.Hosts()[0].Report.Revision == 7 })
	got := h.fleet.Hosts()[0].Report
	if len(got.Fault) > 2000 || len(got.Findings) > 5000 || len(got.Endpoints) > 5000 || len(got.Services[0].Note) > 2000 || got.Services[0].State != link.Failed {
		t.Errorf("kept %d bytes of fault, %d findings, %d endpoints, note of %d bytes, state %q",
			len(got.Fault), len(got.Findings), len(got.Endpoints), len(got.Services[0].Note), got.Services[0].State)
	}
	if !strings.HasSuffix(got.Fault, "…") {
		t.Error("the cut does not show")
	}
}

// Every announcement is news to every other host: one agent does not keep them all
// busy, nor the log.
func TestAgentThatChangesItsMind(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	before := h.publish(h.shop(1))
	s := h.raw("b").greeted(hello("b"))
	s.update()
	for i := range 200 {
		s.send(&link.AgentMessage{Report: &link.Report{Endpoints: []link.Endpoint{{Service: "site", Address: fmt.Sprintf("0.0.0.0:%d", 1+i%2)}}}})
	}
	time.Sleep(500 * time.Millisecond)
	if after := h.fleet.Ban(nil); after-before > 30 || after-before < 10 {
		t.Errorf("%d generations of it", after-before)
	}
	for range 100 {
		s := h.raw("c").greeted(hello("c"))
		s.cancel()
	}
	if n := h.rec.count(audit.AgentConnected); n > 30 || n < 2 {
		t.Errorf("%d connections recorded", n)
	}
	for range 50 {
		s := h.raw("c").open()
		s.send(&link.AgentMessage{})
		_ = s.RecvMsg(new(link.ServerMessage))
	}
	if n := h.rec.count(audit.AgentRefused); n != 1 {
		t.Errorf("%d refusals recorded", n)
	}
}

// A mesh without hosts is one machine's: a host of an earlier revision, which may be
// connected still, is told nothing of it.
func TestNothingIsToldOfAMeshWithoutHosts(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	s := h.raw("a").greeted(hello("a"))
	s.update()
	alone := h.shop(2)
	alone.Hosts = nil
	h.publish(alone)
	time.Sleep(200 * time.Millisecond) // it would be told by now
	named := h.shop(3)
	h.publish(named)
	if u := s.update(); u.Snapshot.Revision != 3 || len(u.Snapshot.Services) != 1 {
		t.Errorf("told revision %d with %d services", u.Snapshot.Revision, len(u.Snapshot.Services))
	}
	// The agent in the server's process is told.
	h.publish(alone)
	if u := watch(t, h.fleet.Local("srv"), 0); len(u.Snapshot.Services) != 2 {
		t.Errorf("the local agent is told %d services", len(u.Snapshot.Services))
	}
}

func TestSettleAsksThoseWhoAnswer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	old := hello("a")
	old.Capabilities = nil
	a, b := h.raw("a").greeted(old), h.raw("b").greeted(hello("b"))
	began := time.Now()
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		h.fleet.Settle(t.Context())
	}()
	m := b.recv()
	if m.Settle == 0 {
		t.Fatalf("got %+v", m)
	}
	select {
	case <-settled:
		t.Fatal("it did not wait for the answer")
	case <-time.After(50 * time.Millisecond):
	}
	b.send(&link.AgentMessage{Settled: m.Settle})
	<-settled
	if d := time.Since(began); d > time.Second {
		t.Errorf("it took %s: an agent that does not know the question was waited for", d)
	}
	h.publish(h.shop(1))
	if m := a.recv(); m.Update == nil {
		t.Errorf("it was asked: %+v", m)
	}
}
