package server

import (
	"context"
	"crypto/x509"
	"errors"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/identity"
)

// signerMade records an intermediate that was made while the server runs. Where
// that fails the next start does it, as for one that a crash left unrecorded.
// Those made at the start are recorded by open, which can say what went wrong.
func (s *Server) signerMade(cert *x509.Certificate) {
	if s.authority == nil {
		return
	}
	if err := s.recordSigner(context.Background(), cert); err != nil {
		s.cfg.Logger.Error("signing certificate not recorded", "serial", identity.Serial(cert), "error", err)
	}
}

// recordSigner puts a certificate of the authority's own on record with its
// event, unless it is there already.
func (s *Server) recordSigner(ctx context.Context, cert *x509.Certificate) error {
	kind := enrol.KindIntermediate
	if cert.CheckSignatureFrom(cert) == nil {
		kind = enrol.KindRoot
	}
	rec := enrol.Record{
		Serial: identity.Serial(cert), ID: s.cfg.TrustDomain.ID(), NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
		Fingerprint: identity.Fingerprint(cert), Host: s.cfg.Host, Kind: kind,
	}
	e := s.event(audit.CACreated)
	e.Actor.System = "ca"
	e.Object = &audit.Object{Kind: "ca", Name: s.cfg.TrustDomain.String(), Serial: rec.Serial, NotAfter: rec.NotAfter, Detail: kind}
	err := s.store.Issue(ctx, rec, e)
	if errors.Is(err, control.ErrConflict) { // the serial is on record
		return nil
	}
	return err
}

// event is a success of the server's own doing.
func (s *Server) event(action audit.Action) *audit.Event {
	now := s.cfg.Clock.Now()
	return &audit.Event{
		ID: audit.NewID(now), Time: now, Class: audit.Security, Action: action, Outcome: audit.Success,
		Host: s.cfg.Host, Reporter: "server", Actor: &audit.Actor{System: "start"},
	}
}
