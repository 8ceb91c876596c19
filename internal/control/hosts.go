package control

import (
	"context"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/fault"
)

// Hosts lets machines into the mesh.
type Hosts interface {
	// NewJoin makes a join token for host and returns it as one word; NotFound for
	// a host that the revision does not name, and for a server without an address.
	NewJoin(ctx context.Context, host string, ttl time.Duration, actor *audit.Actor) (token string, expires time.Time, err error)
}

func (o operations) CreateJoinToken(ctx context.Context, r api.CreateJoinTokenRequestObject) (api.CreateJoinTokenResponseObject, error) {
	b := r.Body
	if err := checkLabel("host", b.Host, 1, maxName); err != nil {
		return nil, err
	}
	ttl := enrol.DefaultJoinTTL
	if b.ExpiresIn != 0 {
		if b.ExpiresIn < 0 || b.ExpiresIn > int64(enrol.MaxJoinTTL/time.Second) {
			return nil, fault.New(fault.BadRequest, "choose 1s to 168h", "expires_in is 1 to %d seconds", int64(enrol.MaxJoinTTL/time.Second))
		}
		ttl = time.Duration(b.ExpiresIn) * time.Second
	}
	token, expires, err := o.cfg.Hosts.NewJoin(ctx, b.Host, ttl, o.event(ctx, audit.JoinCreated, audit.Success, nil).Actor)
	if err != nil {
		return nil, err
	}
	return api.CreateJoinToken201JSONResponse{Token: token, Host: b.Host, Expires: expires.UTC()}, nil
}
