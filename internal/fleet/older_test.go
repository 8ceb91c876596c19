package fleet_test

import (
	"strings"
	"testing"
	"time"
)

// An agent one version older, as bare JSON: it announces no capability, says what the
// first protocol has, and knows the fields of that only. What a server tells it of a
// mesh that asks for nothing new has to stay within them.
func TestOlderAgent(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	g := h.publish(h.shop(1))
	s := h.raw("a").open()
	if err := s.SendMsg(map[string]any{"hello": map[string]any{"protocol": 1, "version": "v0", "capabilities": []string{}, "host": "a", "now": time.Now()}}); err != nil {
		t.Fatal(err)
	}
	known := map[string]string{
		"":          "welcome update",
		"welcome":   "*", // whatever is said in it is passed over
		"update":    "generation revision needs snapshot bundle banned",
		"snapshot":  "version revision trust_domain leaf_ttl hosts services gateways rules api_keys members",
		"hosts":     "name id advertise",
		"services":  "name id runs_on runs_as inbound outbound",
		"runs_as":   "user group systemd exe sha256",
		"inbound":   "listen app protocol app_http2",
		"outbound":  "to to_id listen protocol endpoints",
		"gateways":  "name id runs_on listen cert_file key_file hosts routes",
		"bundle":    "trust_domain sequence roots jwt_keys",
		"rules":     "*",
		"endpoints": "",
	}
	var check func(of string, v any)
	check = func(of string, v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				check(of, x)
			}
		case map[string]any:
			for k, x := range v {
				if known[of] == "*" {
					continue
				}
				if !strings.Contains(" "+known[of]+" ", " "+k+" ") {
					t.Errorf("%q in %q is not known to an older agent: name it in Needs, or send it only to one that has the capability", k, of)
				}
				check(k, x)
			}
		}
	}
	go h.fleet.Settle(t.Context()) // which it does not know
	for range 2 {
		m := map[string]any{}
		if err := s.RecvMsg(&m); err != nil {
			t.Fatal(err)
		}
		check("", m)
		u, ok := m["update"].(map[string]any)
		if !ok {
			continue
		}
		if needs, _ := u["needs"].([]any); len(needs) != 0 {
			t.Errorf("it needs %v", needs)
		}
		if err := s.SendMsg(map[string]any{"report": map[string]any{
			"generation": u["generation"], "revision": 1, "fault": "", "delivery": "",
			"services":  []any{map[string]any{"name": "web", "id": h.ca.ID(t, "web"), "state": "ok", "serial": "1", "not_after": time.Now(), "renews_at": time.Now()}},
			"listeners": []any{map[string]any{"name": "l", "address": "a", "protocol": "http", "state": "ok", "note": ""}},
			"findings":  []any{map[string]any{"code": "c", "message": "m", "help": "h"}},
			"endpoints": []any{map[string]any{"service": "site", "address": "0.0.0.0:1"}},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it is current", func() bool { return len(h.behind(g)) == 0 && h.fleet.Hosts()[0].Current })
}
