package agent

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
)

// A token outlives its identity's place in the mesh file; the Workload API does not
// vouch for it any more.
func TestATokenOfAnIdentityThatLeftIsNotVouchedFor(t *testing.T) {
	t.Parallel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	domain, err := identity.ParseTrustDomain("node.example")
	must(err)
	master, _, err := keys.OpenMaster(filepath.Join(dir, "master.key"))
	must(err)
	authority, _, err := ca.Open(ca.Config{
		Dir: filepath.Join(dir, "ca"), TrustDomain: domain, Master: master, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler),
	})
	must(err)
	id, err := identity.NewID(domain, "/left")
	must(err)
	token, _, err := authority.SignJWT(id, []string{"stayed"}, time.Minute)
	must(err)
	b := backend{&Agent{cfg: Config{Clock: clock.System{}}}}
	bundles := map[identity.TrustDomain]*identity.Bundle{domain: authority.Bundle()}
	for name, tc := range map[string]struct {
		trust identity.Trust
		want  error
	}{
		"a member":  {identity.Trust{Bundles: bundles, Members: map[identity.ID]bool{id: true}}, nil},
		"it left":   {identity.Trust{Bundles: bundles}, identity.ErrNotMember},
		"it is out": {identity.Trust{Bundles: bundles, Members: map[identity.ID]bool{id: true}, Banned: map[identity.ID]bool{id: true}}, identity.ErrBanned},
	} {
		b.trust.Store(&tc.trust)
		got, claims, err := b.ValidateJWT(t.Context(), token, "stayed")
		if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if ok := tc.want == nil; (got == id) != ok || (claims != nil) != ok {
			t.Errorf("%s: got %q, %v", name, got, claims)
		}
	}
}
