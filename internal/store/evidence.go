package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
)

// domain is the trust domain that logs are signed in, "" before there is a key.
func (s *Store) domain() string {
	if s.signer == nil {
		return ""
	}
	return strings.TrimSuffix(s.signer.Name(), "/"+s.log)
}

// Logs implements control.Evidence.
func (s *Store) Logs(ctx context.Context) ([]api.LogInfo, error) {
	const doing = "list the logs"
	logs, err := list(ctx, s.read, func(rows *sql.Rows) (l api.LogInfo, err error) {
		var keyed int64
		err = rows.Scan(&l.Log, &l.Size, &l.Key, &l.Host, &keyed)
		l.Keyed, l.Own, l.Origin = fromMicro(keyed), l.Log == s.log, checkpoint.Origin(s.domain(), l.Log)
		return l, err
	}, `SELECT name, size, COALESCE(key, ''), COALESCE(host, ''), COALESCE(since, 0) FROM log LEFT JOIN log_key ON log_key.log = log.name`)
	if err != nil {
		return nil, s.explain(doing, err)
	}
	slices.SortFunc(logs, func(a, b api.LogInfo) int { return strings.Compare(a.Log, b.Log) })
	for i := range logs {
		l := &logs[i]
		newest, err := newestCheckpoint(ctx, s.read, l.Log)
		if err != nil {
			return nil, s.explain(doing, err)
		}
		l.Checkpoint, l.CheckpointSize, l.CheckpointTime = string(newest.note), newest.size, fromMicro(newest.time)
		if !l.Own && l.Key != "" && s.signer != nil {
			l.Witness = s.signer.Witness().String()
		}
	}
	return logs, nil
}

// Entries implements control.Evidence.
func (s *Store) Entries(ctx context.Context, log string, first uint64, limit int) ([]audit.Entry, error) {
	doing := fmt.Sprintf("read the entries of %q", log)
	if first > math.MaxInt64 || !audit.ValidLogName(log) {
		return nil, fmt.Errorf("%s: %w", doing, control.ErrNotFound)
	}
	found, err := list(ctx, s.read, scanEntry, selectEntry+`WHERE log = $1 AND idx >= $2 ORDER BY idx LIMIT $3`, log, int64(first), limit)
	if err == nil && len(found) == 0 {
		var there int
		if err = s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM log WHERE name = $1`, log).Scan(&there); err == nil && there == 0 {
			return nil, fmt.Errorf("%s: %w", doing, control.ErrNotFound)
		}
	}
	entries := make([]audit.Entry, len(found))
	for i, f := range found {
		if f.Index != first+uint64(i) {
			return nil, fmt.Errorf("%s: entry %d: %w", doing, first+uint64(i), errHole)
		}
		entries[i] = f.Entry
		entries[i].Body = audit.Committed(f.Body)
	}
	return entries, s.explain(doing, err)
}

// Prove implements control.Evidence.
func (s *Store) Prove(ctx context.Context, id string) ([]byte, error) {
	doing := fmt.Sprintf("prove event %q", id)
	e, err := s.Event(ctx, id)
	if err != nil {
		return nil, err
	}
	newest, err := newestCheckpoint(ctx, &s.quick, e.Log)
	if err != nil {
		return nil, s.explain(doing, err)
	}
	if size := uint64(newest.size); size <= e.Index {
		return nil, fmt.Errorf("it is entry %d of the log %s, of which %d entries are signed: %w", e.Index, e.Log, size, control.ErrUnsigned)
	}
	// Tiles only grow: those of an older tree are still there when this reads them.
	proof, err := tiles.Inclusion(ctx, s.loader(&s.quick, e.Log), uint64(newest.size), e.Index)
	if err != nil {
		return nil, s.explain(doing, err)
	}
	file := tiles.ProofFile{Event: audit.Committed(e.Body), Index: e.Index, Hashes: proof, Checkpoint: newest.note}
	return file.AppendText(nil), nil
}

// LogStats implements control.Evidence. It reads no log as a whole.
func (s *Store) LogStats(ctx context.Context) ([]api.LogStats, error) {
	const doing = "count the entries"
	stats, err := list(ctx, s.read, func(rows *sql.Rows) (l api.LogStats, err error) {
		var oldest, newest, signed int64
		err = rows.Scan(&l.Log, &l.Entries, &l.Bytes, &oldest, &newest, &l.Pruned, &signed)
		l.Oldest, l.Newest, l.Unsigned = fromMicro(oldest), fromMicro(newest), l.Entries-signed
		return l, err
	}, `SELECT name, size, bytes,
		COALESCE((SELECT time FROM entry WHERE log = name AND idx = 0), 0),
		COALESCE((SELECT time FROM entry WHERE log = name AND idx = size - 1), 0),
		(SELECT COUNT(*) FROM entry WHERE log = name AND LENGTH(body) = 0),
		COALESCE((SELECT MAX(c.size) FROM checkpoint AS c WHERE c.log = name), 0) FROM log`)
	if err != nil {
		return nil, s.explain(doing, err)
	}
	slices.SortFunc(stats, func(a, b api.LogStats) int { return strings.Compare(a.Log, b.Log) })
	err = s.gaps(ctx, func(log string, count uint64) {
		for i := range stats {
			if l := &stats[i]; l.Log == log {
				l.Gaps++
				l.Lost += int64(min(count, uint64(math.MaxInt64-l.Lost)))
			}
		}
	})
	return stats, s.explain(doing, err)
}

// Actions implements control.Evidence.
func (s *Store) Actions(ctx context.Context, since time.Time) ([]api.ActionCount, error) {
	found, err := list(ctx, s.read, func(rows *sql.Rows) (a api.ActionCount, err error) {
		err = rows.Scan(&a.Action, &a.Outcome, &a.Events)
		return a, err
	}, `SELECT action, outcome, SUM(events) FROM action_minute WHERE minute >= $1 GROUP BY action, outcome`, micro(since))
	slices.SortFunc(found, func(a, b api.ActionCount) int {
		if a.Events != b.Events {
			return int(min(max(b.Events-a.Events, -1), 1))
		}
		return strings.Compare(a.Action+" "+a.Outcome, b.Action+" "+b.Outcome)
	})
	return found, s.explain("count the events", err)
}

// gaps calls each for what every gap event tells. The action is no parameter: the
// index of gap events is used only where the query shows that it asks for no others.
// A body that cannot be read is VerifyLogs' to report.
func (s *Store) gaps(ctx context.Context, each func(log string, count uint64)) error {
	rows, err := s.read.QueryContext(ctx, `SELECT log, body FROM entry WHERE action = 'audit.gap'`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var log string
		var body sql.RawBytes
		if err := rows.Scan(&log, &body); err != nil {
			return err
		}
		if e, err := audit.Decode(body); err == nil && e.Gap != nil {
			each(log, e.Gap.Count)
		}
	}
	return rows.Err()
}
