package web

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/proxy/route"
)

func TestWantsText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		accept string
		want   bool
	}{
		{"", false},
		{"*/*", false},
		{"text/html", true},
		{"text/*;q=0.5, */*", true},
		{"TEXT/plain", true},
		{"text/html, application/json", false},
		{"application/problem+json, text/plain", false},
		{"application/xml", false},
	} {
		if got := wantsText([]string{tt.accept}); got != tt.want {
			t.Errorf("%q: %v", tt.accept, got)
		}
	}
}

// Every code that the request path makes has words of its own, and none of them
// says anything of the inside.
func TestWording(t *testing.T) {
	t.Parallel()
	for _, code := range []string{
		"call_not_allowed", "credentials_required", "credentials_invalid", "credential_expired", "route_not_found", "not_ready", "audit_unavailable",
		route.ProcessRefused, route.PathRefused, route.HostRefused, route.HeaderRefused, route.MethodRefused, route.UpgradeRefused, route.WebSocketRefused, route.OriginRefused,
		route.UpstreamRefused, route.UpstreamUntrusted, route.UpstreamTimeout, route.UpstreamBusy, route.UpstreamClosed, route.ClientClosed, route.TrustWithdrawn, route.NoCredential,
	} {
		req := &call.Request{End: call.Edge, Target: "orders", Method: "GET", Path: "/a\"<b>"}
		p := newProblem(req, "ID1", code, 403)
		if p.Title == "The call was refused" || p.Detail == "" || !strings.HasSuffix(p.Help, "parley why ID1") {
			t.Errorf("%s: %+v", code, p)
		}
		if _, body := p.encode(nil); !json.Valid(body) || strings.Contains(string(body), "orders") {
			t.Errorf("%s: %s", code, body)
		}
	}
	if p := newProblem(&call.Request{}, "ID1", "something_new", 403); p.Detail == "" || p.Type != problemBase+"something-new" {
		t.Errorf("%+v", p)
	}
}
