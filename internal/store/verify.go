package store

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
)

// verifyPage is how many entries are read at once: whole tiles.
const verifyPage = 1024

// VerifyLogs implements control.Events: of every log it checks that indexes have
// no hole, that leaf hashes are the bodies', that what is searched by is what the
// bodies say, that nothing is missing or changed of what the heads know, every tile
// of the Merkle tree, and every checkpoint: its signature, and that its root is the
// one that the entries have. It reads one state of the database, whatever is written
// meanwhile.
func (s *Store) VerifyLogs(ctx context.Context) ([]control.LogReport, error) {
	const doing = "verify logs"
	seals := s.seals() // before the state that they are compared with
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, s.explain(doing, err)
	}
	defer tx.Rollback()
	logs, err := list(ctx, tx, scanLog, selectLogs+` UNION ALL SELECT DISTINCT log, 0 FROM (
		SELECT log FROM entry UNION SELECT log FROM tile UNION SELECT log FROM checkpoint UNION SELECT log FROM log_key
	) AS named WHERE log NOT IN (SELECT name FROM log)`)
	if err != nil {
		return nil, s.explain(doing, err)
	}
	for name := range seals {
		if !slices.ContainsFunc(logs, func(l named) bool { return l.name == name }) {
			logs = append(logs, named{name, 0})
		}
	}
	slices.SortFunc(logs, func(a, b named) int { return cmp.Compare(a.name, b.name) })
	pruned, err := prunedBy(ctx, tx, s.log)
	if err != nil {
		return nil, s.explain(doing, err)
	}
	var reports []control.LogReport
	for _, l := range logs {
		v := &verifier{store: s, tx: tx, pruned: pruned[l.name], seal: seals[l.name], tiles: tileCheck{log: l.name}, report: control.LogReport{Log: l.name, Size: uint64(l.size)}}
		if v.signed, err = s.signedOf(ctx, tx, l.name); err == nil {
			v.report.Contradiction, err = contradiction(ctx, tx, l.name)
		}
		if err == nil {
			err = v.run(ctx)
		}
		if err != nil {
			return nil, s.explain(doing+": "+l.name, err)
		}
		reports = append(reports, v.report)
	}
	return reports, nil
}

// verifier goes through one log.
type verifier struct {
	store  *Store
	tx     *sql.Tx
	pruned uint64 // how many entries were emptied, by what is recorded of it
	seal   seal   // what was there before
	tree   audit.Tree
	tiles  tileCheck
	signed signedCheck
	// position is that of the entry before.
	position int64
	report   control.LogReport
}

// run fills the report. Its error says that the log could not be read; what does
// not verify is report.Fault, the first of it.
func (v *verifier) run(ctx context.Context) error {
	for v.report.Fault == "" {
		rows, err := list(ctx, v.tx, scanRow, `SELECT idx, position, leaf, body, event_id, time, action, outcome, caller, callee, trace_id, request_id, call_id, person
			FROM entry WHERE log = $1 AND idx >= $2 ORDER BY idx LIMIT $3`, v.report.Log, int64(v.tree.Size()), verifyPage)
		if err != nil {
			return err
		}
		if err := v.page(ctx, rows); err != nil {
			return err
		}
		if len(rows) < verifyPage {
			break
		}
	}
	if err := v.end(ctx); err != nil {
		return err
	}
	v.report.Root = v.tree.Root()
	if v.report.Fault == "" {
		return nil
	}
	return v.neighbours(ctx)
}

// page checks the entries that come next, and then the tree that they make: it tells
// the place, where a root that is another one only tells that there is a fault.
func (v *verifier) page(ctx context.Context, rows []row) error {
	leaves := make([]audit.Hash, 0, len(rows))
	root, at := "", uint64(0) // what is wrong with the root, up to which entry
	for _, r := range rows {
		leaf, fault := v.entry(r)
		if fault != "" {
			v.fail(v.tree.Size(), fault)
			break
		}
		leaves = append(leaves, leaf)
		if root == "" {
			root, at = cmp.Or(v.seal.check(&v.tree), v.signed.check(&v.tree)), v.tree.Size()-1
		}
	}
	if err := v.tiles.add(ctx, v, leaves); err != nil || root == "" {
		return err
	}
	if err := v.tiles.compareOpen(ctx, v); err != nil {
		return err
	}
	v.fail(at, root)
	return nil
}

// end checks what is to be at the end of a log, and behind it.
func (v *verifier) end(ctx context.Context) error {
	if v.report.Fault == "" && v.tree.Size() != v.report.Size {
		v.fail(v.tree.Size(), fmt.Sprintf("it is missing, the log has %d entries", v.report.Size))
	}
	if v.report.Fault == "" && v.report.Pruned != v.pruned {
		v.fail(v.tree.Size(), fmt.Sprintf("before it %d entries are empty, and %d were pruned", v.report.Pruned, v.pruned))
	}
	if fault := v.seal.missing(&v.tree); v.report.Fault == "" && fault != "" {
		v.fail(v.tree.Size(), fault)
	}
	if v.report.Fault == "" {
		if err := v.tiles.end(ctx, v); err != nil {
			return err
		}
	}
	if v.report.Fault == "" {
		if fault := v.signed.missing(&v.tree); fault != "" {
			v.fail(v.tree.Size(), fault)
		}
	}
	return nil
}

// fail says what is wrong, at which entry, unless something was before.
func (v *verifier) fail(at uint64, fault string) {
	if v.report.Fault == "" {
		v.report.At, v.report.Fault = at, fmt.Sprintf("entry %d: %s", at, fault)
	}
}

// neighbours finds out when it was: the times of the nearest events before and after
// the fault, by what they are found by, which may have been changed too.
func (v *verifier) neighbours(ctx context.Context) error {
	for _, n := range []struct {
		query string
		to    *time.Time
	}{
		{`SELECT COALESCE(MAX(time), 0) FROM (SELECT time FROM entry WHERE log = $1 AND idx < $2 ORDER BY idx DESC LIMIT 1) AS one`, &v.report.After},
		{`SELECT COALESCE(MAX(time), 0) FROM (SELECT time FROM entry WHERE log = $1 AND idx > $2 ORDER BY idx LIMIT 1) AS one`, &v.report.Before},
	} {
		var at int64
		if err := v.tx.QueryRowContext(ctx, n.query, v.report.Log, int64(v.report.At)).Scan(&at); err != nil {
			return err
		}
		*n.to = fromMicro(at)
	}
	return nil
}

// entry checks one entry, and returns its leaf hash, or what is wrong with it.
func (v *verifier) entry(r row) (leaf audit.Hash, fault string) {
	next := v.tree.Size()
	switch {
	case r.index != int64(next):
		return leaf, fmt.Sprintf("it is missing, entry %d follows", r.index)
	case next >= v.report.Size:
		return leaf, fmt.Sprintf("it is behind the end, the log has %d entries", v.report.Size)
	}
	if r.position <= v.position {
		return leaf, fmt.Sprintf("it is said to have arrived before entry %d", next-1)
	}
	v.position = r.position
	if len(r.body) == 0 {
		return v.empty(r)
	}
	leaf = audit.LeafHash(r.body)
	if !bytes.Equal(leaf[:], r.leaf) {
		return leaf, "its leaf hash is not that of its body"
	}
	e, err := audit.Decode(r.body)
	if err != nil {
		return leaf, err.Error()
	}
	if c := v.store.columnsOf(e).found; r.found != c {
		return leaf, "what it is found by is not what its body says: " + strings.Join(r.differ(c), ", ")
	}
	v.tree.Append(leaf)
	if v.report.First.IsZero() {
		v.report.First = e.Time
	}
	v.report.Last = e.Time
	return leaf, ""
}

// empty checks an entry that was pruned: of that the tree has to know.
func (v *verifier) empty(r row) (leaf audit.Hash, fault string) {
	if len(r.leaf) != len(leaf) {
		return leaf, fmt.Sprintf("a leaf hash of %d bytes", len(r.leaf))
	}
	if (r.found != found{eventID: r.eventID}) {
		return leaf, "it is empty and still found by something"
	}
	if v.report.Pruned == v.pruned {
		return leaf, fmt.Sprintf("it is empty, and it is none of the %d that were pruned", v.pruned)
	}
	leaf = audit.Hash(r.leaf)
	v.tree.Append(leaf)
	v.report.Pruned++
	return leaf, ""
}

// A row is an entry as it is stored.
type row struct {
	index      int64
	position   int64
	leaf, body []byte
	found
}

func scanRow(rows *sql.Rows) (r row, err error) {
	err = rows.Scan(&r.index, &r.position, &r.leaf, &r.body, &r.eventID, &r.time, &r.action, &r.outcome, &r.caller, &r.callee, &r.traceID, &r.requestID, &r.callID, &r.person)
	return r, err
}

// differ names the columns that are not as in o.
func (f found) differ(o found) (names []string) {
	for _, c := range []struct {
		name string
		same bool
	}{
		{"id", f.eventID == o.eventID},
		{"time", f.time == o.time},
		{"action", f.action == o.action},
		{"outcome", f.outcome == o.outcome},
		{"caller", f.caller == o.caller},
		{"callee", f.callee == o.callee},
		{"trace", f.traceID == o.traceID},
		{"request", f.requestID == o.requestID},
		{"call id", f.callID == o.callID},
		{"person", f.person == o.person},
	} {
		if !c.same {
			names = append(names, c.name)
		}
	}
	return names
}
