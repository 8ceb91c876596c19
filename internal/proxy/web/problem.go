package web

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// problemBase begins the type of a problem (RFC 9457 section 3.1.1); the code
// with hyphens follows.
const problemBase = "https://parley.example/problems/"

// A problem is a refusal or failure as the client sees it (RFC 9457). It says
// what the client knows already and an id to quote, and nothing of rules, of
// other callers, or of addresses.
type problem struct {
	Type     string `json:"type"`
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail"`
	Instance string `json:"instance"`
	Code     string `json:"code"`
	Caller   string `json:"caller,omitempty"`
	Help     string `json:"help"`
}

// title and detail by code; %s stands for the called service, which a client of
// an edge does not know.
func wording(code string) (title, detail string) {
	switch code {
	case "call_not_allowed":
		return "This call is not allowed", ""
	case "credentials_required":
		return "Credentials are required", "The request carries no credential that counts here."
	case "credentials_invalid":
		return "The credentials are not valid", "The credential that the request carries is not valid."
	case "credential_expired":
		return "The caller's certificate has ended", "The certificate of this connection has ended; connect again with the renewed one."
	case "route_not_found":
		return "There is no such route", "No route leads from this host and path to a service."
	case "not_ready":
		return "Not ready yet", "This proxy has no configuration yet; try again soon."
	case "issuer_unavailable":
		return "The token cannot be judged now", "The keys of the token's issuer are not available; try again with the same token."
	case "audit_unavailable":
		return "The call cannot be recorded", "Calls that cannot be recorded are not made; try again later."
	case route.ProcessRefused:
		return "This process may not call from here", "The process at the other end of this connection is not the service that this address belongs to."
	case route.HTTPSRequired:
		return "HTTPS is required", "The request carries a credential and came over plaintext HTTP. Send it by HTTPS, and replace the credential: others may have read it."
	case route.PathRefused:
		return "The request target is not canonical", "The path or query can be read in more than one way, or is malformed."
	case route.HostRefused:
		return "The host is not valid", "The request names no host, or a malformed one."
	case route.HeaderRefused:
		return "The request header is not valid", "A header field is ambiguous, malformed or not allowed."
	case route.MethodRefused:
		return "The method is not allowed", "The request's method is not forwarded."
	case route.UpgradeRefused:
		return "The protocol cannot be changed", "Upgrades of the protocol are not offered here."
	case route.WebSocketRefused:
		return "The WebSocket handshake is not valid", "The request asks for WebSocket, and is no opening handshake of its version 13."
	case route.OriginRefused:
		return "This page may not call here", "The page that opens the WebSocket is of an origin that is not allowed here."
	case route.UpstreamBusy:
		return "The service is busy", "The call was allowed, and all connections to the service are taken; try again soon."
	case route.UpstreamTimeout:
		return "The service did not answer in time", "The call was allowed, and the service did not answer in time."
	case route.NoCredential:
		return "The call cannot be made now", "The proxy has no valid certificate to make the call with."
	case route.ClientClosed:
		return "The request was not complete", "The request's body ended early or is malformed."
	case route.UpstreamRefused, route.UpstreamUntrusted, route.UpstreamClosed, route.TrustWithdrawn:
		return "The service cannot be reached", "The call was allowed, and the service could not be reached."
	}
	return "The call was refused", "The call was refused."
}

// newProblem describes the refusal or failure code of req, recorded as id.
func newProblem(req *call.Request, id, code string, status int) *problem {
	title, detail := wording(code)
	p := &problem{
		Type:  problemBase + strings.ReplaceAll(code, "_", "-"),
		Title: title, Status: status, Detail: detail, Code: code,
		Instance: "urn:parley:decision:" + id,
		Caller:   req.Caller.Workload.String(),
		Help:     "Quote the decision, or run: parley why " + id,
	}
	if code == "call_not_allowed" {
		p.Detail = denial(req)
		if req.End == call.Inbound {
			p.Help = "Ask the owner of " + req.Target + " and quote the decision, or run: parley why " + id
		}
	}
	return p
}

// denial repeats the request: "orders does not accept POST /charge from web."
func denial(req *call.Request) string {
	subject := "This route"
	if req.End == call.Inbound {
		subject = req.Target
	}
	s := subject + " does not accept " + req.Method + " " + req.Path
	if req.End == call.Inbound && !req.Caller.Workload.IsZero() {
		s += " from " + req.Caller.Workload.Name()
	}
	return s + "."
}

// reword answers an edge's client in place of the callee's sidecar, which said to
// the gateway what the gateway may know: names of services and its own identity.
// The decision stays the sidecar's.
func (x *exchange) reword(id string, status int) {
	code := route.UpstreamRefused
	switch status {
	case http.StatusForbidden:
		code = "call_not_allowed"
	case http.StatusBadRequest:
		code = route.HeaderRefused
	case http.StatusGatewayTimeout:
		code = route.UpstreamTimeout
	}
	p := newProblem(&x.req, id, code, status)
	contentType, body := x.encode(p)
	status, x.grpc = x.req.Answer(status)
	x.finish("", status)
	v := x.req.Verdict
	v.ID = id
	x.answer(p, &v, contentType, body)
}

// encode is the problem in the form that accept asks for.
func (p *problem) encode(accept []string) (contentType string, body []byte) {
	if !wantsText(accept) {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		_ = e.Encode(p) // strings and a number: it cannot fail
		return "application/problem+json", []byte(b.String())
	}
	return "text/plain; charset=utf-8", []byte(strconv.Itoa(p.Status) + " " + p.Title + "\n" + p.Detail + "\n" + p.Help + "\n")
}

// wantsText says that the client accepts text and did not ask for JSON.
func wantsText(accept []string) bool {
	text := false
	for _, v := range accept {
		for part := range strings.SplitSeq(v, ",") {
			media, _, _ := strings.Cut(part, ";")
			switch media = strings.ToLower(strings.Trim(media, " \t")); {
			case strings.HasPrefix(media, "text/"):
				text = true
			case media == "application/json", media == "application/problem+json":
				return false
			}
		}
	}
	return text
}

// answer sets the fields of a refusal or failure and writes it.
func (p *problem) answer(w http.ResponseWriter, id string, v *call.Verdict, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h[route.Decision] = []string{id}
	if v.Challenge != "" && (p.Status == http.StatusUnauthorized || p.Status == http.StatusForbidden) {
		h.Set("WWW-Authenticate", v.Challenge)
	}
	if p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	if p.Code == route.WebSocketRefused {
		h["Sec-Websocket-Version"] = []string{route.WebSocketVersion} // RFC 6455 section 4.4
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body)
}
