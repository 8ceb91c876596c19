package gate

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A state is everything that a decision depends on, as one value: a request is
// decided by one state from beginning to end. It is immutable but for meters,
// which only remembers where to count.
type state struct {
	policy *policy.Set // nil before the first Apply
	keys   *authn.Keys
	routes map[string]edgeRoute // by policy target
	trust  func() *identity.Trust
	meters *meters
	// signer signs whom an edge let in, by this revision and these keys.
	signer *authn.Signer
	// observed are until when a service lets callers in without TLS.
	observed map[string]time.Time
	// gaps are the services and gateways whose calls pass while they cannot be
	// recorded.
	gaps map[string]bool
	// former is the state before the newest revision, for requests whose route
	// was matched just before it came. It has no former of its own. It is forgotten
	// at until, if that is set.
	former *state
	until  time.Time
}

// of is the state that a request is decided by: the newest one, but at an edge
// that of the revision by which its route was matched, so that a rule is never
// asked about another route than its own. Nil where that is gone.
func (s *state) of(r *call.Request, now time.Time) *state {
	if r.End != call.Edge || s.policy.Revision() == r.Revision {
		return s
	}
	if s.former == nil || s.former.policy.Revision() != r.Revision || !s.until.IsZero() && now.After(s.until) {
		return nil
	}
	// Keys and trust are always the newest: what was revoked since stays so.
	old := *s.former
	old.keys, old.trust = s.keys, s.trust
	return &old
}

// An edgeRoute is what gate knows of a gateway's route.
type edgeRoute struct {
	to string
	// keys says that an API key counts there, issuers whose tokens do. What does
	// not count is the application's business, wherever the client sends it.
	keys    bool
	issuers []string
}

// Apply makes snap what is decided by, from the next request on. On an error the
// state before stays.
func (g *Gate) Apply(snap *snapshot.Snapshot) error {
	if snap == nil {
		return errors.New("apply a snapshot: there is none")
	}
	routes := map[string]edgeRoute{}
	var targets []string
	for _, s := range snap.Services {
		targets = append(targets, s.Name)
	}
	for _, gw := range snap.Gateways {
		for _, r := range gw.Routes {
			targets = append(targets, r.PolicyTarget)
			routes[r.PolicyTarget] = edgeRoute{to: r.To}
		}
	}
	for _, rule := range snap.Rules {
		if r, ok := routes[rule.Target]; ok {
			routes[rule.Target] = r.wanting(rule.Any)
		}
	}
	set, err := policy.Compile(snap.Revision, targets, snap.Rules)
	if err != nil {
		return fmt.Errorf("apply revision %d: %w", snap.Revision, err)
	}
	keys, meters, observed, gaps := authn.NewKeys(snap.APIKeys), g.metrics.of(snap), observed(snap), gaps(snap)
	g.replace(func(s *state) {
		if s.policy != nil && s.policy.Revision() != snap.Revision {
			former := *s
			former.former = nil
			s.former, s.until = &former, time.Time{}
		}
		s.policy, s.keys, s.routes, s.meters, s.signer, s.observed, s.gaps = set, keys, routes, meters, &authn.Signer{}, observed, gaps
	})
	g.seen.keep(observed)
	return nil
}

// gaps are the names of snap whose calls are not refused for want of a record.
func gaps(snap *snapshot.Snapshot) map[string]bool {
	all := map[string]bool{}
	for _, s := range snap.Services {
		all[s.Name] = s.Audit != nil && s.Audit.Gap
	}
	for _, g := range snap.Gateways {
		all[g.Name] = g.Audit != nil && g.Audit.Gap
	}
	return all
}

// formerTime is what a request gets that was on its way from its route to its
// decision when the routes were replaced.
const formerTime = time.Second

// Routed says that no listener matches by the routes of the revision before any
// more: soon nothing is decided by its rules either.
func (g *Gate) Routed() {
	until := g.cfg.Clock.Now().Add(formerTime)
	g.replace(func(s *state) {
		if s.former != nil && s.until.IsZero() {
			s.until = until
		}
	})
}

// SetTrust makes trust what callers are admitted by. It is asked for each
// request and must not block.
func (g *Gate) SetTrust(trust func() *identity.Trust) {
	g.replace(func(s *state) { s.trust = trust })
}

// replace swaps the state for a changed copy.
func (g *Gate) replace(change func(*state)) {
	g.swap.Lock()
	defer g.swap.Unlock()
	next := *g.state.Load()
	change(&next)
	g.state.Store(&next)
}

// wanting is r with the credentials that any of its rules asks for.
func (r edgeRoute) wanting(any []policy.Requirement) edgeRoute {
	for _, want := range any {
		switch want.Kind {
		case policy.APIKey:
			r.keys = true
		case policy.JWT:
			if !slices.Contains(r.issuers, want.Issuer) {
				r.issuers = append(r.issuers, want.Issuer)
			}
		}
	}
	return r
}
