// Package server wires the control plane: the store, the CA and its registrar,
// and what agents are told. The admin API is put on top of it by node.
//
// It refuses to hold logic: each step is a room's.
package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/snapshot"
	"github.com/parleymesh/parley/internal/store"
)

// Config is what a server is started with. Every field is required.
type Config struct {
	// Host names this machine in events.
	Host string
	// Dir holds the database, the master key and the sealed CA keys. It is
	// created with mode 0700.
	Dir string
	// TrustDomain is the realm; a data directory serves one for ever.
	TrustDomain identity.TrustDomain
	Clock       clock.Clock
	Logger      *slog.Logger
}

// A Server is the control plane's state and its answers to agents.
type Server struct {
	cfg       Config
	store     *store.Store
	authority *ca.Authority
	registrar *enrol.Registrar

	mu      sync.Mutex // guards update and changed
	update  link.Update
	changed chan struct{} // closed at the next publication
}

// Open opens the data directory, makes what is missing in it, and refuses what
// is damaged, unreadable, or newer than this machine's clock.
func Open(ctx context.Context, cfg Config) (*Server, error) {
	if err := checkDir(cfg.Dir); err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, store.Config{Path: filepath.Join(cfg.Dir, databaseFile), Clock: cfg.Clock, Logger: cfg.Logger, Host: cfg.Host})
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, store: st, changed: make(chan struct{})}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return s, nil
}

func (s *Server) open(ctx context.Context) error {
	if err := s.store.CheckClock(ctx, s.cfg.Clock.Now()); err != nil {
		return err
	}
	master, _, err := keys.OpenMaster(filepath.Join(s.cfg.Dir, masterFile))
	if err != nil {
		return err
	}
	s.authority, _, err = ca.Open(ca.Config{
		Dir: filepath.Join(s.cfg.Dir, authorityDir), TrustDomain: s.cfg.TrustDomain, Master: master,
		Clock: s.cfg.Clock, Logger: s.cfg.Logger, Made: s.signerMade,
	})
	if err != nil {
		return err
	}
	for _, signer := range []*x509.Certificate{s.authority.Root(), s.authority.Intermediate()} {
		if err := s.recordSigner(ctx, signer); err != nil {
			return err
		}
	}
	s.registrar = enrol.New(enrol.Config{Authority: s.authority, Registry: s.store, Clock: s.cfg.Clock, Logger: s.cfg.Logger, Host: s.cfg.Host})
	return nil
}

// Started records that the server runs, once everything that could refuse has
// been opened: a start that failed was none.
func (s *Server) Started(ctx context.Context) error {
	return s.store.Log(ctx, s.event(audit.ServerStarted))
}

// Store is the server's store, for the admin API and the collector.
func (s *Server) Store() *store.Store { return s.store }

// Bundle is what the trust domain trusts.
func (s *Server) Bundle() *identity.Bundle { return s.authority.Bundle() }

// Authority is the CA, for what it shows of itself.
func (s *Server) Authority() *ca.Authority { return s.authority }

// Close closes the store.
func (s *Server) Close() error { return s.store.Close() }

// Resume publishes the newest stored revision and reports its number, 0 where
// there is none yet.
func (s *Server) Resume(ctx context.Context) (int64, error) {
	rev, err := s.store.Head(ctx)
	if errors.Is(err, control.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if err := rev.Intact(); err != nil {
		return 0, err
	}
	file, err := mesh.Parse(rev.Name, rev.Text)
	if err != nil {
		return 0, fmt.Errorf("revision %d no longer parses: %w", rev.Number, err)
	}
	stored, err := s.store.Keys(ctx)
	if err != nil {
		return 0, err
	}
	snap, err := mesh.Compile(file, rev.Number, rev.Ports, control.LiveKeys(stored, s.cfg.Clock.Now()))
	if err != nil {
		return 0, err
	}
	s.Publish(snap)
	return rev.Number, nil
}

// Publish makes snap the state that agents are told, and reports its generation.
func (s *Server) Publish(snap *snapshot.Snapshot) uint64 {
	s.registrar.SetSubjects(subjects(snap))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.update = link.Update{Generation: s.update.Generation + 1, Snapshot: snap, Bundle: s.authority.Bundle()}
	close(s.changed)
	s.changed = make(chan struct{})
	return s.update.Generation
}

// Watch waits for an update newer than seen.
func (s *Server) Watch(ctx context.Context, seen uint64) (link.Update, error) {
	for {
		s.mu.Lock()
		u, changed := s.update, s.changed
		s.mu.Unlock()
		if u.Generation > seen {
			return u, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return link.Update{}, ctx.Err()
		}
	}
}

// Issue signs an X509-SVID for id.
func (s *Server) Issue(ctx context.Context, host string, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	return s.registrar.Issue(ctx, host, id, csr)
}

// IssueJWT signs a JWT-SVID for id.
func (s *Server) IssueJWT(ctx context.Context, host string, id identity.ID, audience []string) (string, time.Time, error) {
	return s.registrar.IssueJWT(ctx, host, id, audience)
}

// subjects are the identities of a snapshot that a certificate may be issued to.
func subjects(snap *snapshot.Snapshot) (out []enrol.Subject) {
	for _, svc := range snap.Services {
		out = append(out, enrol.Subject{ID: svc.ID, TTL: snap.LeafTTL})
	}
	for _, g := range snap.Gateways {
		s := enrol.Subject{ID: g.ID, TTL: snap.LeafTTL}
		for _, h := range g.Hosts {
			if ip := net.ParseIP(h); ip != nil {
				s.IPs = append(s.IPs, ip)
			} else {
				s.DNSNames = append(s.DNSNames, h)
			}
		}
		out = append(out, s)
	}
	return out
}
