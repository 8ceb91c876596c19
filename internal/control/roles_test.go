package control_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/identity"
)

func adminID(t testing.TB, name string) identity.ID {
	t.Helper()
	td, err := identity.ParseTrustDomain("shop.example")
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.AdminID(td, name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// as makes a request in the name of an administrator on another machine.
func (h *house) as(t testing.TB, name, method, target, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := newRequest(method, target, body)
	w := httptest.NewRecorder()
	h.server.Handler().ServeHTTP(w, r.WithContext(h.server.ConnContext(r.Context(), wire{id: adminID(t, name)})))
	return w
}

// Every operation of the document is given to a role by name.
func TestEveryOperationNeedsARole(t *testing.T) {
	t.Parallel()
	var want []string
	for _, op := range operations(t) {
		want = append(want, op.method+" "+op.path)
	}
	for pattern := range control.Needed {
		if !slices.Contains(want, pattern) {
			t.Errorf("%s is no operation", pattern)
		}
	}
	for _, op := range want {
		if control.Needed[op] == "" {
			t.Errorf("%s is given to no role", op)
		}
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	rank := map[string]int{"viewer": 1, "operator": 2, "admin": 3}
	h := newServer(t)
	for role := range rank {
		h.admins[adminID(t, role)] = role
	}
	for _, op := range operations(t) {
		target := strings.NewReplacer("{number}", "1", "{id}", "a", "{log}", "server").Replace(op.path)
		if op.path == "/v1/audit/tail" {
			target += "?follow=false"
		}
		for _, who := range []string{"viewer", "operator", "admin", "nobody"} {
			w := h.as(t, who, op.method, target, "")
			refused := w.Code == http.StatusForbidden
			if may := rank[who] >= rank[control.Needed[op.method+" "+op.path]]; may == refused {
				t.Errorf("%s %s %s: %d %s", who, op.method, op.path, w.Code, w.Body)
			}
		}
	}
}

func TestAnAdministratorIsNamed(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	h.admins[adminID(t, "alice")] = "operator"
	if w := h.as(t, "alice", "POST", "/v1/keys", `{"name":"ci"}`); w.Code != http.StatusCreated {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	found := h.memory.last(t)
	if found.Action != audit.KeyCreated || found.Actor.User != "alice" || found.Actor.ID != adminID(t, "alice") || found.Actor.UID != nil {
		t.Errorf("recorded %+v", found.Actor)
	}
	// The role is asked for each time: taken away, it is gone with the next request.
	delete(h.admins, adminID(t, "alice"))
	if w := h.as(t, "alice", "GET", "/v1/status", ""); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "alice is nobody here") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestIssueToAdministrators(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	h.admins[adminID(t, "alice")] = "viewer"
	for body, code := range map[string]int{
		`{"identity":"admin/alice","csr":"AAEC"}`:   201,
		`{"identity":"admin/mallory","csr":"AAEC"}`: 422,
		`{"identity":"web","csr":"AAEC"}`:           400,
		`{"identity":"admin/","csr":"AAEC"}`:        400,
		`{"identity":"admin/a/b","csr":"AAEC"}`:     400,
		`{"identity":"admin/alice","csr":"?"}`:      400,
	} {
		if w := try(h, newRequest("POST", "/v1/certificates", body)); w.Code != code {
			t.Errorf("%s: %d %s, want %d", body, w.Code, w.Body, code)
		}
	}
}

// Who loses the role while waiting for their turn does not get it.
func TestRoleIsLostWhileWaiting(t *testing.T) {
	t.Parallel()
	h := newServer(t)
	h.admins[adminID(t, "alice")] = "operator"
	h.server.Hold()
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- h.as(t, "alice", "POST", "/v1/bans", `{"identity":"web"}`) }()
	select {
	case w := <-done:
		t.Fatalf("it did not wait: %d", w.Code)
	case <-time.After(100 * time.Millisecond):
	}
	roleChange.Lock()
	h.admins[adminID(t, "alice")] = "viewer"
	roleChange.Unlock() // the request reads it once it has its turn
	h.server.Release()
	if w := <-done; w.Code != http.StatusForbidden {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if len(h.runtime.banned) != 0 {
		t.Errorf("banned %v", h.runtime.banned)
	}
}
