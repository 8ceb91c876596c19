package agent

import (
	"context"
	"crypto/x509"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/enrol/renew"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// keepers holds one running renew.Keeper for each identity that the snapshot
// puts on this host.
type keepers struct {
	agent *Agent
	mu    sync.RWMutex // guards byID
	byID  map[identity.ID]*running
	wg    sync.WaitGroup
}

type running struct {
	*renew.Keeper
	stop context.CancelFunc
}

func (k *keepers) init(a *Agent) { k.agent, k.byID = a, map[identity.ID]*running{} }

// source is the credential source of id; false where this host does not keep it.
func (k *keepers) source(id identity.ID) (identity.Source, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	r, ok := k.byID[id]
	if !ok {
		return nil, false
	}
	return r.Keeper, true
}

// renewsAt is when id's credential is renewed next; zero where unknown.
func (k *keepers) renewsAt(id identity.ID) time.Time {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if r, ok := k.byID[id]; ok {
		return r.RenewsAt()
	}
	return time.Time{}
}

// reconcile starts a keeper for each new identity, stops those that left, and
// returns the channels that close when the new ones have a credential.
func (k *keepers) reconcile(s *snapshot.Snapshot) (ready []<-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	want := map[identity.ID]bool{}
	for _, svc := range s.Services {
		want[svc.ID] = true
	}
	for _, g := range s.Gateways {
		want[g.ID] = true
	}
	for id, r := range k.byID {
		if !want[id] {
			r.stop()
			delete(k.byID, id)
		}
	}
	for id := range want {
		if _, ok := k.byID[id]; ok {
			continue
		}
		ctx, stop := context.WithCancel(context.Background())
		r := &running{stop: stop, Keeper: renew.New(renew.Config{
			ID: id, Issuer: issuer{k.agent}, Trust: k.agent.trust.Load,
			Clock: k.agent.cfg.Clock, Logger: k.agent.cfg.Logger, Changed: k.agent.changed.send,
		})}
		k.byID[id] = r
		ready = append(ready, r.Ready())
		k.wg.Add(1)
		go func() {
			defer k.wg.Done()
			_ = r.Run(ctx) // ends only with ctx
		}()
	}
	return ready
}

// stop ends every keeper and waits for it.
func (k *keepers) stop() {
	k.mu.Lock()
	for id, r := range k.byID {
		r.stop()
		delete(k.byID, id)
	}
	k.mu.Unlock()
	k.wg.Wait()
}

// issuer asks the control plane in this host's name.
type issuer struct{ a *Agent }

func (i issuer) Issue(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	return i.a.cfg.Control.Issue(ctx, i.a.cfg.Host, id, csr)
}

// Credential is the current credential of id on this host and when it is renewed.
func (a *Agent) Credential(id identity.ID) (c *identity.Credential, renewsAt time.Time) {
	src, ok := a.keepers.source(id)
	if !ok {
		return nil, time.Time{}
	}
	c, err := src.Credential()
	if err != nil {
		return nil, time.Time{}
	}
	return c, a.keepers.renewsAt(id)
}
