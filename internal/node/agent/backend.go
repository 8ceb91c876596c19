package agent

import (
	"context"
	"net"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/workload"
)

// backend answers the Workload API from the agent's state.
type backend struct{ *Agent }

func (b backend) Attest(conn *net.UnixConn) (workload.Subject, call.Process, error) {
	w, err := b.attestor.Unix(conn)
	if err != nil {
		return nil, call.Process{}, err
	}
	return w, process(w), nil
}

// Identities are those of every service whose selectors the process matches.
func (b backend) Identities(s workload.Subject) (ids []workload.Identity) {
	w, ok := s.(*attest.Workload)
	u := b.pending.Load()
	if !ok || u == nil {
		return nil
	}
	for _, svc := range u.Snapshot.Services {
		if w.Match(svc.RunsAs) != nil || b.trust.Load().Banned[svc.ID] {
			continue
		}
		b.noteAccount(svc.Name, svc.RunsAs, w.Account())
		if src, ok := b.keepers.source(svc.ID); ok {
			ids = append(ids, workload.Identity{Source: src, ID: svc.ID, Hint: svc.Name})
		}
	}
	return ids
}

func (b backend) MintJWT(ctx context.Context, id identity.ID, audience []string) (string, error) {
	token, _, err := b.cfg.Control.IssueJWT(ctx, id, audience)
	return token, err
}

func (b backend) ValidateJWT(_ context.Context, token, audience string) (identity.ID, map[string]any, error) {
	trust := b.trust.Load()
	id, claims, err := jose.VerifySVID(token, audience, func(td identity.TrustDomain) *identity.Bundle {
		return trust.Bundles[td]
	}, b.cfg.Clock.Now())
	if err == nil {
		err = trust.Admit(id)
	}
	if err != nil {
		return identity.ID{}, nil, err
	}
	return id, claims, nil
}

func (b backend) MarshalBundle(x *identity.Bundle) ([]byte, error) { return jose.MarshalBundle(x) }

func (b backend) Changed() <-chan struct{} { return b.changed.wait() }

func (b backend) Record(e *audit.Event) { b.Agent.Record(e) }
