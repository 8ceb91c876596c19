package link_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls/xtest"
)

var sameIdentity = cmp.Options{
	cmp.Comparer(func(a, b identity.ID) bool { return a == b }), cmp.Comparer(func(a, b identity.TrustDomain) bool { return a == b }),
}

func TestCodecIsStrict(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"nothing": "", "no JSON": "x", "unknown": `{"report":{"generation":1},"override":true}`, "unknown within": `{"report":{"generation":1,"trusted":true}}`,
		"unknown in a list": `{"report":{"endpoints":[{"service":"a","address":"b","weight":9}]}}`, "two": `{"report":{}}{}`, "trailing": `{"report":{}}x`,
		"type": `{"report":[]}`, "number": `{"report":{"generation":-1}}`, "identity": `{"report":{"services":[{"id":"http://x"}]}}`, "list": `[]`,
	} {
		var m link.AgentMessage
		if err := (link.Codec{}).Unmarshal([]byte(text), &m); !errors.Is(err, link.ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var m link.AgentMessage
	if err := (link.Codec{}).Unmarshal([]byte(`{"report":{"generation":3}}`+"\n"), &m); err != nil || m.Report.Generation != 3 {
		t.Errorf("%+v, %v", m, err)
	}
}

// The one message that every version has to understand of every other one: who it
// is, which protocol it speaks and what it can.
func TestHelloOfALaterVersionIsRead(t *testing.T) {
	t.Parallel()
	for text, protocol := range map[string]int{
		`{"hello":{"protocol":2,"version":"v9","region":"eu","host":"a"}}`:                                           2,
		`{"hello":{"protocol":1,"version":"v2","now":"2026-01-01T00:00:00Z","capabilities":["x"],"load":{"cpu":1}}}`: 1,
	} {
		var m link.AgentMessage
		if err := (link.Codec{}).Unmarshal([]byte(text), &m); err != nil || m.Hello.Protocol != protocol {
			t.Errorf("%s: %v", text, err)
		}
	}
	var m link.ServerMessage
	if err := (link.Codec{}).Unmarshal([]byte(`{"welcome":{"protocol":1,"motd":"hi"}}`), &m); err != nil || m.Welcome.Protocol != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	if err := (link.Codec{}).Unmarshal([]byte(`{"welcome":{"protocol":"one"}}`), &m); err == nil {
		t.Error("a protocol that is no number is read")
	}
}

func TestUpdateRoundTrip(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	want := updateOf(t, ca, "a", 3)
	var w link.WireUpdate
	if err := (link.Codec{}).Unmarshal(must((link.Codec{}).Marshal(must(link.NewWireUpdate(want)))), &w); err != nil {
		t.Fatal(err)
	}
	got := must(w.Update())
	if diff := cmp.Diff(want.Snapshot, got.Snapshot, sameIdentity); diff != "" || got.Generation != 7 || got.Banned[0] != want.Banned[0] || !got.Bundle.Roots[0].Equal(ca.Root) {
		t.Errorf("%s%+v", diff, got)
	}
}

// Every object of an update refuses a field that is not known: it could be a
// restriction that nobody would enforce.
func TestUnknownFieldAnywhereInAnUpdate(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	good := must(json.Marshal(must(link.NewWireUpdate(updateOf(t, ca, "a", 3)))))
	var doc map[string]any
	if err := json.Unmarshal(good, &doc); err != nil {
		t.Fatal(err)
	}
	read := func() error {
		var w link.WireUpdate
		if err := (link.Codec{}).Unmarshal(must(json.Marshal(doc)), &w); err != nil {
			return err
		}
		_, err := w.Update()
		return err
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	n := 0
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				walk(at+"[]", x)
			}
		case map[string]any:
			for k, x := range v {
				walk(at+"."+k, x)
			}
			if strings.HasSuffix(at, ".jwt_keys") {
				return // its keys are key ids
			}
			n++
			v["only_if"] = "new"
			if err := read(); err == nil {
				t.Errorf("taken with another field in %s", at)
			}
			delete(v, "only_if")
		}
	}
	walk("update", doc)
	if n < 6 {
		t.Errorf("%d objects: the update has nothing in it", n)
	}
}

func TestUpdateIsRefused(t *testing.T) {
	t.Parallel()
	ca, other := xtest.NewCA(t, "shop.example"), xtest.NewCA(t, "other.example")
	for name, change := range map[string]func(*link.WireUpdate){
		"a need":         func(w *link.WireUpdate) { w.Needs = []string{"quantum"} },
		"no bundle":      func(w *link.WireUpdate) { w.Bundle = nil },
		"no root":        func(w *link.WireUpdate) { w.Bundle.Roots = nil },
		"no certificate": func(w *link.WireUpdate) { w.Bundle.Roots[0] = []byte("x") },
		"many roots":     func(w *link.WireUpdate) { w.Bundle.Roots = make([][]byte, 33) },
		"another mesh's": func(w *link.WireUpdate) { w.Bundle = must(link.NewBundle(bundleOf(other))) },
		"a key":          func(w *link.WireUpdate) { w.Bundle.JWTKeys = map[string][]byte{"k": {1}} },
		"revision":       func(w *link.WireUpdate) { w.Revision++ },
		"no snapshot":    func(w *link.WireUpdate) { w.Snapshot = nil },
		"another version": func(w *link.WireUpdate) {
			w.Snapshot = []byte(strings.Replace(string(w.Snapshot), `"version":1`, `"version":2`, 1))
		},
		"no trust domain":    func(w *link.WireUpdate) { w.Bundle.TrustDomain = "" },
		"snapshot of nobody": func(w *link.WireUpdate) { w.Snapshot = []byte(`{"version":1,"revision":3}`) },
	} {
		w := must(link.NewWireUpdate(updateOf(t, ca, "a", 3)))
		change(w)
		if u, err := w.Update(); err == nil || u != nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzUpdate(f *testing.F) {
	ca := xtest.NewCA(f, "shop.example")
	f.Add(must(json.Marshal(must(link.NewWireUpdate(updateOf(f, ca, "a", 3))))))
	f.Add([]byte(`{"generation":1,"snapshot":{"version":1},"bundle":{"trust_domain":"a","roots":["AA=="]}}`))
	f.Add([]byte(`{"needs":["x"]}`))
	f.Add([]byte(`{"snapshot":null,"bundle":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var w link.WireUpdate
		if (link.Codec{}).Unmarshal(data, &w) != nil {
			return
		}
		u, err := w.Update()
		if err != nil {
			return
		}
		if u.Snapshot.TrustDomain != u.Bundle.TrustDomain || len(u.Bundle.Roots) == 0 {
			t.Errorf("taken: %s", data)
		}
		again, err := link.NewWireUpdate(u)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.Update(); err != nil {
			t.Errorf("not read again: %v", err)
		}
	})
}

func FuzzAgentMessage(f *testing.F) {
	f.Add([]byte(`{"hello":{"protocol":1,"version":"v1","capabilities":["settle"],"host":"a","advertise":"10.0.0.1","now":"2026-01-01T00:00:00Z"}}`))
	f.Add([]byte(`{"report":{"generation":1,"revision":1,"services":[{"name":"a","id":"spiffe://td/a","state":"ok"}],"endpoints":[{"service":"a","address":"0.0.0.0:1"}]}}`))
	f.Add([]byte(`{"settled":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m link.AgentMessage
		if (link.Codec{}).Unmarshal(data, &m) != nil {
			return
		}
		var again link.AgentMessage
		if err := (link.Codec{}).Unmarshal(must((link.Codec{}).Marshal(m)), &again); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, again, sameIdentity, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); diff != "" {
			t.Error(diff)
		}
	})
}

// What passes for a verification: read whole or not at all, and read again as it was.
func FuzzVerification(f *testing.F) {
	f.Add([]byte(`{"run":"r","phase":"attack","edges":[{"caller":"web","caller_id":"spiffe://td/web","callee":"orders","callee_id":"spiffe://td/orders","http":true,"endpoints":["10.0.0.1:9443"],"allowed":{"method":"GET","path":"/"},"app":"127.0.0.1:8080"}]}`))
	f.Add([]byte(`{"run":"r","phase":"after_ban","results":[{"caller":"web","callee":"orders","check":"banned","outcome":"ok"}],"done":true}`))
	f.Add([]byte(`{"run":"r","phase":"over","edges":[{"caller_id":"spiffe://td/web/"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var o assess.Order
		var r assess.Report
		for _, pair := range [][2]any{{&o, new(assess.Order)}, {&r, new(assess.Report)}} {
			if (link.Codec{}).Unmarshal(data, pair[0]) != nil {
				continue
			}
			if err := (link.Codec{}).Unmarshal(must((link.Codec{}).Marshal(pair[0])), pair[1]); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(pair[0], pair[1], sameIdentity, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); diff != "" {
				t.Error(diff)
			}
		}
	})
}

// Of an error the other side learns what a person there may know.
func TestStatusCarriesFaultsOnly(t *testing.T) {
	t.Parallel()
	if link.Status(nil) != nil {
		t.Error("an error of nothing")
	}
	if err := link.Status(errors.New("canary")); strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
	err := link.Status(errors.Join(errors.New("canary"), fault.New(fault.JoinToken, "make another", "it is used")))
	if strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), "it is used") {
		t.Errorf("got %v", err)
	}
}
