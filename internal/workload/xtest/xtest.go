// Package xtest is a Workload API on a socket of its own, over a certificate
// authority in memory, for tests of the server and of its clients.
//
// It refuses to be imported by anything but tests.
package xtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/workload"
)

// A Subject is a process whose end the test decides.
type Subject struct {
	gone chan struct{}
	once sync.Once
	// Closed is closed when the server has released the process.
	Closed chan struct{}
}

// Gone implements workload.Subject.
func (s *Subject) Gone() <-chan struct{} { return s.gone }

// Close implements workload.Subject.
func (s *Subject) Close() { close(s.Closed) }

// End ends the process.
func (s *Subject) End() { s.once.Do(func() { close(s.gone) }) }

// A Backend is a workload.Backend whose state the test sets. Every connecting
// process has the same identities.
type Backend struct {
	mu       sync.Mutex // guards what follows
	ids      []workload.Identity
	changed  chan struct{}
	events   []*audit.Event
	subjects []*Subject
	attest   error

	jwtKey *ecdsa.PrivateKey
}

// Process is what every connecting process is attested as.
func Process() call.Process { return call.Process{PID: 4711, UID: 1000, Exe: "/usr/bin/orders"} }

// Set replaces the identities and tells the server.
func (b *Backend) Set(ids ...workload.Identity) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ids = ids
	close(b.changed)
	b.changed = make(chan struct{})
}

// Touch tells the server that something changed.
func (b *Backend) Touch() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.changed)
	b.changed = make(chan struct{})
}

// FailAttest makes attestation fail from now on.
func (b *Backend) FailAttest(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attest = err
}

// Events are what was recorded.
func (b *Backend) Events() []*audit.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*audit.Event(nil), b.events...)
}

// Subjects are the processes that connected.
func (b *Backend) Subjects() []*Subject {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*Subject(nil), b.subjects...)
}

// Attest implements workload.Backend.
func (b *Backend) Attest(*net.UnixConn) (workload.Subject, call.Process, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.attest != nil {
		return nil, call.Process{}, b.attest
	}
	s := &Subject{gone: make(chan struct{}), Closed: make(chan struct{})}
	b.subjects = append(b.subjects, s)
	return s, Process(), nil
}

// Identities implements workload.Backend.
func (b *Backend) Identities(workload.Subject) []workload.Identity {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ids
}

// Changed implements workload.Backend.
func (b *Backend) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// Record implements workload.Backend.
func (b *Backend) Record(e *audit.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
}

// MintJWT implements workload.Tokens.
func (b *Backend) MintJWT(_ context.Context, id identity.ID, audience []string) (string, error) {
	now := time.Now()
	return jose.SignSVID(b.jwtKey, "k1", id, audience, now, now.Add(time.Minute))
}

// ValidateJWT implements workload.Tokens.
func (b *Backend) ValidateJWT(_ context.Context, token, audience string) (identity.ID, map[string]any, error) {
	b.mu.Lock()
	ids := b.ids
	b.mu.Unlock()
	if len(ids) == 0 {
		return identity.ID{}, nil, errors.New("no trust")
	}
	return jose.VerifySVID(token, audience, func(td identity.TrustDomain) *identity.Bundle {
		return ids[0].Source.Trust().Bundles[td]
	}, time.Now())
}

// MarshalBundle implements workload.Tokens.
func (b *Backend) MarshalBundle(bundle *identity.Bundle) ([]byte, error) {
	return jose.MarshalBundle(bundle)
}

// JWTKeys are the backend's, for a bundle.
func (b *Backend) JWTKeys() map[string]crypto.PublicKey {
	return map[string]crypto.PublicKey{"k1": b.jwtKey.Public()}
}

// An API is a server on a socket with its backend and authority.
type API struct {
	*Backend
	CA     *mtlstest.CA
	Socket string // the path
	Server *workload.Server

	tb testing.TB
}

// Start serves a Workload API for the trust domain shop.example; nobody has an
// identity yet. It ends with the test.
func Start(tb testing.TB) *API {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "wl") // short: a socket's path has 107 bytes
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	a := &API{
		Backend: &Backend{changed: make(chan struct{}), jwtKey: key},
		CA:      mtlstest.NewCA(tb, "shop.example"),
		Socket:  filepath.Join(dir, "s"),
		tb:      tb,
	}
	a.Serve()
	return a
}

// Serve starts a server, as a restarted agent would.
func (a *API) Serve() {
	a.tb.Helper()
	l, err := net.Listen("unix", a.Socket)
	if err != nil {
		a.tb.Fatal(err)
	}
	a.Server = workload.NewServer(workload.Config{
		MaxConnections: 256,
		Backend:        a.Backend, Host: "host1", Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler),
	})
	done, stop := make(chan struct{}), a.Server.Stop
	go func(s *workload.Server) {
		defer close(done)
		if err := s.Serve(l); err != nil {
			a.tb.Errorf("serve: %v", err)
		}
	}(a.Server)
	a.tb.Cleanup(func() {
		stop()
		<-done
	})
}

// URI is Socket as SPIFFE_ENDPOINT_SOCKET has it.
func (a *API) URI() string { return "unix://" + a.Socket }

// Identity is a new credential of CA for the service called name, with a trust
// of epoch that has CA's root, the backend's JWT keys and the other authorities.
func (a *API) Identity(name string, epoch uint64, others ...*mtlstest.CA) workload.Identity {
	a.tb.Helper()
	cred := a.CA.Credential(a.tb, name, time.Hour)
	trust := mtlstest.Trust(epoch, append([]*mtlstest.CA{a.CA}, others...), cred.ID)
	trust.Bundles[a.CA.Domain].JWTKeys = a.JWTKeys()
	return workload.Identity{Source: mtlstest.NewSource(cred, trust), ID: cred.ID, Hint: name}
}
