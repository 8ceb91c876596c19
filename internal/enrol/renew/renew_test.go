package renew_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/renew"
	"github.com/parleymesh/parley/internal/identity"
)

const day = 24 * time.Hour

// An authority issues leaves of ttl by its own clock, in memory.
type authority struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
	ttl  time.Duration

	mu    sync.Mutex // guards the rest
	fail  error
	hang  bool
	id    string // of the leaves
	times []time.Time
	keys  map[string]bool
}

func newAuthority(ttl time.Duration) *authority {
	a := &authority{key: newKey(), now: time.Now, ttl: ttl, id: "spiffe://td/web", keys: map[string]bool{}}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"test"}},
		NotBefore: time.Now().Add(-365 * day), NotAfter: time.Now().Add(3650 * day),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	a.root = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, t, t, a.key.Public(), a.key))))
	return a
}

// Issue implements renew.Issuer.
func (a *authority) Issue(ctx context.Context, _ identity.ID, csr []byte) ([]*x509.Certificate, error) {
	a.mu.Lock()
	fail, hang, now := a.fail, a.hang, a.now()
	a.times = append(a.times, time.Now())
	a.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if fail != nil {
		return nil, fail
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[string(must(x509.MarshalPKIXPublicKey(req.PublicKey)))] = true
	t := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(a.times)) + 1), URIs: []*url.URL{must(url.Parse(a.id))},
		NotBefore: now.Add(-30 * time.Second), NotAfter: now.Add(a.ttl),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	leaf := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, t, a.root, req.PublicKey, a.key))))
	return []*x509.Certificate{leaf}, nil
}

func (a *authority) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// calls are when Issue was called.
func (a *authority) calls() []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]time.Time(nil), a.times...)
}

func (a *authority) trust() *identity.Trust {
	td := id().TrustDomain()
	return &identity.Trust{Bundles: map[identity.TrustDomain]*identity.Bundle{td: {TrustDomain: td, Roots: []*x509.Certificate{a.root}}}}
}

func id() identity.ID { return must(identity.ParseID("spiffe://td/web")) }

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func config(a *authority) renew.Config {
	return renew.Config{
		ID: id(), Issuer: a, Trust: a.trust, Clock: clock.System{},
		Logger: slog.New(slog.DiscardHandler), Jitter: func() float64 { return 0.5 },
	}
}

// start runs a keeper until the test ends.
func start(t *testing.T, cfg renew.Config) *renew.Keeper {
	t.Helper()
	k := renew.New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	return k
}

func credential(t *testing.T, k *renew.Keeper) *identity.Credential {
	t.Helper()
	c, err := k.Credential()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDaysOfRenewals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		cfg := config(a)
		cfg.Jitter = nil
		var changed atomic.Int32
		cfg.Changed = func() { changed.Add(1) }
		k := start(t, cfg)
		if _, err := k.Credential(); !errors.Is(err, identity.ErrNoCredential) {
			t.Errorf("before the first: %v", err)
		}
		<-k.Ready()
		end := time.Now().Add(3 * day)
		for time.Now().Before(end) {
			c := credential(t, k)
			if left := time.Until(c.NotAfter()); left < 26*time.Minute {
				t.Fatalf("%s left", left)
			}
			time.Sleep(time.Minute + time.Second)
		}
		synctest.Wait()
		calls := a.calls()
		for i := range calls[1:] {
			if gap := calls[i+1].Sub(calls[i]); gap < 27*time.Minute-time.Second || gap > 33*time.Minute+time.Second {
				t.Errorf("renewed after %s", gap)
			}
		}
		if n := len(calls); n < 3*24*60/33 || n > 3*24*60/27+1 || int(changed.Load()) != n || len(a.keys) != n {
			t.Errorf("%d renewals, %d changes, %d keys", n, changed.Load(), len(a.keys))
		}
		if k.Trust() == nil {
			t.Error("no trust")
		}
	})
}

func TestRenewsAt(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		jitter float64
		ttl    time.Duration
		want   time.Duration
	}{
		{"middle", 0.5, time.Hour, 30 * time.Minute},
		{"earliest", 0, time.Hour, 27 * time.Minute},
		{"latest", 1, time.Hour, 33 * time.Minute},
		{"short", 0.5, 12 * time.Second, 6 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAuthority(tt.ttl)
				cfg := config(a)
				cfg.Jitter = func() float64 { return tt.jitter }
				k := renew.New(cfg)
				if !k.RenewsAt().IsZero() {
					t.Error("a time before the start")
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- k.Run(ctx) }()
				synctest.Wait()
				if got := time.Until(k.RenewsAt()); got.Round(time.Second) != tt.want {
					t.Errorf("renews in %s, want %s", got, tt.want)
				}
				first := credential(t, k).Serial()
				time.Sleep(tt.want - time.Second)
				synctest.Wait()
				if credential(t, k).Serial() != first {
					t.Error("renewed before")
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if credential(t, k).Serial() == first {
					t.Error("not renewed after")
				}
				cancel()
				<-done
			})
		})
	}
}

func TestOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		var changed atomic.Int32
		cfg := config(a)
		cfg.Changed = func() { changed.Add(1) }
		k := start(t, cfg)
		<-k.Ready()
		first := credential(t, k)
		a.set(func() { a.fail = errors.New("control plane down") })

		// The old credential serves to its last second, and not one longer.
		time.Sleep(time.Until(first.NotAfter()))
		if c := credential(t, k); c != first {
			t.Error("another credential in an outage")
		}
		time.Sleep(time.Second)
		if c, err := k.Credential(); c != nil || !errors.Is(err, renew.ErrEnded) || !errors.Is(err, identity.ErrNoCredential) {
			t.Errorf("after its end: %v, %v", c, err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := changed.Load(); n != 2 { // the first, and the end
			t.Errorf("%d changes", n)
		}
		calls := a.calls()[1:]
		for i := range calls[1:] {
			if gap := calls[i+1].Sub(calls[i]); gap < 100*time.Millisecond || gap > time.Minute {
				t.Errorf("attempt %d came %s after the one before", i+1, gap)
			}
			left := first.NotAfter().Sub(calls[i])
			if gap := calls[i+1].Sub(calls[i]); left > time.Second && gap > left/4 {
				t.Errorf("attempt %d came %s after the one before, with %s left", i+1, gap, left)
			}
		}
		if gap := calls[1].Sub(calls[0]); gap > time.Second {
			t.Errorf("the second attempt came after %s", gap)
		}
		if n := len(calls); n < 100 || n > 250 {
			t.Errorf("%d attempts in an hour and a half", n)
		}

		a.set(func() { a.fail = nil })
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if c := credential(t, k); c == first || changed.Load() != 3 {
			t.Errorf("after the outage: %s, %d changes", c.Serial(), changed.Load())
		}
	})
}

func TestShortLeafRetriesInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(12 * time.Second)
		k := start(t, config(a))
		<-k.Ready()
		a.set(func() { a.fail = errors.New("down") })
		time.Sleep(9 * time.Second)
		a.set(func() { a.fail = nil })
		for range 60 {
			if _, err := k.Credential(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
	})
}

func TestHangingIssuer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		a.hang = true
		k := start(t, config(a))
		time.Sleep(20 * time.Second)
		a.set(func() { a.hang = false })
		select {
		case <-k.Ready():
		case <-time.After(time.Minute):
			t.Error("one attempt that hangs holds the keeper")
		}
	})
}

func TestUnusableAnswers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		harm func(a *authority)
	}{
		{"another identity", func(a *authority) { a.id = "spiffe://td/orders" }},
		{"malformed identity", func(a *authority) { a.id = "spiffe://td/%61" }},
		{"another root", func(a *authority) {
			other := newAuthority(time.Hour)
			a.root, a.key = other.root, other.key
		}},
		{"ended on arrival", func(a *authority) { a.now = func() time.Time { return time.Now().Add(-2 * time.Hour) } }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAuthority(time.Hour)
				cfg := config(a)
				trust := a.trust()
				cfg.Trust = func() *identity.Trust { return trust }
				k := start(t, cfg)
				<-k.Ready()
				first := credential(t, k)
				a.set(func() { tt.harm(a) })
				time.Sleep(55 * time.Minute)
				synctest.Wait()
				if credential(t, k) != first {
					t.Error("a good credential was given up for an unusable one")
				}
				if len(a.calls()) < 3 {
					t.Error("not tried again")
				}
			})
		})
	}
}

// A nil answer must be an error, not a panic.
func TestEmptyAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		cfg := config(a)
		cfg.Issuer = empty{}
		k := start(t, cfg)
		time.Sleep(time.Minute)
		if _, err := k.Credential(); !errors.Is(err, identity.ErrNoCredential) || errors.Is(err, renew.ErrEnded) {
			t.Errorf("got %v", err)
		}
	})
}

type empty struct{}

func (empty) Issue(context.Context, identity.ID, []byte) ([]*x509.Certificate, error) {
	return nil, nil
}

func TestWithoutTrust(t *testing.T) {
	t.Parallel()
	for name, trust := range map[string]*identity.Trust{"nil": nil, "empty": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cfg := config(newAuthority(time.Hour))
				cfg.Trust = func() *identity.Trust { return trust }
				k := start(t, cfg)
				<-k.Ready()
				credential(t, k)
			})
		})
	}
}

func TestRunTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := start(t, config(newAuthority(time.Hour)))
		<-k.Ready()
		if err := k.Run(t.Context()); err == nil {
			t.Error("two run at once")
		}
	})
}

func TestRunEndsInTheMiddle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		a.hang = true
		k := renew.New(config(a))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := k.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		a.set(func() { a.hang = false })
		again, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if err := k.Run(again); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("again: %v", err)
		}
		credential(t, k)
	})
}

// Credential is read while it is swapped; the race detector watches.
func TestCredentialDuringRenewals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := start(t, config(newAuthority(12*time.Second)))
		<-k.Ready()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 100 {
					c, err := k.Credential()
					if err != nil || !c.Key.Public().(*ecdsa.PublicKey).Equal(c.Chain[0].PublicKey) {
						t.Errorf("got %v, %v", c, err)
						return
					}
					time.Sleep(300 * time.Millisecond)
				}
			})
		}
		wg.Wait()
	})
}

func TestCredentialAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := start(t, config(newAuthority(time.Hour)))
		<-k.Ready()
		if n := testing.AllocsPerRun(100, func() { _, _ = k.Credential() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
