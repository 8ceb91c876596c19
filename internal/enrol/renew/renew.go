// Package renew keeps one identity's X509-SVID fresh: a new key and a new leaf at
// half of the old one's life, for as long as it runs.
//
// It refuses to present a credential that has ended, and to give up one that has
// not for another that does not verify.
package renew

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// An Issuer signs a certificate for id over the public key of csr, a DER PKCS #10
// request, and returns the chain leaf first, without the root.
type Issuer interface {
	Issue(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error)
}

// A Keep keeps credentials durably.
type Keep interface {
	// Load is the kept one of id, nil where there is none.
	Load(id identity.ID) (*identity.Credential, error)
	// Save keeps c in the place of the last of its ID.
	Save(c *identity.Credential) error
}

// Config is what a Keeper works with.
type Config struct {
	// ID is whose credential is kept.
	ID     identity.ID
	Issuer Issuer
	// Trust is the current trust. A new chain that does not lead to its bundle's
	// roots is not taken; before there is a bundle, every chain is.
	Trust  func() *identity.Trust
	Clock  clock.Clock
	Logger *slog.Logger
	// Keep, if set, is where the credential is kept from one start to the next.
	Keep Keep
	// Changed, if set, is called after the credential changed, and once after it
	// ended with none to follow. It must not block.
	Changed func()
	// Jitter, if set, gives random numbers in [0, 1) instead of math/rand.
	Jitter func() float64
}

// ErrEnded says that a credential was there and has ended; it is
// identity.ErrNoCredential too.
var ErrEnded = fmt.Errorf("%w: the last certificate has ended", identity.ErrNoCredential)

// errRunning says that Run was called twice.
var errRunning = errors.New("the keeper runs already")

// A Keeper holds one credential and renews it while Run runs. It implements
// identity.Source.
type Keeper struct {
	cfg     Config
	running atomic.Bool
	ready   chan struct{} // closed by Run with the first credential
	current atomic.Pointer[identity.Credential]
	next    atomic.Pointer[time.Time]

	mu      sync.Mutex         // guards what follows
	asked   bool               // Renew was called since the last attempt began
	waiting []chan struct{}    // closed with a credential that was asked for after Renew
	wake    context.CancelFunc // ends the wait for the next attempt
}

// New is a Keeper without a credential; Run gets it.
func New(cfg Config) *Keeper {
	if cfg.Jitter == nil {
		cfg.Jitter = rand.Float64
	}
	return &Keeper{cfg: cfg, ready: make(chan struct{})}
}

// Ready is closed when there is a first credential.
func (k *Keeper) Ready() <-chan struct{} { return k.ready }

// Credential is the current one; identity.ErrNoCredential before the first and
// ErrEnded after the end of the last.
func (k *Keeper) Credential() (*identity.Credential, error) {
	c := k.current.Load()
	if c == nil {
		return nil, fmt.Errorf("%s: %w", k.cfg.ID, identity.ErrNoCredential)
	}
	if k.cfg.Clock.Now().After(c.NotAfter()) {
		return nil, fmt.Errorf("%s: %w", k.cfg.ID, ErrEnded)
	}
	return c, nil
}

// Trust is the current trust.
func (k *Keeper) Trust() *identity.Trust { return k.cfg.Trust() }

// RenewsAt is when the next attempt to renew is made, in wall-clock time; zero
// before the first.
func (k *Keeper) RenewsAt() time.Time {
	if t := k.next.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// Run gets a credential and renews it until ctx ends, and returns ctx's error. A
// failure is logged and tried again; the credential that is there stays until it
// ends.
func (k *Keeper) Run(ctx context.Context) error {
	if !k.running.CompareAndSwap(false, true) {
		return errRunning
	}
	defer k.running.Store(false)
	k.restore()
	var failures int
	var told bool // that the credential has ended
	for ctx.Err() == nil {
		wait := k.renew(ctx, &failures)
		if !told && k.ended() {
			told = true
			k.cfg.Logger.Error("credential ended without a successor", "id", k.cfg.ID.String())
			k.changed()
		} else if failures == 0 {
			told = false
		}
		k.sleep(ctx, k.schedule(wait))
	}
	return ctx.Err()
}

// Renew has Run make its next attempt now, whatever is scheduled: for when the
// issuer would put something else into the certificate than the current one has.
// The channel is closed with the first credential that was asked for after that.
func (k *Keeper) Renew() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	done := make(chan struct{})
	k.asked, k.waiting = true, append(k.waiting, done)
	if k.wake != nil {
		k.wake()
	}
	return done
}

// restore presents the credential of an earlier run until there is a new one,
// where it still is good: a server that does not answer is no reason to go without.
func (k *Keeper) restore() {
	if k.cfg.Keep == nil || k.current.Load() != nil {
		return
	}
	c, err := k.cfg.Keep.Load(k.cfg.ID)
	if err == nil && c != nil {
		err = k.accept(c)
	}
	switch {
	case err != nil:
		k.cfg.Logger.Warn("kept credential not used", "id", k.cfg.ID.String(), "error", err)
	case c != nil:
		k.current.Store(c)
		close(k.ready)
		k.changed()
	}
}

// sleep waits until at, until Renew is called, or until ctx ends.
func (k *Keeper) sleep(ctx context.Context, at time.Time) {
	ctx, wake := context.WithCancel(ctx)
	defer wake()
	k.mu.Lock()
	asked := k.asked
	k.wake = wake
	k.mu.Unlock()
	if !asked {
		_ = k.sleepUntil(ctx, at) // Run asks its own context
	}
}

// begin starts an attempt: those who wait now are served by its credential.
func (k *Keeper) begin() (served []chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	served, k.waiting, k.asked = k.waiting, nil, false
	return served
}

// failed has those who waited for an attempt wait for the next one.
func (k *Keeper) failed(served []chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiting = append(k.waiting, served...)
}

// renew makes one attempt and says how long to wait for the next.
func (k *Keeper) renew(ctx context.Context, failures *int) time.Duration {
	served := k.begin()
	c, err := k.obtain(ctx)
	if err != nil {
		k.failed(served)
		if ctx.Err() != nil {
			return 0
		}
		wait := k.backoff(*failures)
		*failures++
		k.cfg.Logger.Warn("credential not renewed", "id", k.cfg.ID.String(), "error", err, "attempts", *failures, "retry_in", wait)
		return wait
	}
	*failures = 0
	if k.current.Swap(c) == nil {
		close(k.ready)
	}
	if k.cfg.Keep != nil {
		if err := k.cfg.Keep.Save(c); err != nil { // it serves all the same, until the process ends
			k.cfg.Logger.Error("credential not kept", "id", k.cfg.ID.String(), "error", err)
		}
	}
	for _, done := range served {
		close(done)
	}
	k.cfg.Logger.Debug("credential renewed", "id", k.cfg.ID.String(), "serial", c.Serial(), "ends", c.NotAfter())
	k.changed()
	return k.half(c)
}

func (k *Keeper) changed() {
	if k.cfg.Changed != nil {
		k.cfg.Changed()
	}
}

// ended says that there was a credential and that its time is over.
func (k *Keeper) ended() bool {
	c := k.current.Load()
	return c != nil && k.cfg.Clock.Now().After(c.NotAfter())
}
