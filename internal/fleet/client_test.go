package fleet_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls/xtest"
)

// applied answers updates as an agent does that applies every one at once.
func applied(t testing.TB, c *link.Client, endpoints ...link.Endpoint) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); <-done })
	go func() {
		defer close(done)
		for seen := uint64(0); ; {
			u, err := c.Watch(ctx, seen)
			if err != nil {
				return
			}
			seen = u.Generation
			c.Report(&link.Report{Generation: seen, Revision: u.Snapshot.Revision, Endpoints: endpoints})
		}
	}()
}

// A server that starts anew counts anew. What an agent said of an update of the
// last one is no answer to this one's of the same number.
func TestReportIsOfThisServersUpdate(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	first, second := houseOf(t, ca, clock.System{}), houseOf(t, ca, clock.System{})
	relay := xtest.NewRelay(t, first.addr)
	c := first.client("a", first.agentSource("a", time.Hour), relay.Addr)
	var u link.Update
	for range 3 {
		g := first.publish(first.shop(int64(u.Generation) + 1))
		u = watch(t, c, u.Generation)
		c.Report(&link.Report{Generation: u.Generation, Revision: u.Snapshot.Revision})
		eventually(t, "confirmed", func() bool { return len(first.behind(g)) == 0 })
	}
	var g uint64
	for range 3 {
		g = second.publish(second.shop(9))
	}
	relay.To(second.addr)
	first.stop()
	u = watch(t, c, u.Generation)
	if u.Snapshot.Revision != 9 {
		t.Fatalf("revision %d", u.Snapshot.Revision)
	}
	eventually(t, "it says what runs there", func() bool { return second.fleet.Hosts()[0].Report.Revision == 3 })
	if got := second.behind(g); got["a"] == "" {
		t.Error("what it said of another server's update counts as an answer")
	}
	c.Report(&link.Report{Generation: u.Generation, Revision: 9})
	eventually(t, "answered", func() bool { return len(second.behind(g)) == 0 })
}

// Cut in the middle of a snapshot, again and again: the last one stays, and once the
// network lets it, the newest arrives.
func TestCutInTheMiddleOfASnapshot(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	relay := xtest.NewRelay(t, h.addr)
	c := h.client("a", h.agentSource("a", time.Hour), relay.Addr)
	h.publish(h.shop(1))
	u := watch(t, c, 0)
	large := h.shop(2)
	for range 20_000 {
		large.Members = append(large.Members, h.ca.ID(t, strings.Repeat("x", 60)))
	}
	for i, n := range []int64{1, 2000, 30_000, 200_000, 500_000} {
		relay.CutAfter(n)
		next := *large
		next.Revision = int64(2 + i)
		h.publish(&next)
		eventually(t, "the stream is gone", func() bool { up, _ := c.State(); return !up })
		ctx, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if got, err := c.Watch(ctx, u.Generation); err == nil {
			t.Errorf("half an update was taken: %d", got.Snapshot.Revision)
		}
		done()
		relay.Mend()
		u = watch(t, c, u.Generation)
		if u.Snapshot.Revision != next.Revision {
			t.Errorf("revision %d, want %d", u.Snapshot.Revision, next.Revision)
		}
	}
}

// Cut in the middle of a renewal: the call fails, and the next one does not.
func TestCutInTheMiddleOfACall(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	relay := xtest.NewRelay(t, h.addr)
	c := h.client("a", h.agentSource("a", time.Hour), relay.Addr)
	h.publish(h.shop(1))
	watch(t, c, 0)
	for _, n := range []int64{1, 100, 300} {
		relay.CutAfter(n)
		if _, err := c.Issue(t.Context(), h.ca.ID(t, "web"), nil); err == nil {
			t.Errorf("cut after %d bytes and nothing failed", n)
		}
		relay.Mend()
		eventually(t, "issued", func() bool { _, err := c.Issue(t.Context(), h.ca.ID(t, "web"), nil); return err == nil })
	}
}

// One address that swallows everything, and one that refuses: the third is found,
// and found again after it was away.
func TestSeveralAddresses(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	relay := xtest.NewRelay(t, h.addr)
	silent := silence(t)
	c := h.client("a", h.agentSource("a", time.Hour), silent, "127.0.0.1:1", relay.Addr)
	h.publish(h.shop(1))
	ctx, done := context.WithTimeout(t.Context(), 20*time.Second)
	defer done()
	u, err := c.Watch(ctx, 0)
	if err != nil {
		_, why := c.State()
		t.Fatalf("the third address was not found: %v", why)
	}
	relay.Cut()
	eventually(t, "gone", func() bool { up, _ := c.State(); return !up })
	relay.Mend()
	h.publish(h.shop(2))
	if _, err := c.Watch(ctx, u.Generation); err != nil {
		t.Error("it was not found again")
	}
}

// A connection is succeeded before its certificate ends: calls go on over several
// lives of the certificate, and the host's services are never out of service.
func TestConnectionOutlivesItsCertificate(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	const life = 8 * time.Second
	src := h.agentSource("b", life)
	b := h.client("b", src, h.addr)
	applied(t, b, link.Endpoint{Service: "site", Address: "0.0.0.0:9443"})
	a := h.raw("a").greeted(hello("a"))
	eventually(t, "announced", func() bool { return len(places(*a.update())) == 1 })
	var out atomic.Bool
	go func() { // ends with the stream
		for m := new(link.ServerMessage); a.RecvMsg(m) == nil; m = new(link.ServerMessage) {
			if m.Update == nil {
				continue
			}
			if u, err := m.Update.Update(); err == nil && len(places(*u)) == 0 {
				out.Store(true)
			}
		}
	}()
	for end := time.Now().Add(2 * life); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if c, _ := src.Credential(); time.Until(c.NotAfter()) < life/2 {
			src.SetCredential(h.ca.CredentialFor(t, agentID(h.ca, "b"), life))
		}
		if _, err := b.Issue(t.Context(), h.ca.ID(t, "site"), nil); err != nil {
			t.Errorf("a call failed: %v", err)
		}
		if up, why := b.State(); !up {
			t.Errorf("not connected: %v", why)
		}
	}
	if out.Load() {
		t.Error("its service was out of service for a moment")
	}
}

// A server that is away comes back to an agent soon, and not to all at one moment.
func TestReconnects(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.publish(h.shop(1))
	relay := xtest.NewRelay(t, h.addr)
	c := h.client("a", h.agentSource("a", time.Hour), relay.Addr)
	u := watch(t, c, 0)
	relay.Cut()
	time.Sleep(3 * time.Second)
	tries := relay.Tries()
	if tries < 2 || tries > 15 {
		t.Errorf("%d attempts in three seconds", tries)
	}
	if up, why := c.State(); up || why == nil {
		t.Errorf("state %v, %v", up, why)
	}
	if _, err := c.Issue(t.Context(), h.ca.ID(t, "web"), nil); err == nil {
		t.Error("a call was answered by nobody")
	}
	relay.Mend()
	began := time.Now()
	h.fleet.Ban([]identity.ID{h.ca.ID(t, "web")})
	for {
		u = watch(t, c, u.Generation)
		if slices.Contains(u.Banned, h.ca.ID(t, "web")) {
			break
		}
	}
	if d := time.Since(began); d > 8*time.Second {
		t.Errorf("back after %s", d)
	}
}
