package parley

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// Handler lets next serve the requests of the callers in Allow, with the Caller
// in the request's context (CallerFrom). Anybody else gets 403 and an
// application/problem+json body with a decision id, which is in the field
// Parley-Decision and in the log too; before the workload has started everybody
// gets 503. The request has to come by mutual TLS; whether by a listener of Listen or by
// another does not matter, since the certificate is verified here.
//
// What a gateway of this trust domain says of its own caller in the field
// Parley-Identity is verified too, and is in the Caller as its Origin; one that is
// not good is 403. From anybody else next never sees such a field.
//
// A request that next makes by a client of HTTPClient, with the context of the one
// that it serves, belongs to the same trace (W3C Trace Context) and has the same
// X-Request-Id, unless it has a Traceparent already.
func (w *Workload) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		r := w.running.Load()
		if r == nil {
			writeProblem(rw, http.StatusServiceUnavailable, "not_ready", audit.NewID(clock.System{}.Now()), "")
			return
		}
		var cs tls.ConnectionState
		if req.TLS != nil {
			cs = *req.TLS
		}
		id, err := r.peers.verify(r, cs)
		if err != nil || !r.allow[id] {
			r.forbid(rw, req, code(err), id)
			return
		}
		caller := r.caller(id, cs)
		req, caller.Origin, err = r.origin(req, id, cs.PeerCertificates[0])
		if err != nil {
			r.log.Info("identity refused", "caller", id.String(), "error", err, (&passage{header: req.Header}).attrs())
			r.forbid(rw, req, code(nil), id)
			return
		}
		req = withoutTrailers(req)
		ctx := withPassage(context.WithValue(req.Context(), callerKey{}, caller), &passage{header: req.Header})
		next.ServeHTTP(rw, req.WithContext(ctx))
	})
}

// forbid answers 403 and says so in the log. caller is proven unless code says
// that the credentials are not.
func (r *running) forbid(rw http.ResponseWriter, req *http.Request, code string, caller identity.ID) {
	id := audit.NewID(r.clk.Now())
	r.log.Info("call refused", "decision", id, "reason", code, "caller", caller.String(), "method", req.Method, "path", req.URL.EscapedPath(), (&passage{header: req.Header}).attrs())
	if code == "credentials_invalid" {
		caller = identity.ID{}
	}
	writeProblem(rw, http.StatusForbidden, code, id, caller.String())
}

// A problem is a refusal as the caller sees it (RFC 9457), the same as a
// sidecar's.
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

func writeProblem(rw http.ResponseWriter, status int, code, id, caller string) {
	p := problem{
		Type: "https://parley.example/problems/" + strings.ReplaceAll(code, "_", "-"), Title: "This call is not allowed",
		Status: status, Code: code, Caller: caller,
		Detail:   "The service does not accept this call.",
		Instance: "urn:parley:decision:" + id,
		Help:     "Ask the owner of the service and quote the decision.",
	}
	body, _ := json.MarshalIndent(p, "", "  ") // strings and a number: it cannot fail
	rw.Header().Set("Content-Type", "application/problem+json")
	rw.Header().Set("Cache-Control", "no-store")
	rw.Header().Set("Parley-Decision", id)
	rw.WriteHeader(p.Status)
	_, _ = rw.Write(append(body, '\n'))
}
