package store

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"golang.org/x/mod/sumdb/tlog"
)

// verifyPage is how many entries are read at once.
const verifyPage = 1000

// VerifyLogs implements control.Events: of every log it checks that indexes have
// no hole, that leaf hashes are the bodies', that what is searched by is what the
// bodies say, that nothing is missing or changed of what the heads know, and of the
// server's own log every node of the Merkle tree. It reads one state of the database, whatever is written meanwhile.
func (s *Store) VerifyLogs(ctx context.Context) ([]control.LogReport, error) {
	const doing = "verify logs"
	seals := s.seals() // before the state that they are compared with
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, s.explain(doing, err)
	}
	defer tx.Rollback()
	type log struct {
		name string
		size int64
	}
	logs, err := list(ctx, tx, func(rows *sql.Rows) (l log, err error) {
		err = rows.Scan(&l.name, &l.size)
		return l, err
	},
		`SELECT name, size FROM log UNION ALL SELECT DISTINCT log, 0 FROM entry WHERE log NOT IN (SELECT name FROM log)`)
	if err != nil {
		return nil, s.explain(doing, err)
	}
	for name := range seals {
		if !slices.ContainsFunc(logs, func(l log) bool { return l.name == name }) {
			logs = append(logs, log{name, 0})
		}
	}
	slices.SortFunc(logs, func(a, b log) int { return cmp.Compare(a.name, b.name) })
	var reports []control.LogReport
	for _, l := range logs {
		v := &verifier{tx: tx, own: l.name == s.log, seal: seals[l.name], report: control.LogReport{Log: l.name, Size: uint64(l.size)}}
		if err := v.run(ctx); err != nil {
			return nil, s.explain(doing+": "+l.name, err)
		}
		reports = append(reports, v.report)
	}
	return reports, nil
}

// verifier goes through one log.
type verifier struct {
	tx     *sql.Tx
	own    bool
	seal   seal // what was there before
	tree   audit.Tree
	report control.LogReport
}

// run fills the report. Its error says that the log could not be read; what does
// not verify is report.Fault, the first of it.
func (v *verifier) run(ctx context.Context) error {
	for v.report.Fault == "" {
		rows, err := list(ctx, v.tx, scanRow, `SELECT idx, leaf, body, event_id, time, action, outcome, caller, callee, trace_id, request_id
			FROM entry WHERE log = $1 AND idx >= $2 ORDER BY idx LIMIT $3`, v.report.Log, int64(v.tree.Size()), verifyPage)
		if err != nil {
			return err
		}
		first := v.tree.Size()
		var nodes []audit.Hash
		for _, r := range rows {
			if fault := v.entry(r, &nodes); fault != "" {
				v.report.Fault = fault
				break
			}
		}
		if v.own && v.report.Fault == "" {
			if err := v.nodes(ctx, int64(first), nodes); err != nil {
				return err
			}
		}
		if len(rows) < verifyPage {
			break
		}
	}
	if v.report.Fault == "" && v.tree.Size() != v.report.Size {
		v.report.Fault = fmt.Sprintf("entry %d: it is missing, the log has %d entries", v.tree.Size(), v.report.Size)
	}
	if v.report.Fault == "" {
		v.report.Fault = v.seal.missing(&v.tree)
	}
	v.report.Root = v.tree.Root()
	return nil
}

// entry checks one entry, and returns what is wrong with it.
func (v *verifier) entry(r row, nodes *[]audit.Hash) string {
	next := v.tree.Size()
	switch {
	case r.index != int64(next):
		return fmt.Sprintf("entry %d: it is missing, entry %d follows", next, r.index)
	case next >= v.report.Size:
		return fmt.Sprintf("entry %d: it is behind the end, the log has %d entries", next, v.report.Size)
	}
	leaf := audit.LeafHash(r.body)
	if !bytes.Equal(leaf[:], r.leaf) {
		return fmt.Sprintf("entry %d: its leaf hash is not that of its body", next)
	}
	e, err := audit.Decode(r.body)
	if err != nil {
		return fmt.Sprintf("entry %d: %v", next, err)
	}
	if r.found != columnsOf(e).found {
		return fmt.Sprintf("entry %d: what it is found by is not what its body says", next)
	}
	*nodes = v.tree.AppendNodes(*nodes, leaf)
	if next == 0 {
		v.report.First = e.Time
	}
	v.report.Last = e.Time
	return v.seal.check(&v.tree)
}

// nodes compares the stored nodes of the entries from first on with want.
func (v *verifier) nodes(ctx context.Context, first int64, want []audit.Hash) error {
	type node struct {
		idx  int64
		hash []byte
	}
	idx := tlog.StoredHashIndex(0, first)
	// One more than there should be, so that a surplus shows.
	stored, err := list(ctx, v.tx, func(rows *sql.Rows) (n node, err error) {
		err = rows.Scan(&n.idx, &n.hash)
		return n, err
	},
		`SELECT idx, hash FROM node WHERE log = $1 AND idx >= $2 ORDER BY idx LIMIT $3`, v.report.Log, idx, len(want)+1)
	if err != nil {
		return err
	}
	for i, w := range want {
		if i >= len(stored) || stored[i].idx != idx+int64(i) || !bytes.Equal(stored[i].hash, w[:]) {
			level, n := tlog.SplitStoredHashIndex(idx + int64(i))
			v.report.Fault = fmt.Sprintf("entry %d: the stored tree has another hash at level %d, node %d", (n+1)<<level-1, level, n)
			return nil
		}
	}
	if len(stored) > len(want) && v.tree.Size() == v.report.Size {
		v.report.Fault = fmt.Sprintf("entry %d: the stored tree goes on behind the end", v.tree.Size())
	}
	return nil
}

// A row is an entry as it is stored.
type row struct {
	index      int64
	leaf, body []byte
	found
}

func scanRow(rows *sql.Rows) (r row, err error) {
	err = rows.Scan(&r.index, &r.leaf, &r.body, &r.eventID, &r.time, &r.action, &r.outcome, &r.caller, &r.callee, &r.traceID, &r.requestID)
	return r, err
}
