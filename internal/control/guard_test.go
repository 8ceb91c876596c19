package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// try sends r to h as an administrator.
func try(h *house, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	control.AsPeer(h.server.Handler(), 0).ServeHTTP(w, r)
	return w
}

// problem is w's, after what must hold for every error reply.
func problem(t testing.TB, w *httptest.ResponseRecorder) *api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("status %d without a problem: %q", w.Code, w.Body)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("a problem as %q", ct)
	}
	if p.Status != w.Code || p.Type != "urn:parley:fault:"+p.Code || p.Title == "" || p.Instance == "urn:parley:request:" || len(p.Faults) == 0 {
		t.Errorf("status %d: an incomplete problem %+v", w.Code, p)
	}
	for _, f := range p.Faults {
		if !strings.HasPrefix(f.Code, "PAR-") || f.Message == "" {
			t.Errorf("an incomplete fault %+v", f)
		}
	}
	return &p
}

func newRequest(method, target, body string, header ...string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "parley"
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = []string{header[i+1]}
	}
	return r
}

func TestGuardRefuses(t *testing.T) {
	t.Parallel()
	otherHost := newRequest("GET", "/v1/version", "")
	otherHost.Host = "rebound.example"
	for _, c := range []struct {
		name    string
		request *http.Request
		status  int
		code    fault.Code
	}{
		{"origin", newRequest("GET", "/v1/version", "", "Origin", "http://localhost"), 403, fault.NotPermitted},
		{"empty origin", newRequest("GET", "/v1/version", "", "Origin", ""), 403, fault.NotPermitted},
		{"fetch metadata", newRequest("GET", "/v1/version", "", "Sec-Fetch-Site", "same-origin"), 403, fault.NotPermitted},
		{"other host", otherHost, 403, fault.NotPermitted},
		{"unknown path", newRequest("GET", "/v1/nothing", ""), 404, fault.NotFound},
		{"root", newRequest("GET", "/", ""), 404, fault.NotFound},
		{"unclean path", newRequest("GET", "/v1//version", ""), 404, fault.NotFound},
		{"trailing slash", newRequest("GET", "/v1/version/", ""), 404, fault.NotFound},
		{"dot segment", newRequest("GET", "/v1/keys/../version", ""), 404, fault.NotFound},
		{"encoded slash", newRequest("GET", "/v1/audit/events/a%2fb", ""), 404, fault.NotFound},
		{"encoded letter", newRequest("GET", "/v1/%76ersion", ""), 404, fault.NotFound},
		{"wrong method", newRequest("DELETE", "/v1/version", ""), 405, fault.BadRequest},
		{"head", newRequest("HEAD", "/v1/audit/tail?follow=true", ""), 405, fault.BadRequest},
		{"unknown parameter", newRequest("GET", "/v1/audit/events?outcom=denied", ""), 400, fault.BadRequest},
		{"parameter twice", newRequest("GET", "/v1/audit/events?limit=1&limit=2", ""), 400, fault.BadRequest},
		{"malformed query", newRequest("GET", "/v1/audit/events?limit=%zz", ""), 400, fault.BadRequest},
		{"not a number", newRequest("GET", "/v1/audit/events?limit=x", ""), 400, fault.BadRequest},
		{"too many", newRequest("GET", "/v1/audit/events?limit=1001", ""), 400, fault.BadRequest},
		{"negative", newRequest("GET", "/v1/keys?limit=-1", ""), 400, fault.BadRequest},
		{"cursor", newRequest("GET", "/v1/audit/events?cursor=01", ""), 400, fault.BadRequest},
		{"cursor and newest", newRequest("GET", "/v1/audit/events?cursor=1&newest=true", ""), 400, fault.BadRequest},
		{"cursor and last", newRequest("GET", "/v1/audit/tail?cursor=1&last=1", ""), 400, fault.BadRequest},
		{"missing parameter", newRequest("GET", "/v1/config/diff?from=1", ""), 400, fault.BadRequest},
		{"revision", newRequest("GET", "/v1/config/revisions/x", ""), 400, fault.BadRequest},
		{"negative revision", newRequest("GET", "/v1/config/revisions/-1", ""), 404, fault.NotFound},
		{"unknown field", newRequest("POST", "/v1/config", `{"name":"p","text":"","dryrun":true}`), 400, fault.BadRequest},
		{"field in another case", newRequest("POST", "/v1/config", `{"name":"p","text":"","Dry_Run":true}`), 400, fault.BadRequest},
		{"field twice", newRequest("POST", "/v1/config", `{"name":"p","name":"q","text":""}`), 400, fault.BadRequest},
		{"type", newRequest("POST", "/v1/config", `{"name":7,"text":""}`), 400, fault.BadRequest},
		{"not JSON", newRequest("POST", "/v1/config", `trust_domain: x`), 400, fault.BadRequest},
		{"two documents", newRequest("POST", "/v1/config", `{"name":"p","text":""}{}`), 400, fault.BadRequest},
		{"an array", newRequest("POST", "/v1/keys", `[]`), 400, fault.BadRequest},
		{"null", newRequest("POST", "/v1/keys", `null`), 400, fault.BadRequest},
		{"no body", newRequest("POST", "/v1/keys", ""), 400, fault.BadRequest},
		{"form", newRequest("POST", "/v1/keys", `{"name":"p"}`, "Content-Type", "text/plain"), 400, fault.BadRequest},
		{"not UTF-8", newRequest("POST", "/v1/keys", "{\"name\":\"\xff\"}"), 400, fault.BadRequest},
		{"body of a GET", newRequest("GET", "/v1/status", `{}`), 400, fault.BadRequest},
		{"large", newRequest("POST", "/v1/config", `{"name":"p","text":"`+strings.Repeat("x", 9<<20)+`"}`), 413, fault.BadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newServer(t)
			w := try(h, c.request)
			if p := problem(t, w); w.Code != c.status || p.Code != string(c.code) {
				t.Errorf("got %d %s: %s", w.Code, p.Code, p.Detail)
			}
			if w.Code == 405 && w.Header().Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			if len(h.events) != 0 {
				t.Errorf("recorded %v", h.actions())
			}
		})
	}
}

func TestOnlyRootAndTheServersUserAdminister(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	h.server.SetUID(1000)
	for uid, want := range map[int]int{0: 200, 1000: 200, 1001: 403, 65534: 403, -1: 403} {
		w := httptest.NewRecorder()
		control.AsPeer(h.server.Handler(), uid).ServeHTTP(w, newRequest("GET", "/v1/version", ""))
		if w.Code != want {
			t.Errorf("uid %d got %d", uid, w.Code)
		}
		if want == 403 && problem(t, w).Code != string(fault.NotPermitted) {
			t.Errorf("uid %d got %s", uid, w.Body)
		}
	}
	w := httptest.NewRecorder()
	h.server.Handler().ServeHTTP(w, newRequest("GET", "/v1/version", ""))
	if w.Code != 403 {
		t.Errorf("a connection without credentials got %d", w.Code)
	}
}

func TestRefusedUserIsRecordedButCannotFillTheLog(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	for range 50 {
		control.AsPeer(h.server.Handler(), 1001).ServeHTTP(httptest.NewRecorder(), newRequest("POST", "/v1/audit/verify", ""))
	}
	if diff := cmp.Diff([]audit.Action{audit.AdminRefused}, h.actions()); diff != "" {
		t.Fatal(diff)
	}
	e, err := audit.Decode(h.events[0].Body)
	if err != nil {
		t.Fatal(err)
	}
	if e.Outcome != audit.Denied || e.Actor == nil || e.Actor.UID == nil || *e.Actor.UID != 1001 || e.Actor.PID != 42 {
		t.Errorf("recorded %+v", e)
	}
}

func TestPeerIsTheKernelsWord(t *testing.T) {
	t.Parallel()
	h := serve(t)
	conn, err := net.Dial("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if uid, ok := control.Peer(newServer(t).server.ConnContext(t.Context(), conn)); !ok || uid != os.Geteuid() {
		t.Errorf("uid %d, %v", uid, ok)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, ok := control.Peer(newServer(t).server.ConnContext(t.Context(), a)); ok {
		t.Error("a pipe has credentials")
	}
}

func TestPanicTellsNothing(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	h.runtime.panics = true
	w := try(h, newRequest("GET", "/v1/status", ""))
	p := problem(t, w)
	if w.Code != 500 || p.Code != string(fault.Internal) || strings.Contains(w.Body.String(), "canary") || strings.Contains(w.Body.String(), "goroutine") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	_, id, _ := strings.Cut(p.Instance, "urn:parley:request:")
	if len(id) != 32 || !strings.Contains(p.Faults[0].Help, id) || w.Header().Get("X-Request-Id") != id {
		t.Errorf("the id %q is not in %+v, or the answer's is %q", id, p.Faults, w.Header().Get("X-Request-Id"))
	}
	if line := h.logged.String(); !strings.Contains(line, `"request_id":"`+id+`"`) || strings.Contains(line, "canary") || !strings.Contains(line, "control_test.(*runtime)") {
		t.Errorf("the log says %s", line)
	}
}

func TestUnknownErrorTellsNothing(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	for _, err := range []error{errors.New("canary"), fault.New(fault.Internal, "", "canary")} {
		h.failWith(err)
		w := try(h, newRequest("POST", "/v1/keys", `{"name":"n"}`))
		if p := problem(t, w); w.Code != 500 || p.Code != string(fault.Internal) || strings.Contains(w.Body.String(), "canary") {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	}
}

func TestRepliesAreNotCached(t *testing.T) {
	t.Parallel()
	w := try(newServer(t), newRequest("GET", "/v1/version", ""))
	if w.Code != 200 || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestStoppingServerSaysSo(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.server.Hold() // as if another change were being made
	w := try(h, newRequest("POST", "/v1/keys", `{"name":"n"}`).WithContext(ctx))
	if p := problem(t, w); w.Code != 503 || p.Code != string(fault.Unreachable) {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}
