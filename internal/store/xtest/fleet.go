package xtest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/identity"
)

var joinDigest = [32]byte{7, 31: 1}

func joinRecord(id string) enrol.JoinRecord {
	return enrol.JoinRecord{ID: id, Digest: joinDigest, Host: "host-" + id, Created: noon, Expires: noon.Add(time.Hour)}
}

func testJoins(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	for _, id := range []string{"a", "b"} {
		if err := s.CreateJoin(t.Context(), joinRecord(id), Event(audit.ServerStarted)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateJoin(t.Context(), joinRecord("a"), Event(audit.ServerStarted)); !errors.Is(err, control.ErrConflict) {
		t.Errorf("the same id again: %v", err)
	}
	claim := func(change func(*enrol.Claim)) enrol.Claim {
		c := enrol.Claim{ID: "a", Digest: joinDigest, Key: "k", At: noon}
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name         string
		claim        enrol.Claim
		host, reason string
	}{
		{"unknown", claim(func(c *enrol.Claim) { c.ID = "x" }), "", "join_unknown"},
		{"strange", claim(func(c *enrol.Claim) { c.ID = "a\x00\xff" }), "", "join_unknown"},
		{"wrong secret", claim(func(c *enrol.Claim) { c.Digest[0]++ }), "", "join_unknown"},
		{"expired", claim(func(c *enrol.Claim) { c.At = noon.Add(time.Hour) }), "", "join_expired"},
		{"good", claim(func(*enrol.Claim) {}), "host-a", ""},
		{"the same key again", claim(func(c *enrol.Claim) { c.At = noon.Add(time.Minute) }), "host-a", ""},
		{"another key", claim(func(c *enrol.Claim) { c.Key = "other" }), "", "join_used"},
		{"the other token", claim(func(c *enrol.Claim) { c.ID, c.Key = "b", "other" }), "host-b", ""},
	} {
		host, reason, err := s.ClaimJoin(t.Context(), tt.claim, Event(audit.ServerStarted))
		if host != tt.host || reason != tt.reason || (err == nil) != (tt.reason == "") || err != nil && !errors.Is(err, enrol.ErrJoin) {
			t.Errorf("%s: %q, %q, %v; want %q, %q", tt.name, host, reason, err, tt.host, tt.reason)
		}
	}
	if n := Verified(t, s)[s.LogName()]; n != 5 {
		t.Errorf("%d events, want 5: two made, three claimed", n)
	}
}

func testRacedJoin(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	if err := s.CreateJoin(t.Context(), joinRecord("a"), Event(audit.ServerStarted)); err != nil {
		t.Fatal(err)
	}
	if won := race(t, enrol.ErrJoin, func(i int) error {
		_, _, err := s.ClaimJoin(t.Context(), enrol.Claim{ID: "a", Digest: joinDigest, Key: fmt.Sprint(i), At: noon}, Event(audit.ServerStarted))
		return err
	}); won != 1 {
		t.Errorf("%d of 50 used it, want 1", won)
	}
	if n := Verified(t, s)[s.LogName()]; n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

func testBans(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	var want []control.Ban
	for _, name := range []string{"B", "a-b", "aa"} { // in the order of their bytes
		id, err := identity.ParseID("spiffe://shop.example/" + name)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, control.Ban{ID: id, Actor: "root", Reason: "why", Since: noon})
	}
	for i := range want {
		if err := s.Ban(t.Context(), want[len(want)-1-i], Event(audit.ServerStarted)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Ban(t.Context(), want[0], Event(audit.ServerStarted)); !errors.Is(err, control.ErrConflict) {
		t.Errorf("again: %v", err)
	}
	got, err := s.Bans(t.Context())
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(identity.ID{})); err != nil || diff != "" {
		t.Errorf("Bans (%v):\n%s", err, diff)
	}
	if won := race(t, control.ErrNotFound, func(int) error { return s.Unban(t.Context(), want[0].ID, Event(audit.ServerStarted)) }); won != 1 {
		t.Errorf("%d of 50 ended it, want 1", won)
	}
	got, err = s.Bans(t.Context())
	if diff := cmp.Diff(want[1:], got, cmp.AllowUnexported(identity.ID{})); err != nil || diff != "" {
		t.Errorf("Bans (%v):\n%s", err, diff)
	}
	odd := want[0]
	odd.Reason = "a\x00b"
	if err := s.Ban(t.Context(), odd, Event(audit.ServerStarted)); err != nil {
		t.Error(err)
	}
	if n := Verified(t, s)[s.LogName()]; n != 5 {
		t.Errorf("%d events, want 5", n)
	}
}
