package link_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/snapshot"
)

// withdraw is a withdrawal as a server says it.
func withdraw(t *testing.T, u *link.Update, generation int, change func(map[string]any)) string {
	t.Helper()
	w, err := link.NewWithdrawal(u)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	m["generation"] = generation
	if change != nil {
		change(m)
	}
	data, err = json.Marshal(map[string]any{"withdraw": m})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func numbered(generation int) func(map[string]any) {
	return func(m map[string]any) { m["generation"] = generation }
}

// An agent that is told what is withdrawn goes on by its last snapshot without that,
// and answers under the number of the withdrawal. It is let back in nowhere by it.
func TestWithdrawal(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	web, site, late := ca.ID(t, "web"), ca.ID(t, "site"), ca.ID(t, "late")
	u := updateOf(t, ca, "a", 3)
	u.Snapshot.Members = []identity.ID{web, site}
	u.Snapshot.APIKeys = []snapshot.APIKey{{ID: "k1", Scopes: []string{}}, {ID: "k2", Scopes: []string{}}}
	newer := updateOf(t, ca, "a", 4)
	newer.Snapshot.Members = []identity.ID{site, late}
	newer.Snapshot.APIKeys = []snapshot.APIKey{{ID: "k2", Scopes: []string{"more"}}, {ID: "k3"}}
	newer.Banned = []identity.ID{web}
	more := make(chan string)
	d := newDouble(t, ca, must(identity.ServerID(ca.Domain)), func(d *double, s grpc.ServerStream) error {
		go func() { // ends with the test
			for l := range more {
				_ = s.SendMsg(json.RawMessage(l))
			}
		}()
		return scripted(welcome, wire(t, u, numbered(7)))(d, s)
	})
	t.Cleanup(func() { close(more) })
	c := d.agent(slog.New(slog.DiscardHandler))
	first := watched(t, c, 0)
	c.Report(&link.Report{Generation: first.Generation, Revision: 3})
	d.report("in force", func(r map[string]any) bool { return r["generation"] == 7.0 })

	more <- withdraw(t, newer, 8, nil)
	next := watched(t, c, first.Generation)
	if s := next.Snapshot; s.Revision != 3 || !slices.Equal(s.Members, []identity.ID{site}) || len(s.APIKeys) != 1 || s.APIKeys[0].ID != "k2" || len(s.APIKeys[0].Scopes) != 0 || !slices.Equal(next.Banned, newer.Banned) {
		t.Errorf("it runs by %+v, banned %v", s, next.Banned)
	}
	c.Report(&link.Report{Generation: next.Generation, Revision: 3})
	d.report("withdrawn", func(r map[string]any) bool {
		return r["generation"] == 8.0 && r["revision"] == 3.0 && r["fault"] == nil
	})

	// One that cannot be right is refused by its number, and the last stays.
	more <- withdraw(t, updateOf(t, xtest.NewCA(t, "other.example"), "a", 4), 9, nil)
	d.report("refused", func(r map[string]any) bool {
		return r["generation"] == 9.0 && strings.Contains(fmt.Sprint(r["fault"]), "other.example")
	})
	more <- withdraw(t, newer, 10, func(m map[string]any) { m["bundle"].(map[string]any)["roots"] = []any{} })
	d.report("refused", func(r map[string]any) bool {
		return r["generation"] == 10.0 && strings.Contains(fmt.Sprint(r["fault"]), "without a root")
	})
	more <- wire(t, newer, numbered(11))
	if last := watched(t, c, next.Generation); last.Snapshot.Revision != 4 || len(last.Snapshot.Members) != 2 {
		t.Errorf("then it runs by %+v", last.Snapshot)
	}
}

// An agent that runs nothing yet confirms: there is nobody to keep out.
func TestWithdrawalBeforeAnySnapshot(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	d := newDouble(t, ca, must(identity.ServerID(ca.Domain)), scripted(welcome, withdraw(t, updateOf(t, ca, "a", 3), 5, nil)))
	d.agent(slog.New(slog.DiscardHandler))
	d.report("confirmed", func(r map[string]any) bool {
		return r["generation"] == 5.0 && r["revision"] == 0.0 && r["fault"] == nil
	})
}

func FuzzWithdrawal(f *testing.F) {
	ca := xtest.NewCA(f, "shop.example")
	last := updateOf(f, ca, "a", 3)
	last.Snapshot.APIKeys = []snapshot.APIKey{{ID: "k1"}}
	f.Add(must(json.Marshal(must(link.NewWithdrawal(last)))))
	f.Add([]byte(`{"generation":1,"bundle":{"trust_domain":"shop.example","roots":["AA=="]}}`))
	f.Add([]byte(`{"generation":1,"bundle":null,"banned":["spiffe://shop.example/web"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var w link.Withdrawal
		if (link.Codec{}).Unmarshal(data, &w) != nil {
			return
		}
		u, err := w.From(last)
		if err != nil {
			return
		}
		if u.Bundle.TrustDomain != ca.Domain || len(u.Snapshot.Members) > len(last.Snapshot.Members) || len(u.Snapshot.APIKeys) > 1 || len(last.Snapshot.APIKeys) != 1 {
			t.Errorf("it grants: %s", data)
		}
	})
}
