package store_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/identity"
)

func joinRecord(id string) enrol.JoinRecord {
	return enrol.JoinRecord{ID: id, Digest: sha256.Sum256([]byte("secret of " + id)), Host: "web1", Created: noon, Expires: noon.Add(time.Hour)}
}

func claim(id, key string, at time.Time) enrol.Claim {
	return enrol.Claim{ID: id, Digest: sha256.Sum256([]byte("secret of " + id)), Key: key, At: at}
}

func joinEvent() *audit.Event {
	e := event(audit.HostJoined)
	e.Object = &audit.Object{Kind: "host", Serial: "t"}
	return e
}

func testJoins(t *testing.T, fresh func(testing.TB, clock.Clock) opener) {
	o := fresh(t, clock.System{})
	s := open(t, o)
	if err := s.CreateJoin(t.Context(), joinRecord("t"), event(audit.JoinCreated)); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateJoin(t.Context(), joinRecord("t"), event(audit.JoinCreated)); !errors.Is(err, control.ErrConflict) {
		t.Errorf("the same again: %v", err)
	}
	foreign := claim("t", "k1", noon)
	foreign.Digest[0] ^= 1
	late := noon.Add(time.Hour)
	for _, step := range []struct {
		what   string
		claim  enrol.Claim
		reason string
	}{
		{"unknown", claim("x", "k1", noon), "join_unknown"},
		{"another secret", foreign, "join_unknown"},
		{"no id", claim("", "k1", noon), "join_unknown"},
		{"at its end", claim("t", "k1", late), "join_expired"},
		{"after it", claim("t", "k1", late.Add(time.Hour)), "join_expired"},
		{"used", claim("t", "k1", noon), ""},
		{"the same key again", claim("t", "k1", noon.Add(time.Minute)), ""},
		{"another key", claim("t", "k2", noon.Add(time.Minute)), "join_used"},
		{"no key", claim("t", "", noon.Add(time.Minute)), "join_used"},
		{"the same key, too late", claim("t", "k1", late), "join_expired"},
		{"the same key, another secret", enrol.Claim{ID: "t", Key: "k1", At: noon}, "join_unknown"},
	} {
		e := joinEvent()
		host, reason, err := s.ClaimJoin(t.Context(), step.claim, e)
		if step.reason == "" {
			if host != "web1" || reason != "" || err != nil {
				t.Errorf("%s: %q %q %v", step.what, host, reason, err)
			}
		} else if host != "" || reason != step.reason || !errors.Is(err, enrol.ErrJoin) {
			t.Errorf("%s: %q %q %v, want %s", step.what, host, reason, err, step.reason)
		}
		if e.Object.Name != "" {
			t.Errorf("%s: the caller's event was changed", step.what)
		}
	}
	// One event for each that was made and each that was used, and none else.
	if n := mustVerify(t, s)[s.LogName()]; n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	found, err := s.Search(t.Context(), control.Filter{Action: string(audit.HostJoined), Limit: 10})
	if err != nil || len(found) != 2 {
		t.Fatalf("%d found, %v", len(found), err)
	}
	if e, err := audit.Decode(found[0].Body); err != nil || e.Object.Name != "web1" || e.Object.Serial != "t" {
		t.Errorf("recorded %s, %v", found[0].Body, err)
	}
}

// 50 at once, each with its own key: one has it.
func testRacedJoin(t *testing.T, fresh func(testing.TB, clock.Clock) opener) {
	s := open(t, fresh(t, clock.System{}))
	if err := s.CreateJoin(t.Context(), joinRecord("t"), event(audit.JoinCreated)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var won, again atomic.Int64
	start := make(chan struct{})
	for i := range 50 {
		wg.Go(func() {
			<-start
			c := claim("t", fmt.Sprint("key ", i), noon)
			_, reason, err := s.ClaimJoin(t.Context(), c, joinEvent())
			switch {
			case err == nil:
				won.Add(1)
				if _, _, err := s.ClaimJoin(t.Context(), c, joinEvent()); err == nil {
					again.Add(1)
				}
			case !errors.Is(err, enrol.ErrJoin) || reason != "join_used":
				t.Errorf("%q, %v", reason, err)
			}
		})
	}
	close(start)
	wg.Wait()
	if won.Load() != 1 || again.Load() != 1 {
		t.Errorf("%d have it, %d of them again", won.Load(), again.Load())
	}
	if n := mustVerify(t, s)[s.LogName()]; n != 3 {
		t.Errorf("%d events, want 3", n)
	}
}

func testBans(t *testing.T, fresh func(testing.TB, clock.Clock) opener) {
	o := fresh(t, clock.System{})
	s, err := o()
	if err != nil {
		t.Fatal(err)
	}
	name := func(n string) identity.ID {
		id, err := identity.ParseID("spiffe://shop.example/" + n)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ban := func(n string) control.Ban {
		return control.Ban{ID: name(n), Actor: "root", Reason: "leaked\n'\x00\"", Since: noon}
	}
	for _, n := range []string{"web", "a"} {
		if err := s.Ban(t.Context(), ban(n), event(audit.IdentityBanned)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Ban(t.Context(), ban("web"), event(audit.IdentityBanned)); !errors.Is(err, control.ErrConflict) {
		t.Errorf("banned twice: %v", err)
	}
	if err := s.Unban(t.Context(), name("b"), event(audit.IdentityUnbanned)); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("unbanned nobody: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, o)
	same := cmp.Comparer(func(a, b identity.ID) bool { return a == b })
	got, err := s.Bans(t.Context())
	if diff := cmp.Diff([]control.Ban{ban("a"), ban("web")}, got, same); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if err := s.Unban(t.Context(), name("a"), event(audit.IdentityUnbanned)); err != nil {
		t.Error(err)
	}
	got, err = s.Bans(t.Context())
	if diff := cmp.Diff([]control.Ban{ban("web")}, got, same); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if n := mustVerify(t, s)[s.LogName()]; n != 3 {
		t.Errorf("%d events, want 3: one for each change that was made", n)
	}
}
