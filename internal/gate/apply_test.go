package gate_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

func TestApplyRefusedKeepsTheOldState(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if err := f.Apply(nil); err == nil {
		t.Error("no snapshot was applied")
	}
	bad := *f.snap
	bad.Revision, bad.APIKeys = 8, nil
	bad.Rules = append([]policy.Rule{{ID: "x", Target: "elsewhere"}}, bad.Rules...)
	if err := f.Apply(&bad); !errors.Is(err, policy.ErrRule) {
		t.Errorf("%v", err)
	}
	if v := f.Check(f.edge(t, "1", "reader")); !v.Allow || v.Revision != 7 {
		t.Errorf("%+v", v)
	}
}

func TestRevokedKeyIsUnknown(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	next := *f.snap
	next.Revision, next.APIKeys = 8, next.APIKeys[1:]
	if err := f.Apply(&next); err != nil {
		t.Fatal(err)
	}
	for _, revision := range []int64{7, 8} {
		r := f.edge(t, "1", "reader")
		r.Revision = revision
		if v := f.Check(r); v.Allow || v.Reason != "key_unknown" || v.Revision != revision {
			t.Errorf("route of revision %d: %+v", revision, v)
		}
	}
}

// TestEdgeIsDecidedByTheRevisionOfItsRoute swaps two snapshots whose routes have
// the same name and other rules, under load: a request is decided by the rule of
// the revision that matched its route, never by the other one's.
func TestEdgeIsDecidedByTheRevisionOfItsRoute(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	snaps := [2]snapshot.Snapshot{*f.snap, *f.snap}
	for i := range snaps {
		snaps[i].Revision = int64(10 + i)
		snaps[i].Rules = []policy.Rule{{
			ID: []string{"even", "odd"}[i], Target: "edge/routes[1]",
			Any: []policy.Requirement{{Kind: policy.APIKey, Scopes: f.snap.APIKeys[i].Scopes}},
		}}
		if err := f.Apply(&snaps[i]); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var swapper, wg sync.WaitGroup
	swapper.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if err := f.Apply(&snaps[i%2]); err != nil {
				t.Error(err)
			}
			f.SetTrust(f.trust.Load)
		}
	})
	for range 4 {
		wg.Go(func() {
			for i := range 2000 {
				name, rule := "reader", "even"
				if i%2 == 1 {
					name, rule = "writer", "odd"
				}
				r := f.edge(t, "1", name)
				r.Revision = int64(10 + i%2)
				v := f.Check(r)
				f.Done(r, call.Outcome{Status: 200})
				if !v.Allow || v.Rule != rule || v.Revision != r.Revision {
					t.Errorf("%s: %+v", name, v)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	swapper.Wait()
	for _, revision := range []int64{0, 7, 12} { // never, gone, not yet
		r := f.edge(t, "1", "reader")
		r.Revision = revision
		if v := f.Check(r); v.Allow || v.Status != 503 || v.Reason != "route_changed" {
			t.Errorf("route of revision %d: %+v", revision, v)
		}
	}
}
