package renew_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/enrol/renew"
	"github.com/parleymesh/parley/internal/identity"
)

// A shelf keeps one credential.
type shelf struct {
	mu    sync.Mutex // guards what follows
	c     *identity.Credential
	saved int
	load  error
	save  error
}

func (s *shelf) Load(identity.ID) (*identity.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c, s.load
}

func (s *shelf) Save(c *identity.Credential) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.save != nil {
		return s.save
	}
	s.c = c
	s.saved++
	return nil
}

// kept is what it has, and how often something was kept.
func (s *shelf) kept() (*identity.Credential, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c, s.saved
}

// issued is a credential of a.
func issued(t *testing.T, a *authority) *identity.Credential {
	t.Helper()
	key := newKey()
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, crypto.Signer(key)))
	chain, err := a.Issue(t.Context(), id(), csr)
	if err != nil {
		t.Fatal(err)
	}
	return must(identity.NewCredential(chain, key))
}

// Without an issuer, the kept credential serves until its end, and is replaced once
// one answers.
func TestKeptCredentialServes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		kept := issued(t, a)
		a.set(func() { a.fail = errors.New("nobody there") })
		keep, cfg := &shelf{c: kept}, config(a)
		cfg.Keep = keep
		var changed atomic.Int32
		cfg.Changed = func() { changed.Add(1) }
		k := start(t, cfg)
		<-k.Ready()
		if c := credential(t, k); c != kept {
			t.Errorf("serves %s, want the kept %s", c.Serial(), kept.Serial())
		}
		time.Sleep(50 * time.Minute)
		if _, n := keep.kept(); credential(t, k) != kept || n != 0 {
			t.Error("another one, of nobody")
		}
		a.set(func() { a.fail = nil })
		time.Sleep(9 * time.Minute)
		c := credential(t, k)
		if last, n := keep.kept(); c == kept || last != c || n != 1 {
			t.Errorf("%d kept", n)
		}
		a.set(func() { a.fail = errors.New("nobody there") })
		time.Sleep(2 * time.Hour)
		if _, err := k.Credential(); !errors.Is(err, renew.ErrEnded) {
			t.Errorf("after its end: %v", err)
		}
		if changed.Load() != 3 { // kept, renewed, ended
			t.Errorf("%d changes", changed.Load())
		}
	})
}

func TestEveryRenewalIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(time.Hour)
		keep, cfg := new(shelf), config(a)
		cfg.Keep = keep
		k := start(t, cfg)
		<-k.Ready()
		for range 5 {
			synctest.Wait()
			if last, n := keep.kept(); last != credential(t, k) || n != len(a.calls()) {
				t.Errorf("%d kept of %d", n, len(a.calls()))
			}
			time.Sleep(31 * time.Minute)
		}
		// A full disk takes nothing out of service.
		keep.mu.Lock()
		last := keep.c
		keep.save = errors.New("no space left on device")
		keep.mu.Unlock()
		time.Sleep(2 * time.Hour)
		if now, _ := keep.kept(); credential(t, k) == last || now != last {
			t.Error("it went with what could not be kept")
		}
	})
}

func TestKeptCredentialIsNotUsed(t *testing.T) {
	t.Parallel()
	for name, shelve := range map[string]func(*testing.T, *authority) *shelf{
		"ended": func(t *testing.T, a *authority) *shelf {
			c := issued(t, a)
			time.Sleep(2 * time.Hour)
			return &shelf{c: c}
		},
		"another's": func(t *testing.T, a *authority) *shelf {
			a.set(func() { a.id = "spiffe://td/other" })
			c := issued(t, a)
			a.set(func() { a.id = "spiffe://td/web" })
			return &shelf{c: c}
		},
		"another root's": func(t *testing.T, _ *authority) *shelf { return &shelf{c: issued(t, newAuthority(time.Hour))} },
		"damaged":        func(*testing.T, *authority) *shelf { return &shelf{load: errors.New("damaged")} },
		"nothing":        func(*testing.T, *authority) *shelf { return new(shelf) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAuthority(time.Hour)
				keep, cfg := shelve(t, a), config(a)
				cfg.Keep = keep
				a.set(func() { a.fail = errors.New("nobody there") })
				k := start(t, cfg)
				synctest.Wait()
				if c, err := k.Credential(); !errors.Is(err, identity.ErrNoCredential) {
					t.Errorf("it serves %v", c)
				}
				select {
				case <-k.Ready():
					t.Error("it is ready")
				default:
				}
				a.set(func() { a.fail = nil })
				<-k.Ready()
				synctest.Wait()
				if last, _ := keep.kept(); credential(t, k) != last {
					t.Error("the new one is not kept")
				}
			})
		})
	}
}
