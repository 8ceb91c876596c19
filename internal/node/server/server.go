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
	"sync/atomic"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fleet"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
	"github.com/parleymesh/parley/internal/store"
)

// Config is what a server is started with. Every field but Store is required.
type Config struct {
	// Host names this machine in events.
	Host string
	// Dir holds the database, the master key and the sealed CA keys. It is
	// created with mode 0700.
	Dir string
	// Store is the URL of a database on PostgreSQL (see store.CheckURL) in place of
	// the one in Dir. It may hold a password and is never printed.
	Store string
	// TrustDomain is the realm; a data directory serves one for ever.
	TrustDomain identity.TrustDomain
	// Version is the program's.
	Version string
	Clock   clock.Clock
	Logger  *slog.Logger
}

// A Server is the control plane's state and its answers to agents.
type Server struct {
	cfg       Config
	store     *store.Store
	authority *ca.Authority
	registrar *enrol.Registrar
	fleet     *fleet.Fleet
	policy    atomic.Pointer[policy.Set]         // of everything that was published last
	retention atomic.Pointer[snapshot.Retention] // alike
	door      *door                              // for agents on other hosts; nil without

	master           *keys.Master
	newHeads, unkept bool // KeepHeads' own: there was no file beside logs; it is behind
}

// Open opens the data directory, makes what is missing in it, and refuses what
// is damaged, unreadable, or newer than this machine's clock.
func Open(ctx context.Context, cfg Config) (*Server, error) {
	existing, err := checkDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	master, _, err := keys.OpenMaster(filepath.Join(cfg.Dir, masterFile))
	if err != nil {
		return nil, err
	}
	secret, fresh, err := openHashSecret(master, cfg.hashPath())
	if err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, store.Config{
		Path: filepath.Join(cfg.Dir, databaseFile), URL: cfg.Store, Existing: existing, HashSecret: secret,
		Clock: cfg.Clock, Logger: cfg.Logger, Host: cfg.Host,
	})
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, store: st, master: master}
	if fresh {
		err = s.keepHashSecret(ctx, secret)
	}
	if err == nil {
		err = s.open(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return s, nil
}

func (s *Server) open(ctx context.Context) error {
	if err := s.store.CheckClock(ctx, s.cfg.Clock.Now()); err != nil {
		return err
	}
	last, err := s.store.LastTime(ctx)
	if err != nil {
		return err
	}
	s.authority, _, err = ca.Open(ca.Config{
		Dir: filepath.Join(s.cfg.Dir, authorityDir), TrustDomain: s.cfg.TrustDomain, Master: s.master,
		Clock: s.cfg.Clock, Logger: s.cfg.Logger, Made: s.signerMade,
	})
	if err != nil {
		return err
	}
	if err := s.openLogKey(ctx); err != nil {
		return err
	}
	if err := s.openHeads(!last.IsZero()); err != nil {
		return err
	}
	for _, signer := range []*x509.Certificate{s.authority.Root(), s.authority.Intermediate()} {
		if err := s.recordSigner(ctx, signer); err != nil {
			return err
		}
	}
	s.registrar = enrol.New(enrol.Config{Authority: s.authority, Registry: s.store, Joins: s.store, Clock: s.cfg.Clock, Logger: s.cfg.Logger, Host: s.cfg.Host})
	s.fleet = fleet.New(fleet.Config{
		Registrar: s.registrar, Sink: s.store, Recorder: s.store, Host: s.cfg.Host, Version: s.cfg.Version,
		Clock: s.cfg.Clock, Logger: s.cfg.Logger,
	})
	return nil
}

// Started records that the server runs, once everything that could refuse has
// been opened: a start that failed was none.
func (s *Server) Started(ctx context.Context) error {
	e := s.event(audit.ServerStarted)
	if reason := s.store.Unsafe(); reason != "" {
		e.Message = "the connection to the database is not protected: " + reason
	}
	return s.store.Log(ctx, e)
}

// Hold keeps the store this server's until ctx ends; it has to run as long as the
// server does. It fails where another server took the store, and then this one has
// to end.
func (s *Server) Hold(ctx context.Context) error { return s.store.Hold(ctx) }

// Store is the server's store, for the admin API and the collector.
func (s *Server) Store() *store.Store { return s.store }

// Bundle is what the trust domain trusts.
func (s *Server) Bundle() *identity.Bundle { return s.authority.Bundle() }

// Authority is the CA, for what it shows of itself.
func (s *Server) Authority() *ca.Authority { return s.authority }

// Close closes the store, and the address of agents, which Serve has closed where it
// ran.
func (s *Server) Close() error {
	if s.door != nil {
		_ = s.door.agents.Close()
	}
	return s.store.Close()
}

// Resume brings the stored bans into force, publishes the newest stored revision and
// reports its number, 0 where
// there is none yet.
func (s *Server) Resume(ctx context.Context) (int64, error) {
	bans, err := s.store.Bans(ctx)
	if err != nil {
		return 0, err
	}
	banned := make([]identity.ID, len(bans))
	for i := range bans {
		banned[i] = bans[i].ID
	}
	s.Ban(banned)
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
	s.fleet.AwaitReturn()
	return rev.Number, nil
}

// Publish makes snap the state that agents are told, and reports its generation.
func (s *Server) Publish(snap *snapshot.Snapshot) uint64 {
	s.registrar.SetSubjects(subjects(snap))
	s.retention.Store(&snap.Retention)
	var targets []string
	for _, svc := range snap.Services {
		targets = append(targets, svc.Name)
	}
	for _, g := range snap.Gateways {
		for _, r := range g.Routes {
			targets = append(targets, r.PolicyTarget)
		}
	}
	// What the parser accepted compiles; agents that find otherwise say so.
	if set, err := policy.Compile(snap.Revision, targets, snap.Rules); err == nil {
		s.policy.Store(set)
	} else {
		s.cfg.Logger.Error("policy not compiled", "revision", snap.Revision, "error", err)
	}
	generation := s.fleet.Publish(snap, s.authority.Bundle())
	if s.door != nil {
		s.door.publish(snap)
	}
	return generation
}

// Ban makes banned, all of them, the identities that take no part, and reports the
// generation by which agents have it.
func (s *Server) Ban(banned []identity.ID) uint64 {
	s.registrar.SetBanned(banned)
	generation := s.fleet.Ban(banned)
	if s.door != nil {
		s.door.ban(banned)
	}
	return generation
}

// Explain says how a query is decided by the newest revision.
func (s *Server) Explain(q policy.Query) policy.Explanation { return s.policy.Load().Explain(q) }

// Fleet is every agent.
func (s *Server) Fleet() *fleet.Fleet { return s.fleet }

// Registrar issues.
func (s *Server) Registrar() *enrol.Registrar { return s.registrar }

// subjects are the identities of a snapshot that a certificate may be issued to.
func subjects(snap *snapshot.Snapshot) (out []enrol.Subject) {
	for _, h := range snap.Hosts {
		out = append(out, enrol.Subject{ID: h.ID, TTL: enrol.AgentTTL, Hosts: []string{h.Name}})
	}
	for _, a := range snap.Admins {
		out = append(out, enrol.Admin(a.ID))
	}
	for _, svc := range snap.Services {
		out = append(out, enrol.Subject{ID: svc.ID, TTL: snap.LeafTTL, Hosts: svc.RunsOn})
	}
	for _, g := range snap.Gateways {
		s := enrol.Subject{ID: g.ID, TTL: snap.LeafTTL, Hosts: g.RunsOn}
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
