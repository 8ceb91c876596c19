package store

import (
	"cmp"
	"context"
	"database/sql"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/control/api"
)

// An edge is who calls whom, as one event tells it. Each call counts once: where
// it was decided, which is the callee's end or the gateway's.
type edge struct{ caller, callee string }

// A tally is the calls of one edge in one minute.
type tally struct {
	calls, refused, plain int64
	last                  int64 // microseconds
}

// edgeOf is the edge that an event counts for, false for none.
func edgeOf(e *audit.Event) (edge, bool) {
	if e.Action != audit.Call || e.Call == nil {
		return edge{}, false
	}
	switch call.End(e.Call.End) {
	case call.Inbound:
		return edge{partyName(e.Caller), partyName(e.Callee)}, true
	case call.Edge:
		// Whoever calls from outside is nobody of the mesh.
		return edge{"", text(strings.Replace(e.Call.Listener, "gateway.", "gateway/", 1))}, true
	}
	return edge{}, false
}

// roll adds what entries count for to the edges' minutes.
func roll(ctx context.Context, tx *sql.Tx, cols []columns) error {
	type minute struct {
		edge
		at int64
	}
	sums := map[minute]tally{}
	for _, c := range cols {
		if !c.counts {
			continue
		}
		m := minute{c.edge, c.time - c.time%time.Minute.Microseconds()}
		t := sums[m]
		t.calls++
		if c.outcome == string(audit.Denied) {
			t.refused++
		}
		if c.plain {
			t.plain++
		}
		t.last = max(t.last, c.time)
		sums[m] = t
	}
	for m, t := range sums {
		_, err := tx.ExecContext(ctx, `INSERT INTO edge_minute (minute, caller, callee, calls, refused, plain, last)
			VALUES ($1, $2, $3, $4, $5, $6, $7)
			ON CONFLICT (minute, caller, callee) DO UPDATE SET calls = edge_minute.calls + excluded.calls,
			refused = edge_minute.refused + excluded.refused, plain = edge_minute.plain + excluded.plain,
			last = CASE WHEN excluded.last > edge_minute.last THEN excluded.last ELSE edge_minute.last END`,
			m.at, m.caller, m.callee, t.calls, t.refused, t.plain, t.last)
		if err != nil {
			return err
		}
	}
	return nil
}

// Edges are those that calls were seen on since, which counts by whole minutes.
func (s *Store) Edges(ctx context.Context, since time.Time) ([]api.EdgeStatus, error) {
	all, err := list(ctx, s.read, func(rows *sql.Rows) (e api.EdgeStatus, err error) {
		var plain, last int64
		if err := rows.Scan(&e.From, &e.To, &e.Calls, &e.Refused, &plain, &last); err != nil {
			return e, err
		}
		e.Last = fromMicro(last)
		switch plain {
		case 0:
			e.Protection = "mtls"
		case e.Calls:
			e.Protection = "plain"
		default:
			e.Protection = "mixed"
		}
		return e, nil
	}, `SELECT caller, callee, SUM(calls), SUM(refused), SUM(plain), MAX(last) FROM edge_minute
		WHERE minute >= $1 GROUP BY caller, callee`, micro(since.Truncate(time.Minute)))
	slices.SortFunc(all, func(a, b api.EdgeStatus) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return all, s.explain("count the edges", err)
}

// AuditStatus is how much is recorded, and how much is known to be lost. It does
// not verify anything: that is VerifyLogs'.
func (s *Store) AuditStatus(ctx context.Context) (api.AuditStatus, error) {
	st := api.AuditStatus{State: api.StateOK}
	var updated int64
	err := s.read.QueryRowContext(ctx, `SELECT COALESCE(SUM(size), 0), COALESCE(MAX(updated), 0) FROM log`).Scan(&st.Entries, &updated)
	if err != nil {
		return st, s.explain("count the entries", err)
	}
	st.Last = fromMicro(updated)
	if st.Gaps, err = s.lost(ctx); err != nil {
		return st, s.explain("count the lost events", err)
	}
	if st.Gaps > 0 {
		st.State, st.Note = api.StateFailed, "events are known to be lost: parley audit search --action audit.gap"
	}
	return st, nil
}

// lost is the sum of what gap events tell. The action is no parameter: the index
// of gap events is used only where the query shows that it asks for no others. A
// body that cannot be read is VerifyLogs' to report.
func (s *Store) lost(ctx context.Context) (int64, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT body FROM entry WHERE action = 'audit.gap'`)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var sum uint64
	for rows.Next() {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return 0, err
		}
		if e, err := audit.Decode(body); err == nil && e.Gap != nil {
			sum += min(e.Gap.Count, math.MaxInt64-sum)
		}
	}
	return int64(sum), rows.Err()
}
