package gate

import (
	"errors"
	"net/http"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
)

// admit is the stage of an inbound: the caller is the connection's verified peer.
// The handshake admitted it once; a connection lives on, so whether the
// certificate still holds and the identity still belongs to the mesh is asked
// again for each request.
func (c *check) admit() call.Verdict {
	peer := &c.req.Peer
	if c.trust == nil {
		return deny(http.StatusServiceUnavailable, CodeNotReady, ReasonNotReady)
	}
	trust := c.trust()
	if trust == nil {
		return deny(http.StatusServiceUnavailable, CodeNotReady, ReasonNotReady)
	}
	switch {
	case peer.ID.IsZero():
		return deny(http.StatusForbidden, CodeNotAllowed, ReasonNoIdentity)
	case c.now.After(peer.NotAfter):
		return deny(http.StatusForbidden, CodeNotAllowed, ReasonExpired)
	case trust.Bundles[peer.ID.TrustDomain()] == nil:
		return deny(http.StatusForbidden, CodeNotAllowed, ReasonTrustWithdrawn)
	}
	if err := trust.Admit(peer.ID); err != nil {
		reason := ReasonNotMember
		if errors.Is(err, identity.ErrBanned) {
			reason = ReasonBanned
		}
		return deny(http.StatusForbidden, CodeNotAllowed, reason)
	}
	c.req.Caller.Workload = peer.ID
	return c.origin()
}
