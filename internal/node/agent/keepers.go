package agent

import (
	"context"
	"crypto/x509"
	"strings"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/enrol/renew"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/snapshot"
)

// keepers holds one running renew.Keeper for each identity that the snapshot
// puts on this host.
type keepers struct {
	agent *Agent
	mu    sync.RWMutex // guards byID
	byID  map[identity.ID]*running
	wg    sync.WaitGroup
	ends  *metric.GaugeFamily
}

type running struct {
	*renew.Keeper
	stop context.CancelFunc
	of   content
}

// content is what the snapshot puts into a certificate beside its identity.
type content struct {
	ttl   time.Duration
	hosts string // of a gateway, one a line
}

func (k *keepers) init(a *Agent) {
	k.agent, k.byID = a, map[identity.ID]*running{}
	k.ends = a.cfg.Metrics.Gauge("parley_certificate_not_after_timestamp_seconds", "When the certificate of an identity of this host ends, 0 without one.", "identity")
}

// meter shows when the certificate of r ends.
func (k *keepers) meter(id identity.ID, r *running) {
	k.ends.Set(func() float64 {
		c, err := r.Credential()
		if err != nil {
			return 0
		}
		return float64(c.NotAfter().Unix())
	}, id.String())
}

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

// reconcile starts a keeper for each new identity, stops those that left, has
// those renew whose certificate would now be another one, and returns the
// channels that close when the new credentials are there.
func (k *keepers) reconcile(s *snapshot.Snapshot) (ready []<-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	want := contents(s)
	for id, r := range k.byID {
		if _, ok := want[id]; !ok {
			r.stop()
			delete(k.byID, id)
			k.ends.Remove(id.String())
			k.forget(id)
		}
	}
	for id, of := range want {
		if r, ok := k.byID[id]; ok {
			if r.of != of {
				r.of = of
				ready = append(ready, r.Renew())
			}
			continue
		}
		ctx, stop := context.WithCancel(context.Background())
		r := &running{stop: stop, of: of, Keeper: renew.New(renew.Config{
			ID: id, Issuer: issuer{k.agent}, Trust: k.agent.trust.Load, Keep: k.keep(),
			Clock: k.agent.cfg.Clock, Logger: k.agent.cfg.Logger, Changed: k.agent.changed.send,
		})}
		k.byID[id] = r
		k.meter(id, r)
		ready = append(ready, r.Ready())
		k.wg.Add(1)
		go func() {
			defer k.wg.Done()
			_ = r.Run(ctx) // ends only with ctx
		}()
	}
	return ready
}

// renew has those of ids that are kept here ask for a certificate now, whose last
// attempts were refused: nobody waits for the next one. The channels close when it
// is there.
func (k *keepers) renew(ids []identity.ID) (ready []<-chan struct{}) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for _, id := range ids {
		if r, ok := k.byID[id]; ok {
			ready = append(ready, r.Renew())
		}
	}
	return ready
}

// keep is where a keeper keeps its credential on disk, nil where nowhere.
func (k *keepers) keep() renew.Keep {
	if k.agent.cfg.Kept == nil {
		return nil
	}
	return k.agent.cfg.Kept
}

// forget removes what is kept of an identity that has left this host.
func (k *keepers) forget(id identity.ID) {
	if k.agent.cfg.Kept == nil {
		return
	}
	if err := k.agent.cfg.Kept.Forget(id); err != nil {
		k.agent.cfg.Logger.Error("credential not forgotten", "id", id.String(), "error", err)
	}
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
	return i.a.cfg.Control.Issue(ctx, id, csr)
}

// Credential is the current credential of id on this host and when it is renewed.
// Where there is none, the error is identity.ErrNoCredential, and renew.ErrEnded
// too if there was one.
func (a *Agent) Credential(id identity.ID) (c *identity.Credential, renewsAt time.Time, err error) {
	src, ok := a.keepers.source(id)
	if !ok {
		return nil, time.Time{}, identity.ErrNoCredential
	}
	c, err = src.Credential()
	return c, a.keepers.renewsAt(id), err
}

// contents are the identities of a snapshot that get a certificate of the mesh's
// own CA, with what it says of each.
func contents(s *snapshot.Snapshot) map[identity.ID]content {
	all := make(map[identity.ID]content, len(s.Services)+len(s.Gateways))
	for _, svc := range s.Services {
		all[svc.ID] = content{ttl: s.LeafTTL}
	}
	for _, g := range s.Gateways {
		all[g.ID] = content{ttl: s.LeafTTL, hosts: strings.Join(g.Hosts, "\n")}
	}
	return all
}
