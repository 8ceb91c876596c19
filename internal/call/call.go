// Package call is one request or connection as every room of the request path
// sees it. proxy fills a Request from what it parsed, gate answers a Verdict,
// proxy reports an Outcome. Data only.
//
// It refuses to parse, to decide and to record.
package call

import (
	"crypto/x509"
	"net/netip"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// An End is where on a call's way a listener stands.
type End string

// The ends.
const (
	Outbound End = "outbound" // the caller's sidecar: application to mTLS
	Inbound  End = "inbound"  // the callee's sidecar: mTLS to application
	Edge     End = "edge"     // the gateway: outside world to mTLS
)

// A Protocol is what a listener understands.
type Protocol string

// The protocols.
const (
	HTTP Protocol = "http"
	TCP  Protocol = "tcp"
)

// Probe is the application protocol (RFC 7301) of a connection that `parley verify`
// makes, by which its requests are told from calls, in TLS.ALPN. Over it goes HTTP/1.1
// to a service of HTTP; a service of TCP is told nothing and answers with one line.
const Probe = "parley-probe/1"

// Header is a read-only view of the parsed header fields.
type Header interface {
	// Values returns every value of the field, in order; name is in canonical
	// form. The slice is not to be changed.
	Values(name string) []string
}

// IdentityField is the header field by which a gateway tells a service whom it let
// in, and a sidecar its application: a JWT that package jose signs and verifies.
// From anybody else the field is dropped, as sidecars drop it that do not know it:
// to them it is one of the reserved names that begin with "Parley-".
const IdentityField = "Parley-Identity"

// A Peer is the other side of a TLS connection after verification; the zero
// Peer is one that presented no certificate.
type Peer struct {
	ID          identity.ID
	Serial      string // lower-case hexadecimal
	Fingerprint string // SHA-256 of the leaf, lower-case hexadecimal
	NotAfter    time.Time
	Leaf        *x509.Certificate
}

// TLS is how a connection is protected; the zero TLS says that it is not.
type TLS struct {
	Version string // "1.3"
	Cipher  string // "TLS_AES_128_GCM_SHA256"
	Group   string // "X25519MLKEM768"
	ALPN    string
	Resumed bool
	// Connection is the same at both ends of one TLS connection and of no
	// other: 16 bytes of keying material exported for this purpose (RFC 8446
	// section 7.5, label "EXPORTER-parley-connection"), in hexadecimal.
	Connection string
}

// A Process is a local process that connected, as attested. The zero Process is
// one that was not asked for.
type Process struct {
	PID int
	UID int
	Exe string // empty where it could not be read
}

// Trace is the W3C trace context of a request (Trace Context section 3.2):
// lower-case hexadecimal, empty where there is none.
type Trace struct {
	TraceID  string // 32 digits
	ParentID string // 16 digits: the span that sent the request to us
	SpanID   string // 16 digits: ours, sent on as the parent
	Sampled  bool
}

// A Request is one HTTP request or one TCP connection.
type Request struct {
	End      End
	Protocol Protocol
	// Listener names the listener in the snapshot: "orders.inbound",
	// "web.calls.orders", "gateway.edge".
	Listener string
	// Local is the service or gateway that runs the listener; LocalID its identity.
	Local   string
	LocalID identity.ID
	// Target is the service that is called. At the edge it is the matched
	// route's, empty where no route matched.
	Target string
	// PolicyTarget is what policy looks rules up by: the service at an inbound,
	// the route ("edge/routes[0]") at an edge. Outbound listeners decide nothing.
	PolicyTarget string
	// Revision is the one that the route was matched by. An edge is decided by the
	// rules of that same revision: names of routes count from 0 in each.
	Revision int64

	// Method, Host and Path are the canonical ones that will be forwarded; Path
	// is without the query. All are empty for TCP.
	Method, Host, Path string
	Header             Header
	// GRPC says that it is a call of gRPC, which is told a refusal or failure in its
	// own way; see Answer.
	GRPC bool
	// RequestID is the client's X-Request-Id where it is 1 to 64 characters of
	// A-Z a-z 0-9 . _ - and otherwise one that the proxy made.
	RequestID string
	Trace     Trace

	Remote netip.AddrPort // the other side of the connection
	// RemoteText is Remote as text, which all requests of a connection share; it may be
	// left empty.
	RemoteText string
	Client     netip.Addr // edge: who sent it, as trusted proxies tell; zero where Remote did
	Peer       Peer       // inbound: the caller's certificate
	TLS        TLS        // of the accepted connection
	// Plaintext says that an inbound's caller came without TLS: nobody knows who it is.
	Plaintext bool
	Process   Process // outbound: who connected
	Start     time.Time

	// Caller and Verdict are set by gate.
	Caller  identity.Caller
	Verdict Verdict
}

// A Verdict is gate's answer. Only Status, Code, Challenge and ID may be told to
// the caller; the rest is for the record.
type Verdict struct {
	Allow bool
	// ID is the decision id, a ULID; the event carries it as its own id.
	ID string
	// Status is the HTTP status of a refusal: 401, 403, 404, 429, 503.
	Status int
	// Code is the stable reason code that a client may see: "call_not_allowed",
	// "credentials_required", "credentials_invalid", "route_not_found",
	// "not_ready", "issuer_unavailable".
	Code string
	// Challenge is the WWW-Authenticate value of a 401, and of a 403 to a token.
	Challenge string

	// Rule, Reason and Revision say which rule of which revision decided and why.
	Rule     string
	Reason   string
	Revision int64
}

// An Outcome is how an allowed call ended, or the refusal that was sent.
type Outcome struct {
	// Status is the HTTP status sent to the client, 0 for TCP.
	Status int
	// GRPC is the status of gRPC that it was sent, nil for none.
	GRPC *int
	// Error is a reason code where the call failed after it was allowed:
	// "upstream_refused", "upstream_untrusted", "upstream_busy", "upstream_timeout",
	// "upstream_closed", "client_closed", "trust_withdrawn".
	Error string
	// Cause is that failure in words, for the log of operators alone: it is neither
	// recorded nor told. Nothing of what either side sent is in it.
	Cause error
	// BytesIn came from the client, BytesOut went to it: bodies only.
	BytesIn, BytesOut int64
	// Answered is when the upstream's answer began; zero where nobody looked.
	Answered, End time.Time
	// Upstream is the address that the call was forwarded to, Peer and TLS its
	// certificate and protection where it is TLS.
	Upstream     string
	UpstreamPeer Peer
	UpstreamTLS  TLS
}
