package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/proxy"
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
		a.mu.Lock()
		a.current.Store(&u)
		a.failure = err
		a.mu.Unlock()
		if a.cfg.Applied != nil {
			a.good = lasting(a.good, &u, err == nil)
			a.cfg.Applied(a.good)
		}
		a.applying.Unlock()
		a.applied.send()
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
	a.setTrust(u)
	a.pending.Store(&u)
	if err := a.gate.Apply(u.Snapshot); err != nil {
		return err
	}
	ready := a.keepers.reconcile(u.Snapshot)
	wait, done := context.WithTimeout(ctx, FirstCredential)
	defer done()
	for _, r := range ready {
		select {
		case <-r:
		case <-wait.Done():
		}
	}
	names := map[string]bool{}
	for _, s := range u.Snapshot.Services {
		names[s.Name] = true
	}
	a.findings.keep(names)
	err := a.proxy.Apply(ctx, u.Snapshot)
	a.changed.send()
	return err
}

// retryEvery is how often listeners that could not start are tried again: what
// was in their way (a stranger on the app port) may have left.
const retryEvery = 2 * time.Second

// retry keeps trying listeners that failed.
func (a *Agent) retry(ctx context.Context) error {
	for {
		if err := a.cfg.Clock.Sleep(ctx, retryEvery); err != nil {
			return err
		}
		a.retryFailed(ctx)
	}
}

func (a *Agent) retryFailed(ctx context.Context) {
	a.applying.Lock()
	defer a.applying.Unlock()
	u := a.current.Load()
	if u == nil || !slices.ContainsFunc(a.proxy.Status(), func(l proxy.ListenerStatus) bool { return l.State == proxy.Failed }) {
		return
	}
	if err := a.proxy.Apply(ctx, u.Snapshot); err != nil {
		a.cfg.Logger.Warn("listeners still not open", "error", err)
	}
}

// setTrust makes the next trust; the epoch moves only when the content does, so
// that tickets stay good across revisions that change no identity.
func (a *Agent) setTrust(u link.Update) {
	old := a.trust.Load()
	members := make(map[identity.ID]bool, len(u.Snapshot.Members))
	for _, m := range u.Snapshot.Members {
		members[m] = true
	}
	banned := make(map[identity.ID]bool, len(u.Banned))
	for _, b := range u.Banned {
		banned[b] = true
	}
	prev := old.Bundles[u.Bundle.TrustDomain]
	if prev != nil && prev.Sequence == u.Bundle.Sequence && maps.Equal(old.Members, members) && maps.Equal(old.Banned, banned) {
		return
	}
	next := &identity.Trust{
		Epoch:   old.Epoch + 1,
		Bundles: map[identity.TrustDomain]*identity.Bundle{u.Bundle.TrustDomain: u.Bundle},
		Members: members, Banned: banned,
	}
	a.trust.Store(next)
	a.proxy.TrustChanged(next)
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
