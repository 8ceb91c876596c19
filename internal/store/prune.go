package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
)

// pruneBatch is how many entries one transaction empties.
const pruneBatch = 2000

// Prune empties the entries of a class that are older than before, and says how many
// they were: body, private part and what they are found by but the id. Their leaf
// hashes stay, and so the tree. It takes as many transactions as they need, each with
// what event makes for each log that it touched, and pauses between them for others.
func (s *Store) Prune(ctx context.Context, class audit.Class, before time.Time, event func() *audit.Event) (pruned int, err error) {
	doing := "prune events of class " + string(class)
	from := int64(1)
	for {
		old, err := s.older(ctx, class, from, before)
		if err != nil || len(old) == 0 {
			return pruned, s.explain(doing, err)
		}
		if err := s.update(ctx, doing, func(tx *sql.Tx) error { return s.prune(ctx, tx, old, event) }); err != nil {
			return pruned, err
		}
		pruned += len(old)
		if len(old) < pruneBatch {
			return pruned, nil
		}
		from = old[len(old)-1].time
		if err := s.cfg.Clock.Sleep(ctx, 50*time.Millisecond); err != nil {
			return pruned, err
		}
	}
}

// An oldEntry is one that is to be emptied.
type oldEntry struct {
	log       string
	idx, time int64
	bytes     int
}

// older are the first entries of a class that are older than before, in order of
// time. One that is empty has no time.
func (s *Store) older(ctx context.Context, class audit.Class, from int64, before time.Time) ([]oldEntry, error) {
	var access, kept []string
	for _, a := range audit.Actions() {
		switch {
		case a.Kept():
			kept = append(kept, "'"+string(a)+"'")
		case a.Class() == audit.Access:
			access = append(access, "'"+string(a)+"'")
		}
	}
	actions := "action IN (" + strings.Join(access, ", ") + ")"
	if class == audit.Security {
		actions = "action NOT IN (" + strings.Join(append(access, kept...), ", ") + ")"
	}
	return list(ctx, s.read, func(rows *sql.Rows) (e oldEntry, err error) {
		err = rows.Scan(&e.log, &e.idx, &e.time, &e.bytes)
		return e, err
	}, `SELECT log, idx, time, LENGTH(body) FROM entry WHERE time >= $1 AND time < $2 AND `+actions+` ORDER BY time LIMIT $3`,
		from, micro(before), pruneBatch)
}

func (s *Store) prune(ctx context.Context, tx *sql.Tx, old []oldEntry, event func() *audit.Event) error {
	var done []control.Extent
	bytes := map[string]int{}
	for _, e := range old {
		if _, err := tx.ExecContext(ctx, `UPDATE entry SET body = $1, time = 0, action = '', outcome = '', caller = '', callee = '',
			trace_id = '', request_id = '', call_id = '', person = '' WHERE log = $2 AND idx = $3`, []byte{}, e.log, e.idx); err != nil {
			return err
		}
		done = extend(done, control.StoredEvent{Entry: audit.Entry{Log: e.log, Index: uint64(e.idx)}})
		bytes[e.log] += e.bytes
	}
	slices.SortFunc(done, func(a, b control.Extent) int { return cmp.Compare(a.Log, b.Log) })
	for _, x := range done {
		if err := lighten(ctx, tx, x.Log, bytes[x.Log]); err != nil {
			return err
		}
		size, err := logSize(ctx, tx, x.Log)
		if err != nil {
			return err
		}
		root, err := s.rootAt(ctx, tx, x.Log, uint64(size), uint64(size))
		if err != nil {
			return fmt.Errorf("the root of %s: %w", x.Log, err)
		}
		e := event()
		e.Log = &audit.LogFacts{Name: x.Log, From: x.From, To: x.To, Count: x.Count, Size: uint64(size), Root: hex.EncodeToString(root[:])}
		if err := s.record(ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}

// prunedBy is how many entries of each log were pruned, as the events of it tell. A
// body that cannot be read is told of by its own log.
func prunedBy(ctx context.Context, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, own string,
) (map[string]uint64, error) {
	bodies, err := list(ctx, db, func(rows *sql.Rows) (body []byte, err error) {
		err = rows.Scan(&body)
		return body, err
	}, `SELECT body FROM entry WHERE action = 'audit.pruned' AND log = $1`, own)
	if err != nil {
		return nil, err
	}
	pruned := map[string]uint64{}
	for _, body := range bodies {
		if e, err := audit.Decode(body); err == nil && e.Log != nil {
			pruned[e.Log.Name] += e.Log.Count
		}
	}
	return pruned, nil
}
