package control

import (
	"context"
	"net"
	"slices"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// Admins are the administrators who come over TLS.
type Admins interface {
	// Admin is whose certificate a connection has; false for any other connection.
	Admin(conn net.Conn) (identity.ID, bool)
	// Role is what an administrator may do now: one of Roles, or empty.
	Role(id identity.ID) string
	// IssueAdmin gives an administrator a certificate (DER, leaf first) for a
	// certificate request (DER).
	IssueAdmin(ctx context.Context, id identity.ID, csr []byte) (chain [][]byte, err error)
}

// The roles, each with everything that the one before it may do.
const (
	viewer   = "viewer"   // reads everything but secrets
	operator = "operator" // changes the mesh file, API keys and bans
	admin    = "admin"    // lets hosts and administrators in, and changes what is logged
)

var roles = []string{viewer, operator, admin}

// needed is the role that each operation needs. What is not named here needs the
// highest: a test wants all of the OpenAPI document named.
var needed = map[string]string{
	"GET /v1/version":                   viewer,
	"GET /v1/status":                    viewer,
	"GET /v1/config/revisions":          viewer,
	"GET /v1/config/revisions/{number}": viewer,
	"GET /v1/config/diff":               viewer,
	"GET /v1/config/schema":             viewer,
	"GET /v1/keys":                      viewer,
	"GET /v1/audit/events":              viewer,
	"GET /v1/audit/events/{id}":         viewer,
	"GET /v1/audit/events/{id}/proof":   viewer,
	"GET /v1/audit/logs":                viewer,
	"GET /v1/audit/logs/{log}/entries":  viewer,
	"GET /v1/audit/stats":               viewer,
	"GET /v1/audit/tail":                viewer,
	"POST /v1/audit/verify":             viewer,
	"GET /v1/why":                       viewer,
	"GET /v1/certificates":              viewer,
	"GET /v1/bundle":                    viewer,
	"GET /v1/bans":                      viewer,
	"GET /v1/log-levels":                viewer,
	"POST /v1/config":                   operator,
	"POST /v1/config/rollback":          operator,
	"POST /v1/keys":                     operator,
	"DELETE /v1/keys/{id}":              operator,
	"POST /v1/bans":                     operator,
	"POST /v1/verify":                   operator,
	"DELETE /v1/bans":                   operator,
	"POST /v1/audit/erasures":           admin,
	"POST /v1/join-tokens":              admin,
	"POST /v1/log-levels":               admin,
	"POST /v1/certificates":             admin,
}

// mayDo says whether role may do what pattern names.
func mayDo(role, pattern string) bool {
	need, known := needed[pattern]
	if !known {
		need = admin
	}
	have := slices.Index(roles, role)
	return have >= 0 && have >= slices.Index(roles, need)
}

// patternKey is that of the operation that a request is for.
type patternKey struct{}

// authorise holds a request, which admit has let in, to its peer's role.
func (s *Server) authorise(ctx context.Context, pattern string) error {
	p, _ := peerFrom(ctx)
	if p.id.IsZero() { // root, or the server's own user
		return nil
	}
	role := s.cfg.Admins.Role(p.id)
	if mayDo(role, pattern) {
		return nil
	}
	s.refused(ctx, p, true)
	if role == "" {
		role = "nobody"
	}
	need := needed[pattern]
	if need == "" {
		need = admin
	}
	return fault.New(fault.NotPermitted, "ask somebody who may, or give a role in the mesh file: admins: {"+p.String()+": {role: "+need+"}}",
		"%s is %s here, and this needs %s", p, role, need)
}
