package control_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
)

func TestBan(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	h.runtime.behind = []control.Confirmation{{Host: "a", Confirmed: true}, {Host: "b", Note: "it is not connected"}}
	w := try(h, newRequest("POST", "/v1/bans", `{"identity":"web","reason":"key leaked"}`))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"confirmed":false`) || !strings.Contains(w.Body.String(), "spiffe://shop.example/web") {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	if len(h.runtime.banned) != 1 || h.runtime.banned[0].String() != "spiffe://shop.example/web" {
		t.Errorf("told %v", h.runtime.banned)
	}
	// Once more is told once more, and is not another act.
	if w := try(h, newRequest("POST", "/v1/bans", `{"identity":"spiffe://shop.example/web"}`)); w.Code != http.StatusOK {
		t.Errorf("again: %d %s", w.Code, w.Body)
	}
	if w := try(h, newRequest("GET", "/v1/bans", "")); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "key leaked") {
		t.Errorf("list: %d %s", w.Code, w.Body)
	}
	if w := try(h, newRequest("GET", "/v1/status", "")); !strings.Contains(w.Body.String(), "key leaked") {
		t.Errorf("status: %s", w.Body)
	}
	if w := try(h, newRequest("DELETE", "/v1/bans?identity=web", "")); w.Code != http.StatusOK {
		t.Errorf("unban: %d %s", w.Code, w.Body)
	}
	if len(h.runtime.banned) != 0 {
		t.Errorf("still told %v", h.runtime.banned)
	}
	if w := try(h, newRequest("DELETE", "/v1/bans?identity=web", "")); w.Code != http.StatusNotFound {
		t.Errorf("unban of nobody: %d %s", w.Code, w.Body)
	}
	if diff := cmp.Diff([]audit.Action{audit.IdentityBanned, audit.IdentityUnbanned}, h.memory.actions()); diff != "" {
		t.Error(diff)
	}
}

func TestBanNames(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	for name, want := range map[string]string{
		"web": "spiffe://shop.example/web", "gateway/edge": "spiffe://shop.example/gateway/edge",
		"host/web1": "spiffe://shop.example/parley/agent/web1", "spiffe://shop.example/x": "spiffe://shop.example/x",
		"": "", "a/b": "", "spiffe://other.example/web": "", "spiffe://shop.example": "", "we b": "", "host/": "",
		"spiffe://shop.example/parley/server": "", "host/a/b": "spiffe://shop.example/parley/agent/a/b",
	} {
		w := try(h, newRequest("POST", "/v1/bans", `{"identity":`+quoted(name)+`}`))
		if want == "" {
			if w.Code != http.StatusBadRequest {
				t.Errorf("%q: %d %s", name, w.Code, w.Body)
			}
		} else if !strings.Contains(w.Body.String(), `"id":"`+want+`"`) {
			t.Errorf("%q: %d %s, want %s", name, w.Code, w.Body, want)
		}
	}
}

func TestJoinToken(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	for body, code := range map[string]int{
		`{"host":"web1"}`: 201, `{"host":"web1","expires_in":60}`: 201, `{"host":"web2"}`: 404, `{"host":""}`: 400,
		`{"host":"web1","expires_in":-1}`: 400, `{"host":"web1","expires_in":99999999999}`: 400, `{}`: 400, `{"host":"web1","x":1}`: 400,
	} {
		if w := try(h, newRequest("POST", "/v1/join-tokens", body)); w.Code != code {
			t.Errorf("%s: %d %s, want %d", body, w.Code, w.Body, code)
		}
	}
	if h.memory.joins != 2 {
		t.Errorf("%d tokens made", h.memory.joins)
	}
}
