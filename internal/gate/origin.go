package gate

import (
	"errors"
	"net/http"
	"slices"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

// origin finds out whom the gateway let in that calls, if it says so. That it says
// nothing is no sign of anything: a public route has no caller. What it says and
// is not good is refused: without it the application would serve a caller as
// nobody who is somebody. Of anybody but a gateway the field is passed over.
func (c *check) origin() call.Verdict {
	peer := &c.req.Peer
	if c.req.Header == nil || !authn.Vouches(peer.ID, c.req.LocalID) {
		return call.Verdict{}
	}
	i, err := c.origins.From(c.req.Header.Values(call.IdentityField), peer.Leaf, peer.ID, c.req.LocalID, c.now)
	if err != nil {
		c.said.message = message(err)
		return deny(http.StatusForbidden, CodeNotAllowed, originReason(err))
	}
	if i != nil {
		c.req.Caller.Origin = &i.Caller
	}
	return call.Verdict{}
}

// A reasonOf is the reason of an error, for the record.
type reasonOf struct {
	err    error
	reason string
}

// byOrigin are the reasons of an identity that was not good.
var byOrigin = []reasonOf{
	{authn.ErrIdentitySeveral, ReasonIdentitySeveral},
	{jose.ErrIdentityHeader, ReasonIdentityHeader},
	{jose.ErrAlgorithm, ReasonIdentityHeader},
	{jose.ErrOtherLeaf, ReasonIdentityKey},
	{jose.ErrSignature, ReasonIdentitySignature},
	{jose.ErrIdentityClaims, ReasonIdentityClaims},
	{jose.ErrIssuer, ReasonIdentityIssuer},
	{jose.ErrAudience, ReasonIdentityAudience},
	{jose.ErrExpired, ReasonIdentityExpired},
	{jose.ErrNotYet, ReasonIdentityNotYet},
}

func originReason(err error) string {
	for _, o := range byOrigin {
		if errors.Is(err, o.err) {
			return o.reason
		}
	}
	return ReasonIdentityMalformed
}

// OfOrigin says that a reason is about what a gateway said of its caller.
func OfOrigin(reason string) bool {
	return reason == ReasonIdentityMalformed || slices.ContainsFunc(byOrigin, func(o reasonOf) bool { return o.reason == reason })
}

// Vouch is what a gateway that holds own says to the service to of the caller of r,
// which was checked: an identity token for call.IdentityField, empty where nobody
// was authenticated.
func (g *Gate) Vouch(r *call.Request, own *identity.Credential, to identity.ID) (string, error) {
	s := g.state.Load()
	if r.Caller.IsZero() || s.signer == nil || s.trust == nil {
		return "", nil
	}
	a := authn.Admission{Caller: &r.Caller, To: to, Revision: r.Verdict.Revision}
	if trust := s.trust(); trust != nil {
		a.Epoch = trust.Epoch
	}
	return s.signer.Sign(own, a, g.cfg.Clock.Now())
}
