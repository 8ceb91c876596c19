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
// it was decided, which is the callee's end or the gateway's, or else at the
// caller's end, where it never left that.
type edge struct{ caller, callee string }

// A tally is the calls of one edge in one minute.
type tally struct {
	calls, refused, failed, plain, unsent int64
	last                                  int64 // microseconds
}

// edgeOf is what an event counts for: the edge with one call, or no call.
func edgeOf(e *audit.Event) (at edge, t tally) {
	if e.Call == nil || e.TLS != nil && e.TLS.ALPN == call.Probe {
		return edge{}, tally{} // a probe of `parley verify` is nobody's call
	}
	switch end := call.End(e.Call.End); {
	case e.Action == audit.Call && end == call.Inbound:
		at = edge{partyName(e.Caller), partyName(e.Callee)}
	case e.Action == audit.Call && end == call.Edge:
		// Whoever calls from outside is nobody of the mesh.
		at = edge{"", text(strings.Replace(e.Call.Listener, "gateway.", "gateway/", 1))}
	case e.Action == audit.Call && end == call.Outbound && failed(e) && e.UpstreamTLS == nil:
		at, t.unsent = edge{partyName(e.Caller), partyName(e.Callee)}, 1
	case e.Action == audit.ProcessRefused && end == call.Outbound:
		// The caller of the event is the process, which is not the service.
		service, _, _ := strings.Cut(e.Call.Listener, ".calls.")
		at, t.unsent = edge{text(service), partyName(e.Callee)}, 1
	default:
		return edge{}, tally{}
	}
	t.calls, t.last = 1, micro(e.Time)
	if e.Outcome == audit.Denied {
		t.refused = 1
	} else if failed(e) {
		t.failed = 1
	}
	if t.unsent == 0 && (e.TLS == nil || e.TLS.Version == "") {
		t.plain = 1
	}
	return at, t
}

// failed says that nobody answered a call that was allowed: it was neither the
// client who left nor Parley that was stopped.
func failed(e *audit.Event) bool {
	return strings.HasPrefix(e.Call.Error, "upstream_") || e.Call.Error == "credential_missing"
}

func (t *tally) add(o tally) {
	t.calls += o.calls
	t.refused += o.refused
	t.failed += o.failed
	t.plain += o.plain
	t.unsent += o.unsent
	t.last = max(t.last, o.last)
}

const addMinute = `INSERT INTO edge_minute (minute, caller, callee, calls, refused, failed, plain, unsent, last)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
	ON CONFLICT (minute, caller, callee) DO UPDATE SET calls = edge_minute.calls + excluded.calls,
	refused = edge_minute.refused + excluded.refused, failed = edge_minute.failed + excluded.failed,
	plain = edge_minute.plain + excluded.plain, unsent = edge_minute.unsent + excluded.unsent,
	last = CASE WHEN excluded.last > edge_minute.last THEN excluded.last ELSE edge_minute.last END`

const addActions = `INSERT INTO action_minute (minute, action, outcome, events) VALUES ($1, $2, $3, $4)
	ON CONFLICT (minute, action, outcome) DO UPDATE SET events = action_minute.events + excluded.events`

// roll adds what entries count for to the minutes of edges and of actions. What a host
// says is still to come counts for now: it would be recent for ever otherwise.
func (s *Store) roll(ctx context.Context, tx *sql.Tx, cols []columns) error {
	type minute struct {
		edge
		at int64
	}
	type actions struct {
		action, outcome string
		at              int64
	}
	sums, events := map[minute]tally{}, map[actions]int{}
	now := s.cfg.Clock.Now()
	latest := micro(now.Add(maxBehind)) // no clock is right
	for i := range cols {
		c := cols[i]
		if c.time > latest {
			c.time = micro(now)
			c.tally.last = min(c.tally.last, c.time)
		}
		at := c.time - c.time%time.Minute.Microseconds()
		events[actions{c.action, c.outcome, at}]++
		if c.tally.calls == 0 {
			continue
		}
		m := minute{c.edge, at}
		t := sums[m]
		t.add(c.tally)
		sums[m] = t
	}
	add := s.in(ctx, tx, addMinute)
	for m, t := range sums {
		if err := add.exec(ctx, m.at, m.caller, m.callee, t.calls, t.refused, t.failed, t.plain, t.unsent, t.last); err != nil {
			return err
		}
	}
	count := s.in(ctx, tx, addActions)
	for a, n := range events {
		if err := count.exec(ctx, a.at, a.action, a.outcome, n); err != nil {
			return err
		}
	}
	return nil
}

// Edges are those that calls were seen on since, which counts by whole minutes.
func (s *Store) Edges(ctx context.Context, since time.Time) ([]api.EdgeStatus, error) {
	all, err := list(ctx, s.read, func(rows *sql.Rows) (e api.EdgeStatus, err error) {
		var plain, unsent, last int64
		if err := rows.Scan(&e.From, &e.To, &e.Calls, &e.Refused, &e.Failed, &plain, &unsent, &last); err != nil {
			return e, err
		}
		e.Last = fromMicro(last)
		switch sent := e.Calls - unsent; {
		case sent == 0: // nothing was, that could have been protected
		case plain == 0:
			e.Protection = "mtls"
		case plain == sent:
			e.Protection = "plain"
		default:
			e.Protection = "mixed"
		}
		return e, nil
	}, `SELECT caller, callee, SUM(calls), SUM(refused), SUM(failed), SUM(plain), SUM(unsent), MAX(last) FROM edge_minute
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
	if err := s.gaps(ctx, func(_ string, n uint64) { st.Gaps += int64(min(n, uint64(math.MaxInt64-st.Gaps))) }); err != nil {
		return st, s.explain("count the lost events", err)
	}
	var contradicted int64
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM fork`).Scan(&contradicted); err != nil {
		return st, s.explain("count the contradictions", err)
	}
	switch {
	case contradicted > 0:
		st.State, st.Note = api.StateFailed, "something contradicts what was recorded: parley audit search --action audit.forked"
	case st.Gaps > 0:
		st.State, st.Note = api.StateFailed, "events are known to be lost: parley audit search --action audit.gap"
	}
	return st, nil
}
