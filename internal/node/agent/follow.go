package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/proxy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// follow applies every update of the control plane, the newest first where
// several came at once.
func (a *Agent) follow(ctx context.Context) error {
	var seen uint64
	for {
		u, err := a.cfg.Control.Watch(ctx, seen)
		if err != nil {
			return err
		}
		seen = u.Generation
		a.applying.Lock()
		err = a.apply(ctx, u)
		if err != nil {
			a.cfg.Logger.Error("update not applied in full", "revision", u.Snapshot.Revision, "error", err)
		}
		a.applying.Unlock()
		a.applied.send()
	}
}

// tried notes what came of an update. The caller holds applying.
func (a *Agent) tried(u *link.Update, err error) {
	a.mu.Lock()
	a.current.Store(u)
	a.failure = err
	a.mu.Unlock()
	if a.cfg.Applied != nil {
		a.good = lasting(a.good, u, err == nil)
		a.cfg.Applied(a.good)
	}
}

// lasting is what a start without a server is to run by: u, where all of it runs or
// there was nothing before it, and otherwise good with what is withdrawn since. A
// listener that cannot open is no reason to let a banned identity in again.
func lasting(good, u *link.Update, full bool) *link.Update {
	if full || good == nil {
		return u
	}
	next, snap := *good, *good.Snapshot
	next.Bundle, next.Banned, next.Snapshot = u.Bundle, u.Banned, &snap
	snap.APIKeys = u.Snapshot.APIKeys
	snap.Members = slices.DeleteFunc(slices.Clone(snap.Members), func(id identity.ID) bool { return !slices.Contains(u.Snapshot.Members, id) })
	return &next
}

// apply brings an update into force: trust first, so that nobody who left gets
// in, then policy, then credentials, then listeners.
func (a *Agent) apply(ctx context.Context, u link.Update) error {
	freed := a.setTrust(u)
	a.pending.Store(&u)
	// Issuers first: a route of the new revision finds those that it names. One that
	// left is gone at once, and its tokens with it.
	a.issuers.Apply(u.Snapshot.Issuers)
	if err := a.gate.Apply(u.Snapshot); err != nil {
		a.undecided = true
		a.tried(&u, err)
		return err
	}
	a.undecided = false
	ready := slices.Concat(a.keepers.reconcile(u.Snapshot), a.keepers.renew(freed), a.names.Apply(names(u.Snapshot)))
	wait, done := context.WithTimeout(ctx, FirstCredential)
	defer done()
	for _, r := range ready {
		select {
		case <-r:
		case <-wait.Done():
		}
	}
	a.checks.apply(u.Snapshot)
	a.findings.keep(serviceNames(u.Snapshot))
	a.lookAtHost()
	err := a.applyListeners(ctx, u.Snapshot)
	a.gate.Routed()
	a.tried(&u, err)
	a.changed.send()
	return err
}

// names are the DNS names of endpoints that services and gateways of s call.
func names(s *snapshot.Snapshot) (all []string) {
	for _, v := range s.Services {
		for _, o := range v.Outbound {
			all = append(all, o.Names...)
		}
	}
	for _, g := range s.Gateways {
		for _, r := range g.Routes {
			all = append(all, r.Names...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// lookEvery is how often the applications of the snapshot are looked at: for how
// long a stranger who takes an application's port may get its calls.
const lookEvery = 2 * time.Second

// look keeps watch over the applications.
func (a *Agent) look(ctx context.Context) error {
	for {
		if err := a.cfg.Clock.Sleep(ctx, lookEvery); err != nil {
			return err
		}
		a.lookAtPorts(ctx)
		a.endPlaintext()
		a.gate.Told(false)
	}
}

// endPlaintext ends what is left without TLS where the time for that is over, and
// records that it is.
func (a *Agent) endPlaintext() {
	for _, e := range a.proxy.PlaintextEnded() {
		a.cfg.Logger.Info("callers without TLS are not let in any more", "listener", e.Listener, "until", e.Until, "connections_cut", e.Cut)
		now := a.cfg.Clock.Now()
		a.Record(&audit.Event{
			ID: audit.NewID(now), Time: now, Class: audit.Security, Action: audit.PlaintextEnded, Outcome: audit.Success,
			Message: fmt.Sprintf("the end of observe, %s, has come; %d connections without TLS were cut", e.Until.Format(time.RFC3339), e.Cut),
			Object:  &audit.Object{Kind: "listener", Name: e.Listener},
		})
	}
}

// lookAtPorts closes the inbounds whose application's port a stranger has taken,
// opens those whose port the stranger has left, and tries again what could not be
// opened.
//
// While an update is applied, which may wait long for credentials and looks at the ports
// too, it leaves that alone: what else is looked at must not wait for it.
func (a *Agent) lookAtPorts(ctx context.Context) {
	if !a.applying.TryLock() {
		return
	}
	defer a.applying.Unlock()
	u := a.current.Load()
	if u == nil || a.undecided || !a.proxy.Due(u.Snapshot) {
		return
	}
	failed := a.Failure() != nil
	err := a.applyListeners(ctx, u.Snapshot)
	a.tried(u, err)
	if failed && err == nil {
		a.cfg.Logger.Info("the update runs in full now", "revision", u.Snapshot.Revision)
	}
}

// Failure is why the update in force does not run in full, nil where it does.
func (a *Agent) Failure() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failure
}

// applyListeners makes the listeners those of s, and records which of them must
// not be open, once for each reason. The caller holds applying.
func (a *Agent) applyListeners(ctx context.Context, s *snapshot.Snapshot) error {
	before := a.mustNotRun()
	err := a.proxy.Apply(ctx, s)
	for name, why := range a.mustNotRun() {
		if was := before[name]; was != nil && was.Error() == why.Error() {
			continue
		}
		now := a.cfg.Clock.Now()
		e := &audit.Event{
			ID: audit.NewID(now), Time: now, Class: audit.Security, Action: audit.ListenerFailed, Outcome: audit.Failure,
			Message: why.Error(), Object: &audit.Object{Kind: "listener", Name: name},
		}
		if known := fault.All(why); len(known) > 0 {
			e.Reason = string(known[0].Code)
		}
		a.Record(e)
	}
	return err
}

func (a *Agent) mustNotRun() map[string]error {
	failed := map[string]error{}
	for _, l := range a.proxy.Status() {
		if l.State == proxy.Failed {
			failed[l.Name] = l.Error
		}
	}
	return failed
}

// setTrust makes the next trust; the epoch moves only when the content does, so
// that tickets stay good across revisions that change no identity. It returns who
// is not banned any more.
func (a *Agent) setTrust(u link.Update) (freed []identity.ID) {
	old := a.trust.Load()
	members := make(map[identity.ID]bool, len(u.Snapshot.Members))
	for _, m := range u.Snapshot.Members {
		members[m] = true
	}
	// The verification's own is one of every mesh: it has certificates for probes and
	// no others, and no rule names it.
	if v, err := identity.VerifyID(u.Bundle.TrustDomain); err == nil {
		members[v] = true
	}
	banned := make(map[identity.ID]bool, len(u.Banned))
	for _, b := range u.Banned {
		banned[b] = true
	}
	prev := old.Bundles[u.Bundle.TrustDomain]
	if prev != nil && prev.Sequence == u.Bundle.Sequence && maps.Equal(old.Members, members) && maps.Equal(old.Banned, banned) {
		return nil
	}
	next := &identity.Trust{
		Epoch:   old.Epoch + 1,
		Bundles: map[identity.TrustDomain]*identity.Bundle{u.Bundle.TrustDomain: u.Bundle},
		Members: members, Banned: banned,
	}
	a.trust.Store(next)
	a.proxy.TrustChanged(next)
	for id := range old.Banned {
		if !banned[id] {
			freed = append(freed, id)
		}
	}
	return freed
}

// Applied waits until the update of generation, or a newer one, was tried, and
// returns what it said.
func (a *Agent) Applied(ctx context.Context, generation uint64) error {
	for {
		next := a.applied.wait()
		a.mu.Lock()
		u, err := a.current.Load(), a.failure
		a.mu.Unlock()
		if u != nil && u.Generation >= generation {
			return err
		}
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A broadcast wakes everybody who waits; the zero value is ready.
type broadcast struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

// wait is closed by the next send.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
