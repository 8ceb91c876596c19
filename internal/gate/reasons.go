package gate

import (
	"net/http"
)

// Codes that a client may see. They say what to do about a refusal and nothing
// about rules, other callers or why a credential was not good.
const (
	CodeNotAllowed          = "call_not_allowed"     // 403
	CodeCredentialsRequired = "credentials_required" // 401
	CodeCredentialsInvalid  = "credentials_invalid"  // 401
	CodeRouteNotFound       = "route_not_found"      // 404
	CodeNotReady            = "not_ready"            // 503
	CodeIssuerUnavailable   = "issuer_unavailable"   // 503
	CodeAuditUnavailable    = "audit_unavailable"    // 503
)

// Reasons of gate's own, for the record only. Those of rules are policy's.
const (
	ReasonNotReady          = "not_ready"          // no snapshot or no trust yet
	ReasonAuditUnavailable  = "audit_unavailable"  // events cannot be recorded now
	ReasonRouteNotFound     = "route_not_found"    // no route of the gateway matches
	ReasonRouteChanged      = "route_changed"      // the route is of another revision
	ReasonUnknownEnd        = "unknown_end"        // a listener that gate does not know: a defect
	ReasonOutbound          = "outbound"           // the caller's end, which decides nothing
	ReasonObserved          = "plaintext_observed" // no TLS, and its service observes who comes so
	ReasonNoIdentity        = "identity_missing"   // a mesh connection without a verified peer
	ReasonExpired           = "credential_expired" // the peer's certificate ended
	ReasonBanned            = "banned"             // the peer is banned
	ReasonNotMember         = "not_member"         // the peer is not in the mesh file
	ReasonTrustWithdrawn    = "trust_withdrawn"    // the peer's trust domain is trusted no more
	ReasonKeyMalformed      = "key_malformed"      // no API key, or a mistyped one
	ReasonKeyUnknown        = "key_unknown"        // made up, or revoked
	ReasonKeyExpired        = "key_expired"        // past its end
	ReasonKeySeveral        = "key_several"        // more than one credential
	ReasonTokenMalformed    = "jwt_malformed"      // no signed JWT in compact form
	ReasonTokenHeader       = "jwt_header"         // a header that is not accepted
	ReasonTokenAlgorithm    = "jwt_algorithm"      // another algorithm than its key's
	ReasonTokenType         = "jwt_type"           // a type that is not accepted of its issuer
	ReasonTokenIssuer       = "jwt_issuer"         // of an issuer that the route does not name
	ReasonTokenKeyUnknown   = "jwt_key_unknown"    // its issuer has no such key
	ReasonTokenSignature    = "jwt_signature"      // not signed by that key
	ReasonTokenClaims       = "jwt_claims"         // a claim is missing or malformed
	ReasonTokenExpired      = "jwt_expired"        // past its end
	ReasonTokenNotYet       = "jwt_not_yet"        // before its beginning
	ReasonTokenTooOld       = "jwt_too_old"        // issued longer ago than max_age
	ReasonTokenBound        = "jwt_bound"          // it is good only with a proof that is not verified here
	ReasonKeysUnavailable   = "jwks_unavailable"   // its issuer's keys are not there
	ReasonIdentityMalformed = "identity_malformed" // a gateway's identity that is no signed JWT
	ReasonIdentitySeveral   = "identity_several"   // more than one
	ReasonIdentityHeader    = "identity_header"    // of another type or algorithm
	ReasonIdentityKey       = "identity_key"       // for another certificate than the connection's
	ReasonIdentitySignature = "identity_signature" // not signed by that certificate's key
	ReasonIdentityClaims    = "identity_claims"    // a claim is missing or malformed
	ReasonIdentityIssuer    = "identity_issuer"    // of another than the connection's peer
	ReasonIdentityAudience  = "identity_audience"  // for another service
	ReasonIdentityExpired   = "identity_expired"   // past its end
	ReasonIdentityNotYet    = "identity_not_yet"   // before its beginning
	ReasonPlaintext         = "plaintext"          // what came was no TLS
	ReasonNoCertificate     = "certificate_missing"
	ReasonTLSVersion        = "tls_version"       // an older TLS than the listener speaks
	ReasonSlowHandshake     = "handshake_timeout" // the handshake took too long
	ReasonMalformedSVID     = "svid_malformed"    // a certificate that is no X509-SVID
	ReasonProbe             = "probe_certificate" // a certificate for probes elsewhere, or a probe without one
)

// Codes of Refuse that gate itself knows; any other is a request that was
// refused for its form.
const (
	CodeProcessRefused   = "process_not_service"  // a local process is not the listener's service
	CodeHandshakeRefused = "handshake_refused"    // a TLS peer was not admitted
	CodeConnections      = "connections_exceeded" // the listener has as many connections as it may
)

// formStatus is the HTTP status of a request that was refused for its form.
func formStatus(code string) int {
	switch code {
	case "method_refused":
		return http.StatusMethodNotAllowed
	case "origin_refused":
		return http.StatusForbidden
	case "upgrade_refused":
		return http.StatusNotImplemented
	case "https_required":
		return http.StatusForbidden
	case CodeRouteNotFound:
		return http.StatusNotFound
	}
	return http.StatusBadRequest
}
