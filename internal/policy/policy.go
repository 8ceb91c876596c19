// Package policy is may they: typed rules, compiled and indexed once a revision,
// and the pure function Decide. No match is deny. There is no rule that denies,
// so no order of rules can turn a deny into an allow.
//
// It refuses to fetch, to authenticate and to know the time.
package policy

import "github.com/parleymesh/parley/internal/identity"

// A Rule allows some callers some calls of one target. Empty Methods or Paths
// mean any; an empty From and an empty Any together match nobody.
type Rule struct {
	// ID is stable within a revision and names the place in the mesh file:
	// "orders.allow[0]", "gateway.edge.routes[1]".
	ID string `json:"id"`
	// Target is a service's name, or an edge route ("edge/routes[1]").
	Target string `json:"target"`
	// From are the workload identities that may call.
	From []identity.ID `json:"from,omitempty"`
	// Any are the credentials of an edge route: one satisfied requirement is
	// enough. A rule with both From and Any holds for either.
	Any []Requirement `json:"any,omitempty"`
	// Methods are HTTP methods in upper case.
	Methods []string `json:"methods,omitempty"`
	// Paths are patterns over the canonical path: a segment is literal, or *
	// for exactly one segment; a last segment ** stands for any number, none
	// included, so /orders/** holds for /orders and /orders/7/items.
	Paths []string `json:"paths,omitempty"`
	// File and Line say where the rule stands in the mesh file.
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
}

// A Requirement is one way to be let in at an edge.
type Requirement struct {
	Kind RequirementKind `json:"kind"`
	// Issuer and Audience are of a JWT: exactly its iss, and one of its aud.
	Issuer   string `json:"issuer,omitempty"`
	Audience string `json:"audience,omitempty"`
	// Scopes must all be carried by the credential.
	Scopes []string `json:"scopes,omitempty"`
}

// A RequirementKind is a kind of credential.
type RequirementKind string

// The kinds.
const (
	APIKey RequirementKind = "api_key" // an API key made by `parley key create`
	JWT    RequirementKind = "jwt"     // a token of an issuer that the mesh file names
	Public RequirementKind = "public"  // nobody needs to say who they are; written out on purpose
)

// A Query is everything a decision depends on.
type Query struct {
	Target string
	Caller identity.Caller
	// Method and Path are empty for TCP; rules with Methods or Paths then do
	// not match.
	Method, Path string
}

// A Reason says why a decision is what it is. Reasons are stable codes.
type Reason string

// The reasons.
const (
	Allowed          Reason = "allowed"
	NoRules          Reason = "no_rules"           // the target exists, and nobody may call it
	UnknownTarget    Reason = "unknown_target"     // no such service or route in this revision
	CallerNotAllowed Reason = "caller_not_allowed" // no rule names the caller
	MethodNotAllowed Reason = "method_not_allowed" // a rule names caller and path, not the method
	PathNotAllowed   Reason = "path_not_allowed"   // a rule names the caller, not the path
	NoCredential     Reason = "no_credential"      // the edge route wants a credential, none came
	WrongAudience    Reason = "jwt_audience"       // the token is for somebody else
	ScopeMissing     Reason = "scope_missing"      // the credential lacks a scope
)

// A Decision is allow or deny, with the rule and the reason.
type Decision struct {
	Allow bool
	// Rule is the rule that allowed, or for a deny the nearest one, if any
	// concerns the caller.
	Rule     string
	Reason   Reason
	Revision int64
}
