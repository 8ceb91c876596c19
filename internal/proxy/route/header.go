package route

import (
	"net/http"
	"net/textproto"
	"strings"

	"github.com/parleymesh/parley/internal/call"
)

// Fields are a http.Header as call.Header.
type Fields http.Header

// Values implements call.Header.
func (f Fields) Values(name string) []string { return f[name] }

var _ call.Header = Fields(nil)

// Names of fields that the proxy sets.
const (
	Decision       = "Parley-Decision"
	RequestIDField = "X-Request-Id"
	TraceParent    = "Traceparent"
	TraceState     = "Tracestate"
	ForwardedFor   = "X-Forwarded-For"
	ForwardedProto = "X-Forwarded-Proto"
	ForwardedHost  = "X-Forwarded-Host"
	// Plaintext marks a request that came without TLS and with no identity, and was let
	// in because its service observes who still does so. Its value is "observed".
	Plaintext = "Parley-Plaintext"
	// Probe says of an allowed probe of `parley verify` who answered it: the sidecar
	// (ProbeAnswered), or the application (ProbeForwarded).
	Probe = "Parley-Probe"
)

// Values of Probe.
const (
	ProbeAnswered  = "answered"
	ProbeForwarded = "forwarded"
)

// Reserved says whether a field of that name, in any case, is the proxy's to
// set and is dropped when a client sends it.
func Reserved(name string) bool {
	if len(name) < len("forwarded") {
		return false // nothing shorter is reserved
	}
	switch name[0] | 0x20 {
	case 'p':
		return hasPrefix(name, "parley-")
	case 'f':
		return strings.EqualFold(name, "forwarded")
	case 'x':
		return hasPrefix(name, "x-parley-") || hasPrefix(name, "x-forwarded-") || hasPrefix(name, "x-spiffe-") ||
			strings.EqualFold(name, "x-real-ip") || strings.EqualFold(name, "x-original-url") || strings.EqualFold(name, "x-rewrite-url")
	}
	return false
}

// HopByHop says whether a field of that name belongs to one connection only (RFC
// 9110 section 7.6.1, and what came before it). Te is one too: CleanHeader keeps
// its one meaning that may travel.
func HopByHop(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Proxy-Authenticate", "Proxy-Authorization", "Http2-Settings":
		return true
	}
	return false
}

// CheckHeader refuses a request whose fields are ambiguous or ask for what is
// not offered: names with an underscore or outside of the token characters,
// which applications fold into other names; Connection options that could delete
// a field of ours; an upgrade to anything but WebSocket, see AsksUpgrade; a second
// Authorization, Host or Content-Length; and control characters in a value.
func CheckHeader(h http.Header) error {
	for name, values := range h {
		if err := checkName(name); err != nil {
			return err
		}
		for _, v := range values {
			if !validValue(v) {
				return badHeader("a header value has a control character")
			}
		}
	}
	for _, single := range []string{"Authorization", "Host", "Content-Length", "Content-Type"} {
		if len(h[single]) > 1 {
			return badHeader("the header has " + single + " more than once")
		}
	}
	for _, other := range []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"} {
		if len(h[other]) > 0 {
			return badHeader("the header asks for another method by " + other)
		}
	}
	if up := h["Upgrade"]; len(up) > 1 || len(up) == 1 && !strings.EqualFold(up[0], "websocket") || len(h["Http2-Settings"]) > 0 {
		return NoUpgrade()
	}
	return checkConnection(h["Connection"])
}

func checkName(name string) error {
	if name == "" {
		return badHeader("a header name is empty")
	}
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '_':
			return badHeader("a header name has an underscore, which applications read as a hyphen")
		case !isAlnum(c) && strings.IndexByte("!#$%&'*+-.^`|~", c) < 0:
			return badHeader("a header name has a character that no name has")
		}
	}
	return nil
}

// validValue is field-content of RFC 9110 section 5.5; bytes from 0x80 are
// opaque and allowed.
func validValue(v string) bool {
	for i := 0; i < len(v); i++ {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func checkConnection(values []string) error {
	for _, v := range values {
		for token := range strings.SplitSeq(v, ",") {
			switch token = strings.Trim(token, " \t"); {
			case token == "", strings.EqualFold(token, "close"), strings.EqualFold(token, "keep-alive"), strings.EqualFold(token, "te"), strings.EqualFold(token, "upgrade"):
			default:
				return badHeader("the Connection field has an option other than close, keep-alive, te and upgrade")
			}
		}
	}
	return nil
}

// NoUpgrade refuses an upgrade that is not offered.
func NoUpgrade() error {
	return &Refusal{UpgradeRefused, http.StatusNotImplemented, "the request asks for an upgrade of the protocol"}
}

// CheckMethod refuses what is no method, and CONNECT and TRACE, which are
// requests to the proxy itself.
func CheckMethod(method string) error {
	if method == "" || len(method) > 32 {
		return &Refusal{MethodRefused, http.StatusMethodNotAllowed, "the method is empty or too long"}
	}
	for i := 0; i < len(method); i++ {
		if c := method[i]; (c < 'A' || c > 'Z') && c != '-' && c != '_' && (c < '0' || c > '9') {
			return &Refusal{MethodRefused, http.StatusMethodNotAllowed, "the method is not in upper case"}
		}
	}
	if method == http.MethodConnect || method == http.MethodTrace {
		return &Refusal{MethodRefused, http.StatusMethodNotAllowed, "CONNECT and TRACE are not forwarded"}
	}
	return nil
}

// CleanRequest copies what of a checked header travels on: neither reserved nor
// hop-by-hop, with "TE: trailers" kept because gRPC needs it. With fromGateway
// the fields stay that a gateway of the mesh set: those of X-Forwarded, each if it is
// one, and call.IdentityField as it came, for the gate to judge. The values are
// shared with h.
func CleanRequest(h http.Header, fromGateway bool) http.Header {
	out := make(http.Header, len(h)+6)
	for name, values := range h {
		switch {
		case HopByHop(name), name == "Host", name == "Content-Length":
		case Reserved(name):
			if fromGateway && fromGatewayOnly(name, len(values)) {
				out[name] = values
			}
		default:
			out[name] = values
		}
	}
	for _, v := range h["Te"] {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(token, " \t"), "trailers") {
				out["Te"] = []string{"trailers"}
			}
		}
	}
	return out
}

func fromGatewayOnly(name string, values int) bool {
	switch name {
	case ForwardedFor, ForwardedProto, ForwardedHost:
		return values == 1
	}
	return name == call.IdentityField
}

// CleanResponse copies src's fields to dst without those of the connection. The
// fields that are Parley's own pass only fromMesh, when another proxy of the mesh
// sent them.
func CleanResponse(dst, src http.Header, fromMesh bool) {
	var named []string
	for _, v := range src["Connection"] {
		for token := range strings.SplitSeq(v, ",") {
			named = append(named, textproto.CanonicalMIMEHeaderKey(strings.Trim(token, " \t")))
		}
	}
next:
	for name, values := range src {
		if HopByHop(name) || !fromMesh && (hasPrefix(name, "parley-") || hasPrefix(name, "x-parley-")) {
			continue
		}
		for _, n := range named {
			if n == name {
				continue next
			}
		}
		dst[name] = values
	}
}

// TrailerAllowed says whether a request's trailer field of that name may travel: one that
// could change how the message is framed, routed or authenticated may not (RFC
// 9110 section 6.5.1), and neither may what no header may bring.
func TrailerAllowed(name string) bool {
	if checkName(name) != nil || Reserved(name) || HopByHop(name) {
		return false
	}
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Host", "Content-Length", "Content-Encoding", "Content-Type", "Content-Range", "Authorization",
		"Cookie", "Set-Cookie", "X-Api-Key", "Traceparent", "Tracestate", "X-Request-Id", "Expect", "Cache-Control":
		return false
	}
	return true
}

// ResponseTrailerAllowed is the same of a response. gRPC sends the metadata of an
// application there, under any name, so only what frames or describes the message,
// and what clients merge into their own state, is kept back. The decision passes
// fromMesh.
func ResponseTrailerAllowed(name string, fromMesh bool) bool {
	if fromMesh && name == Decision {
		return true
	}
	if Reserved(name) || HopByHop(name) {
		return false
	}
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Host", "Content-Length", "Content-Encoding", "Content-Type", "Content-Range", "Set-Cookie":
		return false
	}
	return true
}

func hasPrefix(s, lower string) bool {
	return len(s) >= len(lower) && strings.EqualFold(s[:len(lower)], lower)
}

func badHeader(reason string) error {
	return &Refusal{Code: HeaderRefused, Status: http.StatusBadRequest, Reason: reason}
}
