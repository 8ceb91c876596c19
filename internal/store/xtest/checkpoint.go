package xtest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/store"
)

// Statement is what the writer of log says of its entries, of which there are so many.
func Statement(log string, entries []audit.Entry) collect.Statement {
	var tree audit.Tree
	for _, e := range entries {
		tree.Append(e.Leaf)
	}
	k := Key(log)
	return collect.Statement{Host: "host1", Key: k.Verifier().String(), Note: k.Sign(nil, tree.Size(), tree.Root())}
}

func testWitness(t *testing.T, db Database) {
	p := db(t)
	s := Open(t, p, clock.System{})
	all := Entries(t, "agent", 0, 600)
	witness := func(st collect.Statement) ([]byte, error) { return s.Witness(t.Context(), "agent", st) }
	if receipt, err := witness(Statement("agent", all)); err != nil || receipt != nil {
		t.Errorf("of entries that are not there: %q, %v", receipt, err)
	}
	if err := s.Collect(t.Context(), "agent", all[:400]); err != nil {
		t.Fatal(err)
	}
	log, self := Key("agent").Verifier(), Key(s.LogName()).Witness()
	open := func(receipt []byte) *checkpoint.Note {
		t.Helper()
		n, err := checkpoint.Open(receipt, log, self)
		if err != nil || len(n.Cosignatures) != 1 {
			t.Fatalf("the receipt %q: %v", receipt, err)
		}
		return n
	}
	receipt, err := witness(Statement("agent", all[:300]))
	if err != nil || open(receipt).Size != 300 {
		t.Errorf("below what is there: %v", err)
	}
	receipt, err = witness(Statement("agent", all[:400]))
	if err != nil || open(receipt).Size != 400 {
		t.Errorf("what is there: %v", err)
	}
	for _, n := range []int{400, 300} {
		if again, err := witness(Statement("agent", all[:n])); err != nil || string(again) != string(receipt) {
			t.Errorf("%d again: %q, %v; want the newest receipt", n, again, err)
		}
	}
	if receipt, err := witness(Statement("agent", all)); err != nil || receipt != nil {
		t.Errorf("more than there is: %q, %v", receipt, err)
	}
	if err := s.Collect(t.Context(), "agent", all[400:]); err != nil {
		t.Fatal(err)
	}
	if receipt, err = witness(Statement("agent", all)); err != nil || open(receipt).Size != 600 {
		t.Errorf("the rest: %v", err)
	}
	if n := Verified(t, s)["agent"]; n != 600 {
		t.Errorf("%d entries", n)
	}
	// Nobody without the server's key can put another checkpoint there.
	k := Key("agent")
	p.Exec(t, `UPDATE checkpoint SET note = $1 WHERE log = 'agent'`, k.Sign(nil, 600, rootOf(all)))
	wantFault(t, s, "agent", "was not witnessed by this server")
}

func rootOf(entries []audit.Entry) audit.Hash {
	var tree audit.Tree
	for _, e := range entries {
		tree.Append(e.Leaf)
	}
	return tree.Root()
}

// wantFault holds the log to be the one that does not verify, and why.
func wantFault(t testing.TB, s *store.Store, log, want string) {
	t.Helper()
	reports, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		if bad := r.Log == log; bad != (r.Fault != "") || bad && !strings.Contains(r.Fault, want) {
			t.Errorf("log %s: fault %q, want %q in %s", r.Log, r.Fault, want, log)
		}
	}
}

// What contradicts a log is refused, and recorded once.
func testForks(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	all := Entries(t, "agent", 0, 10)
	if err := s.Collect(t.Context(), "agent", all); err != nil {
		t.Fatal(err)
	}
	good := Statement("agent", all)
	if _, err := s.Witness(t.Context(), "agent", good); err != nil {
		t.Fatal(err)
	}
	other := func(change func(*collect.Statement)) collect.Statement {
		st := good
		change(&st)
		return st
	}
	for name, tt := range map[string]struct {
		log  string
		st   collect.Statement
		want error
	}{
		"another root":      {"agent", other(func(st *collect.Statement) { st.Note = Key("agent").Sign(nil, 7, rootOf(all)) }), collect.ErrFork},
		"another host":      {"agent", other(func(st *collect.Statement) { st.Host = "host2" }), collect.ErrKey},
		"another log's key": {"agent", Statement("other", all), collect.ErrName},
		"a witness's key":   {"agent", other(func(st *collect.Statement) { st.Key = Key("agent").Witness().String() }), collect.ErrName},
		"no key":            {"agent", other(func(st *collect.Statement) { st.Key = "x" }), checkpoint.ErrKey},
		"no note":           {"agent", other(func(st *collect.Statement) { st.Note = nil }), checkpoint.ErrMalformed},
		"flipped":           {"agent", other(func(st *collect.Statement) { st.Note = append([]byte(nil), st.Note...); st.Note[25] ^= 1 }), nil},
		"the server's own":  {s.LogName(), good, collect.ErrName},
		"no name":           {"a b", good, collect.ErrName},
	} {
		for range 2 {
			if receipt, err := s.Witness(t.Context(), tt.log, tt.st); err == nil || receipt != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%s: %q, %v; want %v", name, receipt, err, tt.want)
			}
		}
	}
	key, err := checkpoint.GenerateKey(Key("agent").Name())
	if err != nil {
		t.Fatal(err)
	}
	st := collect.Statement{Host: "host1", Key: key.Verifier().String(), Note: key.Sign(nil, 10, rootOf(all))}
	if _, err := s.Witness(t.Context(), "agent", st); !errors.Is(err, collect.ErrKey) {
		t.Errorf("another key: %v", err)
	}
	for range 2 {
		if err := s.Collect(t.Context(), "agent", []audit.Entry{Entry(t, "agent", 4, Event(audit.Finding))}); !errors.Is(err, collect.ErrFork) {
			t.Errorf("another entry: %v", err)
		}
	}
	found, err := s.Search(t.Context(), control.Filter{Action: string(audit.Forked)})
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]int{}
	for _, f := range found {
		e, err := audit.Decode(f.Body)
		if err != nil {
			t.Fatal(err)
		}
		if reasons[e.Reason]++; e.Object == nil || e.Object.Name != "agent" || e.Outcome != audit.Denied {
			t.Errorf("event %s", f.Body)
		}
	}
	if fmt.Sprint(reasons) != "map[fork_entry:1 fork_key:1 fork_tree:1]" {
		t.Errorf("recorded: %v, want each kind once", reasons)
	}
	reports, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		if said := r.Contradiction != ""; said != (r.Log == "agent") || r.Fault != "" {
			t.Errorf("log %s: fault %q, contradiction %q", r.Log, r.Fault, r.Contradiction)
		}
	}
	if st, err := s.AuditStatus(t.Context()); err != nil || !strings.Contains(st.Note, "contradicts") {
		t.Errorf("status %+v, %v", st, err)
	}
}

// Of the own log every change is signed, and of each hour the last one stays.
func testOwnCheckpoints(t *testing.T, db Database) {
	p, clk := db(t), &at{now: noon}
	s := Open(t, p, clk)
	log := s.LogName()
	for i := range 7 {
		clk.set(noon.Add(time.Duration(i) * 25 * time.Minute))
		if err := s.Log(t.Context(), Event(audit.ServerStarted)); err != nil {
			t.Fatal(err)
		}
	}
	Verified(t, s)
	history, err := s.Checkpoints(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	var sizes []uint64
	for _, c := range history {
		n, err := checkpoint.Open(c.Note, Key(log).Verifier())
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, n.Size)
	}
	if fmt.Sprint(sizes) != "[3 5 7]" { // 12:00 to 12:50, to 13:40, to 14:30
		t.Errorf("checkpoints of %v entries", sizes)
	}
	for name, tt := range map[string]struct{ statement, want string }{
		"newest gone":   {`DELETE FROM checkpoint WHERE size = 7`, "entry 7: the newest checkpoint is missing, that of 7 entries"},
		"all gone":      {`DELETE FROM checkpoint`, "entry 7: the newest checkpoint is missing"},
		"root":          {`UPDATE checkpoint SET root = (SELECT leaf FROM entry WHERE log = 'LOG' AND idx = 1) WHERE size = 5`, "entry 4: the checkpoint of 2026-11-23T13:40:00Z is not what is stored beside it"},
		"size":          {`UPDATE checkpoint SET size = 4 WHERE size = 5`, "entry 3: the checkpoint of 2026-11-23T13:40:00Z is of another log"},
		"hour":          {`UPDATE checkpoint SET hour = hour - 1 WHERE size = 3`, "entry 2: the checkpoint of 2026-11-23T12:50:00Z is not what is stored beside it"},
		"time":          {`UPDATE checkpoint SET time = 0 WHERE size = 7`, "entry 6: the checkpoint of 0001-01-01T00:00:00Z is not what is stored"},
		"note":          {`UPDATE checkpoint SET note = (SELECT note FROM checkpoint AS c WHERE c.size = 3) WHERE size = 7`, "entry 6: the checkpoint of 2026-11-23T14:30:00Z is of another log"},
		"note of none":  {`UPDATE checkpoint SET note = root WHERE size = 5`, "entry 4: the checkpoint of 2026-11-23T13:40:00Z is not the log's"},
		"more than all": {`UPDATE checkpoint SET size = 9 WHERE size = 7`, "entry 7: it is missing, a checkpoint of 2026-11-23T14:30:00Z has 9 entries"},
	} {
		t.Run(name, func(t *testing.T) {
			rows := save(t, p)
			p.Exec(t, strings.ReplaceAll(tt.statement, "LOG", log))
			wantFault(t, s, log, tt.want)
			rows()
			Verified(t, s)
		})
	}
}

// save keeps the checkpoints beside; restore puts them back.
func save(t *testing.T, p Place) (restore func()) {
	p.Exec(t, `CREATE TABLE saved AS SELECT * FROM checkpoint`)
	return func() {
		p.Exec(t, `DELETE FROM checkpoint`)
		p.Exec(t, `INSERT INTO checkpoint SELECT * FROM saved`)
		p.Exec(t, `DROP TABLE saved`)
	}
}
