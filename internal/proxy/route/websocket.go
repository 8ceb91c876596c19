package route

import (
	"crypto/sha1" // what RFC 6455 has; it protects nothing
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
)

// Fields of the opening handshake (RFC 6455 section 4).
const (
	webSocketKey     = "Sec-Websocket-Key"
	webSocketVersion = "Sec-Websocket-Version"
	webSocketAccept  = "Sec-Websocket-Accept"
)

// WebSocketVersion is the one version of the protocol.
const WebSocketVersion = "13"

// AsksUpgrade says that a checked header asks for WebSocket, or for an upgrade
// that it does not name.
func AsksUpgrade(h http.Header) bool {
	return len(h["Upgrade"]) > 0 || hasToken(h["Connection"], "upgrade")
}

// CheckWebSocket refuses what asks for WebSocket and is no proper opening handshake
// (RFC 6455 section 4.2.1), since a server that is less strict would read it in
// another way.
func CheckWebSocket(r *http.Request) error {
	h := r.Header
	written := strings.Join(h[webSocketKey], ",")
	key, err := base64.StdEncoding.Strict().DecodeString(written)
	switch {
	case r.Method != http.MethodGet:
		return badHandshake("a WebSocket handshake is a GET")
	case r.ProtoMajor != 1 || r.ProtoMinor != 1:
		return badHandshake("a WebSocket handshake is of HTTP/1.1")
	case r.ContentLength != 0:
		return badHandshake("a WebSocket handshake has no body")
	case len(h["Upgrade"]) != 1 || !strings.EqualFold(h["Upgrade"][0], "websocket"):
		return badHandshake("the upgrade is not to WebSocket alone")
	case !hasToken(h["Connection"], "upgrade"):
		return badHandshake("the Connection field does not name the upgrade")
	case len(h[webSocketVersion]) != 1 || h[webSocketVersion][0] != WebSocketVersion:
		return badHandshake("the version of WebSocket is not 13")
	case err != nil || len(key) != 16 || len(written) != 24: // line ends are skipped in decoding
		return badHandshake("Sec-WebSocket-Key is not 16 bytes in base64")
	}
	return nil
}

// Switched says that a response with status 101 agrees to the handshake with that
// key (RFC 6455 section 4.1): that its sender knows what it agrees to.
func Switched(h http.Header, key string) bool {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return len(h["Upgrade"]) == 1 && strings.EqualFold(h["Upgrade"][0], "websocket") && hasToken(h["Connection"], "upgrade") &&
		len(h[webSocketAccept]) == 1 && h[webSocketAccept][0] == base64.StdEncoding.EncodeToString(sum[:])
}

// WebSocketKey is the key of a checked handshake.
func WebSocketKey(h http.Header) string { return h.Get(webSocketKey) }

// CheckOrigin refuses a handshake that a page of a site makes which is not one of
// allowed, or, where none is named, not the one that it calls. A browser lets any
// page open a WebSocket to any host and sends that host's cookies along, and always
// says which page it was; what is no browser need not say anything.
func CheckOrigin(h http.Header, allowed []string, own string) error {
	origins := h["Origin"]
	if len(origins) == 0 {
		return nil
	}
	if len(allowed) == 0 {
		allowed = []string{own}
	}
	if len(origins) == 1 && slices.Contains(allowed, strings.ToLower(origins[0])) {
		return nil
	}
	return &Refusal{Code: OriginRefused, Status: http.StatusForbidden, Reason: "the page that opens the WebSocket is of another origin"}
}

// Origin is that of a host as the Host field has it, in the form that browsers send
// (RFC 6454 section 6.2).
func Origin(secure bool, host string) string {
	host = strings.ToLower(host)
	if secure {
		return "https://" + strings.TrimSuffix(host, ":443")
	}
	return "http://" + strings.TrimSuffix(host, ":80")
}

func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(t, " \t"), token) {
				return true
			}
		}
	}
	return false
}

func badHandshake(reason string) error {
	return &Refusal{Code: WebSocketRefused, Status: http.StatusBadRequest, Reason: reason}
}
