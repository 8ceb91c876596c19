package control_test

import (
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/snapshot"
)

func TestKeyIsShownOnceAndRunsAtOnce(t *testing.T) {
	t.Parallel()
	h := applied(t)
	got, err := h.client.CreateKey(t.Context(), api.KeyRequest{Name: "ci", Scopes: []string{"orders.read", "a", "a"}, ExpiresIn: 3600})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := authn.ParseKey(got.Secret); err != nil || id != got.Key.ID {
		t.Errorf("the key parses as %q, %v", id, err)
	}
	if diff := cmp.Diff([]string{"a", "orders.read"}, got.Key.Scopes); diff != "" {
		t.Error(diff)
	}
	if d := got.Key.NotAfter.Sub(got.Key.Created); d != time.Hour {
		t.Errorf("it lives %s", d)
	}
	_, keys := h.runtime.running()
	if len(keys) != 1 || keys[0].Digest != sha256.Sum256([]byte(got.Secret)) {
		t.Errorf("the gateways know %+v", keys)
	}
	for _, e := range h.events {
		if strings.Contains(string(e.Body), got.Secret) {
			t.Error("the key is in the log")
		}
	}
	list, err := h.client.Keys(t.Context(), api.ListKeysParams{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]api.Key{got.Key}, list.Items); diff != "" {
		t.Error(diff)
	}
}

func TestRevokedKeyStopsAtOnce(t *testing.T) {
	t.Parallel()
	h := applied(t)
	key, err := h.client.CreateKey(t.Context(), api.KeyRequest{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.client.RevokeKey(t.Context(), key.Key.ID); err != nil {
		t.Fatal(err)
	}
	if _, keys := h.runtime.running(); len(keys) != 0 {
		t.Errorf("the gateways know %+v", keys)
	}
	for _, id := range []string{key.Key.ID, "nothing"} {
		if f := fault.All(h.client.RevokeKey(t.Context(), id)); len(f) != 1 || f[0].Code != fault.NotFound {
			t.Errorf("revoking %s again: %v", id, f)
		}
	}
	// A name is no id: several keys may have it.
	var ids []string
	for range 2 {
		key, err := h.client.CreateKey(t.Context(), api.KeyRequest{Name: "ci"})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, key.Key.ID)
	}
	f := fault.All(h.client.RevokeKey(t.Context(), "ci"))
	if len(f) != 1 || f[0].Code != fault.NotFound || !strings.HasPrefix(f[0].Hint, "a key is revoked by its id: parley key revoke ") ||
		!strings.Contains(f[0].Hint, ids[0]) || !strings.Contains(f[0].Hint, ids[1]) || strings.Contains(f[0].Hint, key.Key.ID) {
		t.Errorf("revoked by name: %+v", f)
	}
	if diff := cmp.Diff([]audit.Action{audit.ConfigApplied, audit.KeyCreated, audit.KeyRevoked, audit.KeyCreated, audit.KeyCreated}, h.actions()); diff != "" {
		t.Error(diff)
	}
	e, err := audit.Decode(h.events[2].Body) // the revocation
	if err != nil {
		t.Fatal(err)
	}
	if e.Object.Name != "ci" || e.Object.Serial != key.Key.ID {
		t.Errorf("recorded of %+v", e.Object)
	}
}

func TestKeyRequestsThatAreRefused(t *testing.T) {
	t.Parallel()
	h := applied(t)
	for name, r := range map[string]api.KeyRequest{
		"no name":     {},
		"long name":   {Name: strings.Repeat("n", 65)},
		"scope":       {Name: "n", Scopes: []string{"Orders"}},
		"empty scope": {Name: "n", Scopes: []string{""}},
		"many scopes": {Name: "n", Scopes: make([]string, 65)},
		"past":        {Name: "n", ExpiresIn: -1},
		"for ever":    {Name: "n", ExpiresIn: 1 << 60},
	} {
		if _, err := h.client.CreateKey(t.Context(), r); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.BadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.failWith(fault.New(fault.StoreFull, "", "no space left"))
	if _, err := h.client.CreateKey(t.Context(), api.KeyRequest{Name: "n"}); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.StoreFull {
		t.Errorf("with a full disk: %v", err)
	}
	if _, keys := h.runtime.running(); len(keys) != 0 || len(h.keys) != 0 {
		t.Errorf("a refused request left %d keys", len(h.keys))
	}
}

func TestKeyThatGatewaysDoNotKnowYetIsShown(t *testing.T) {
	t.Parallel()
	h := applied(t)
	h.runtime.mu.Lock()
	h.runtime.refuse = fault.New(fault.PortOccupied, "", "another process listens on :9443")
	h.runtime.mu.Unlock()
	key, err := h.client.CreateKey(t.Context(), api.KeyRequest{Name: "ci"})
	if err != nil || key.Secret == "" || key.Fault.Code != string(fault.NotRunning) {
		t.Errorf("%+v, %v", key, err)
	}
	if f := fault.All(h.client.RevokeKey(t.Context(), key.Key.ID)); len(f) != 1 || f[0].Code != fault.NotRunning {
		t.Errorf("revoked with %v", f)
	}
}

func TestLiveKeys(t *testing.T) {
	t.Parallel()
	key := func(id string, notAfter, revoked time.Time) control.Key {
		return control.Key{APIKey: snapshot.APIKey{ID: id, NotAfter: notAfter}, Revoked: revoked}
	}
	live := control.LiveKeys([]control.Key{
		key("endless", time.Time{}, time.Time{}),
		key("good", start.Add(time.Second), time.Time{}),
		key("ended", start, time.Time{}),
		key("revoked", time.Time{}, start),
	}, start)
	var got []string
	for _, k := range live {
		got = append(got, k.ID)
	}
	if diff := cmp.Diff([]string{"endless", "good"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestKeysArePaged(t *testing.T) {
	t.Parallel()
	h := serve(t)
	for _, id := range []string{"a", "b", "c"} {
		h.keys = append(h.keys, control.Key{APIKey: snapshot.APIKey{ID: id}})
	}
	first, err := h.client.Keys(t.Context(), api.ListKeysParams{Limit: 2})
	if err != nil || first.Next != "b" {
		t.Fatalf("%+v, %v", first, err)
	}
	rest, err := h.client.Keys(t.Context(), api.ListKeysParams{Limit: 2, Cursor: first.Next})
	if err != nil || len(rest.Items) != 1 || rest.Items[0].ID != "c" || rest.Next != "" {
		t.Errorf("%+v, %v", rest, err)
	}
	if _, err := h.client.Keys(t.Context(), api.ListKeysParams{Cursor: "z"}); len(fault.All(err)) != 1 {
		t.Errorf("a cursor of nothing: %v", err)
	}
}
