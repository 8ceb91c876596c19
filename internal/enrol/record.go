package enrol

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// The reason codes of a refusal.
const (
	reasonUnknown  = "not_in_revision"  // the revision does not name the identity
	reasonBanned   = "identity_banned"  // the identity is banned
	reasonHost     = "not_on_host"      // it does not run on the host that asks
	reasonRequest  = "request_invalid"  // the certificate request
	reasonAudience = "audience_invalid" // of a JWT-SVID
	reasonProbe    = "no_verification"  // a certificate for probes, and no verification runs
	reasonChanged  = "revision_changed" // the subject left or changed before the release
)

// release commits what was signed. Only then, and only if the subject is still
// what it was, may the caller have it: a revision that took the identity away
// may have come while the registry wrote.
func (r *Registrar) release(ctx context.Context, p Permission, rec Record) error {
	e := r.event(rec.Kind, rec.Host, rec.ID)
	e.Action, e.Outcome = audit.SVIDIssued, audit.Success
	if rec.Kind == KindJWT {
		e.Action = audit.JWTIssued
	}
	e.Object.Serial, e.Object.NotAfter = rec.Serial, rec.NotAfter
	if err := r.cfg.Registry.Issue(ctx, rec, e); err != nil {
		return fmt.Errorf("issue to %s: not recorded, so not released: %w", rec.ID, err)
	}
	if !r.holds(p) {
		err := fault.New(fault.NotSubject, "parley status", "%s left the revision, or changed, while it was issued to", rec.ID)
		return r.refuse(ctx, rec.Kind, rec.Host, rec.ID, reasonChanged, err)
	}
	return nil
}

// A refusal is what is counted together: a host can ask for what it does not get as
// fast as it likes.
type refusal struct {
	host, reason string
	id           identity.ID
}

// refuse records a refusal and returns why, with the reason why it could not be
// recorded where that failed too.
func (r *Registrar) refuse(ctx context.Context, kind, host string, id identity.ID, reason string, why error) error {
	e := r.event(kind, host, id)
	e.Action, e.Outcome, e.Reason = audit.IssueRefused, audit.Denied, reason
	e.Message = why.Error()
	of := refusal{host, reason, id}
	if reason == reasonUnknown {
		of.id = identity.ID{} // of those there is no end
	}
	more, due := r.refusals.Count(of, r.cfg.Clock.Now())
	if !due {
		return why
	}
	if more > 0 {
		e.Message += fmt.Sprintf(" (%d more of these were refused since the last record)", more)
	}
	r.cfg.Logger.Warn("issuance refused", "id", id.String(), "asking_host", host, "reason", reason)
	if err := r.cfg.Registry.Refused(ctx, e); err != nil {
		return errors.Join(why, fmt.Errorf("record the refusal of %s: %w", id, err))
	}
	return why
}

func (r *Registrar) event(kind, host string, id identity.ID) *audit.Event {
	now := r.cfg.Clock.Now().UTC()
	return &audit.Event{
		ID: audit.NewID(now), Time: now, Class: audit.Security,
		Host: r.cfg.Host, Reporter: "server",
		Actor:  &audit.Actor{System: "registrar"},
		Object: &audit.Object{Kind: objectKind(kind), Name: id.String(), Detail: kind + " for host " + strconv.Quote(host)},
	}
}

// objectKind is audit's word for what is issued.
func objectKind(kind string) string {
	if kind == KindJWT {
		return "token"
	}
	return "certificate"
}
