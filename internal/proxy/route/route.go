// Package route is what the halves of the proxy share before and after the
// decision: the canonical form of a request (path, host, header fields, trace
// context, request id), the route that it takes, and the names of the ways in
// which forwarding fails. It declares Gate, which the proxy asks and reports to.
//
// A request that could be read in two ways is refused here, with a reason, and
// never repaired: what one side repairs, the other reads differently, and that
// disagreement is how requests get around a decision.
//
// It refuses to decide who may call, and to read or write a connection.
package route

import (
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
)

// A Gate decides and records; package gate is one. It is safe for concurrent use.
type Gate interface {
	// Check decides. It sets r.Caller and r.Verdict and returns the latter.
	Check(r *call.Request) call.Verdict
	// Vouch is what a gateway says to the service to about the caller of r, which it
	// let in: the value of call.IdentityField, empty for nobody. own is the credential
	// of the connection that r goes on over.
	Vouch(r *call.Request, own *identity.Credential, to identity.ID) (string, error)
	// Done records the end of a call that was checked, allowed or not. It is
	// called exactly once for each Check, before the last byte of the response
	// leaves.
	Done(r *call.Request, o call.Outcome)
	// Refuse records a refusal that is the proxy's own and returns a verdict with
	// an id to quote. Neither Check nor Done is called for such a request.
	Refuse(r *call.Request, code string, err error) call.Verdict
}

// A Refusal is why a request, connection or process is refused before anything
// is decided. Code is stable and may be told to the client; the text of Reason is
// for the record.
type Refusal struct {
	Code   string
	Status int // HTTP status
	Reason string
}

// Error implements error.
func (r *Refusal) Error() string { return r.Reason }

// Codes of refusals.
const (
	PathRefused      = "path_refused"         // 400
	HostRefused      = "host_refused"         // 400
	HeaderRefused    = "header_refused"       // 400
	MethodRefused    = "method_refused"       // 405
	UpgradeRefused   = "upgrade_refused"      // 501
	WebSocketRefused = "websocket_refused"    // 400
	OriginRefused    = "origin_refused"       // 403
	ProcessRefused   = "process_not_service"  // 403, or a closed connection
	HandshakeRefused = "handshake_refused"    // a TLS alert
	Connections      = "connections_exceeded" // a closed connection
)
