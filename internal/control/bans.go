package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// A Ban is an identity that takes no part, whatever the mesh file says.
type Ban struct {
	ID identity.ID
	// Actor is who banned it, and Reason what they wrote.
	Actor, Reason string
	Since         time.Time
}

// Bans keeps bans, durably. Each mutation commits its event with it.
type Bans interface {
	// Ban is ErrConflict for an identity that is banned already.
	Ban(ctx context.Context, b Ban, e *audit.Event) error
	// Unban is ErrNotFound for one that is not.
	Unban(ctx context.Context, id identity.ID, e *audit.Event) error
	// Bans are all of them, in order of their identity.
	Bans(ctx context.Context) ([]Ban, error)
}

// A Confirmation is what a host says of a change that concerns all.
type Confirmation struct {
	Host      string
	Confirmed bool
	Note      string // why not
}

// subject is the identity that a person names.
func (s *Server) subject(name string) (id identity.ID, err error) {
	td := s.cfg.TrustDomain
	kind, rest, two := strings.Cut(name, "/")
	switch {
	case strings.HasPrefix(name, "spiffe://"):
		id, err = identity.ParseID(name)
	case two && kind == "gateway":
		id, err = identity.GatewayID(td, rest)
	case two && kind == "host":
		id, err = identity.AgentID(td, rest)
	case two:
		err = identity.ErrPath
	default:
		id, err = identity.ServiceID(td, name)
	}
	own, _ := identity.ServerID(td)
	if err != nil || id.TrustDomain() != td || id.Path() == "" || id == own {
		return id, fault.New(fault.BadRequest, "name a service, gateway/NAME, host/NAME, or a SPIFFE ID of "+td.String(), "%q cannot be banned", clip(name))
	}
	return id, nil
}

func (o operations) CreateBan(ctx context.Context, r api.CreateBanRequestObject) (api.CreateBanResponseObject, error) {
	id, err := o.subject(r.Body.Identity)
	if err != nil {
		return nil, err
	}
	if err := checkLabel("message", r.Body.Reason, 0, maxMessage); err != nil {
		return nil, err
	}
	result, err := o.ban(ctx, id, r.Body.Reason)
	if err != nil {
		return nil, err
	}
	return api.CreateBan200JSONResponse(*result), nil
}

// ban bans id and tells all. One that is banned already is told once more: somebody
// doubts it.
func (o operations) ban(ctx context.Context, id identity.ID, reason string) (*api.BanResult, error) {
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctx = context.WithoutCancel(ctx) // what is committed runs, whether the client stays or not
	e := o.event(ctx, audit.IdentityBanned, audit.Success, &audit.Object{Kind: "identity", Name: id.String(), Detail: reason})
	err = o.cfg.Bans.Ban(ctx, Ban{ID: id, Actor: actor(ctx), Reason: reason, Since: o.cfg.Clock.Now().UTC().Truncate(time.Microsecond)}, e)
	if err != nil && !errors.Is(err, ErrConflict) {
		return nil, err
	}
	return o.tellBans(ctx, id)
}

func (o operations) DeleteBan(ctx context.Context, r api.DeleteBanRequestObject) (api.DeleteBanResponseObject, error) {
	id, err := o.subject(r.Params.Identity)
	if err != nil {
		return nil, err
	}
	result, err := o.unban(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil, fault.New(fault.NotFound, "see who is: parley ban", "%s is not banned", id)
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteBan200JSONResponse(*result), nil
}

// unban lifts the ban of id and tells all; ErrNotFound where there is none.
func (o operations) unban(ctx context.Context, id identity.ID) (*api.BanResult, error) {
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctx = context.WithoutCancel(ctx) // what is committed runs, whether the client stays or not
	e := o.event(ctx, audit.IdentityUnbanned, audit.Success, &audit.Object{Kind: "identity", Name: id.String()})
	if err := o.cfg.Bans.Unban(ctx, id, e); err != nil {
		return nil, err
	}
	return o.tellBans(ctx, id)
}

// tellBans brings the bans into force as they are now.
func (s *Server) tellBans(ctx context.Context, id identity.ID) (*api.BanResult, error) {
	bans, err := s.cfg.Bans.Bans(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the bans: %w", err)
	}
	ids := make([]identity.ID, len(bans))
	for i := range bans {
		ids[i] = bans[i].ID
	}
	result := &api.BanResult{ID: id.String(), Hosts: []api.BanHost{}}
	for _, c := range s.cfg.Runtime.Ban(ctx, ids) {
		result.Hosts = append(result.Hosts, api.BanHost{Name: c.Host, Confirmed: c.Confirmed, Note: c.Note})
	}
	return result, nil
}

func (o operations) ListBans(ctx context.Context, _ api.ListBansRequestObject) (api.ListBansResponseObject, error) {
	list, err := o.bans(ctx)
	return api.ListBans200JSONResponse{Items: list}, err
}

func (s *Server) bans(ctx context.Context) ([]api.Ban, error) {
	bans, err := s.cfg.Bans.Bans(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the bans: %w", err)
	}
	out := make([]api.Ban, len(bans))
	for i, b := range bans {
		out[i] = api.Ban{ID: b.ID.String(), Since: b.Since, Actor: b.Actor, Reason: b.Reason}
	}
	return out, nil
}
