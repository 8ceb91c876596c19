package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
)

// grow adds n entries of so many bytes to a log's size and returns it.
func (s *Store) grow(ctx context.Context, tx *sql.Tx, log string, n, bytes int) (size int64, err error) {
	err = s.in(ctx, tx, growLog).row(ctx, n, bytes, micro(s.cfg.Clock.Now()), log).Scan(&size)
	return size, err
}

// hold is a log's size, which nobody else changes until tx ends.
func (s *Store) hold(ctx context.Context, tx *sql.Tx, log string) (size int64, err error) {
	err = s.in(ctx, tx, holdLog).row(ctx, log).Scan(&size)
	return size, err
}

// insert adds entries at the next positions.
func (s *Store) insert(ctx context.Context, tx *sql.Tx, entries []audit.Entry, cols []columns) (err error) {
	var last int64
	if err := s.in(ctx, tx, nextPositions).row(ctx, len(entries)).Scan(&last); err != nil {
		return err
	}
	if entries, cols, err = s.forget(ctx, tx, entries, cols); err != nil {
		return err
	}
	next := last - int64(len(entries)) + 1
	rows := maxRows
	if s.engine.local() {
		rows = 1
	}
	var insert statement
	for first := 0; first < len(entries); first += rows {
		end := min(first+rows, len(entries))
		if first == 0 || end-first < rows {
			insert = s.in(ctx, tx, insertEntries(end-first))
		}
		if err := insert.exec(ctx, entryArgs(entries[first:end], cols[first:end], next+int64(first))...); err != nil {
			return err
		}
	}
	return s.roll(ctx, tx, cols)
}

// maxRows is how many entries one statement takes over a network, where one each
// would be a way there and back for each: the order of arrival is locked meanwhile.
const maxRows = 16

// Statements of the write path.
const (
	beginLog      = `INSERT INTO log (name, size, updated) VALUES ($1, 0, 0) ON CONFLICT (name) DO NOTHING`
	growLog       = `UPDATE log SET size = size + $1, bytes = bytes + $2, updated = $3 WHERE name = $4 RETURNING size`
	holdLog       = `UPDATE log SET size = size WHERE name = $1 RETURNING size`
	nextPositions = `UPDATE arrival SET last = last + $1 WHERE id = 1 RETURNING last`
	entryColumns  = `(log, idx, position, leaf, body, event_id, time, action, outcome, caller, callee, trace_id, request_id, call_id, person)`
	entryWidth    = 15
)

// insertEntries is the statement that takes n entries.
func insertEntries(n int) string {
	var query strings.Builder
	query.WriteString(`INSERT INTO entry ` + entryColumns + ` VALUES`)
	for p := range n * entryWidth {
		separator := `, `
		switch {
		case p == 0:
			separator = ` (`
		case p%entryWidth == 0:
			separator = `), (`
		}
		query.WriteString(separator + `$` + strconv.Itoa(p+1))
	}
	query.WriteString(`)`)
	return query.String()
}

// entryArgs are the values of entries at the positions from first on.
func entryArgs(entries []audit.Entry, cols []columns, first int64) []any {
	args := make([]any, 0, len(entries)*entryWidth)
	for i, n := range entries {
		c := &cols[i]
		args = append(args, n.Log, int64(n.Index), first+int64(i), n.Leaf[:], n.Body,
			c.eventID, c.time, c.action, c.outcome, c.caller, c.callee, c.traceID, c.requestID, c.callID, c.person)
	}
	return args
}

// Cursor implements collect.Sink.
func (s *Store) Cursor(ctx context.Context, log string) (uint64, error) {
	size, err := logSize(ctx, s.read, log)
	return uint64(size), s.explain("read the cursor of "+log, err)
}

func logSize(ctx context.Context, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, log string,
) (size int64, err error) {
	err = db.QueryRowContext(ctx, `SELECT size FROM log WHERE name = $1`, log).Scan(&size)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return size, err
}

// Collect implements collect.Sink. Besides a hole (collect.ErrHole) and a leaf
// hash that is not the body's (collect.ErrLeaf) it refuses a body that is no
// event in its canonical encoding (audit.ErrCanonical, ErrSchema, ErrTooLong),
// an entry that differs from the one it has at that index (collect.ErrFork), and
// names that are malformed, another log's or the server's own (collect.ErrName).
func (s *Store) Collect(ctx context.Context, log string, entries []audit.Entry) error {
	doing := "collect " + log
	if !audit.ValidLogName(log) || log == s.log {
		return fmt.Errorf("collect %q: %w", log, collect.ErrName)
	}
	cols := make([]columns, len(entries))
	for i, n := range entries {
		c, err := s.admit(log, entries[0].Index+uint64(i), n)
		if err != nil {
			return fmt.Errorf("%s: entry %d: %w", doing, n.Index, err)
		}
		cols[i] = c
	}
	if len(entries) == 0 {
		return nil
	}
	err := s.update(ctx, doing, func(tx *sql.Tx) error {
		if err := s.in(ctx, tx, beginLog).exec(ctx, log); err != nil {
			return err
		}
		size, err := s.hold(ctx, tx, log)
		if err != nil {
			return err
		}
		first := entries[0].Index
		if first > uint64(size) {
			return fmt.Errorf("entry %d follows entry %d: %w", first, size-1, collect.ErrHole)
		}
		have := min(uint64(size)-first, uint64(len(entries)))
		if err := same(ctx, tx, entries[:have]); err != nil {
			return err
		}
		fresh := entries[have:]
		if len(fresh) == 0 {
			return nil
		}
		bytes, leaves := 0, make([]audit.Hash, len(fresh))
		for i, n := range fresh {
			bytes += len(n.Body)
			leaves[i] = n.Leaf
		}
		if _, err := s.grow(ctx, tx, log, len(fresh), bytes); err != nil {
			return err
		}
		if err := s.insert(ctx, tx, fresh, cols[have:]); err != nil {
			return err
		}
		_, err = s.plant(ctx, tx, log, uint64(size), leaves)
		return err
	})
	if errors.Is(err, collect.ErrFork) {
		err = errors.Join(err, s.forked(ctx, log, forkEntry, entries[0].Index, collect.Statement{}, err))
	}
	return err
}

// admit checks one entry by itself and reads its columns.
func (s *Store) admit(log string, index uint64, n audit.Entry) (columns, error) {
	switch {
	case n.Log != log:
		return columns{}, collect.ErrName
	case n.Index != index || n.Index > 1<<62:
		return columns{}, collect.ErrHole
	case n.Leaf != audit.LeafHash(n.Body):
		return columns{}, collect.ErrLeaf
	}
	e, err := audit.Decode(n.Body)
	if err != nil {
		return columns{}, err
	}
	return s.columnsOf(e), nil
}

// same says whether the store has exactly these entries.
func same(ctx context.Context, tx *sql.Tx, entries []audit.Entry) error {
	for _, n := range entries {
		var leaf []byte
		if err := tx.QueryRowContext(ctx, `SELECT leaf FROM entry WHERE log = $1 AND idx = $2`, n.Log, int64(n.Index)).Scan(&leaf); err != nil {
			return fmt.Errorf("entry %d: %w", n.Index, err)
		}
		if !bytes.Equal(leaf, n.Leaf[:]) {
			return fmt.Errorf("entry %d: %w", n.Index, collect.ErrFork)
		}
	}
	return nil
}

// found is what an event is found by: columns beside the body.
type found struct {
	eventID, action, outcome, caller, callee, traceID, requestID, callID, person string
	time                                                                         int64
}

// columns are what the store reads out of an event.
type columns struct {
	found
	issuer string // of the person's token
	// edge and tally are what the event counts for in the roll-up.
	edge  edge
	tally tally
}

func (s *Store) columnsOf(e *audit.Event) columns {
	c := columns{found: found{eventID: text(e.ID), time: micro(e.Time), action: text(string(e.Action)), outcome: text(string(e.Outcome)), caller: partyName(e.Caller), callee: partyName(e.Callee)}}
	if e.Trace != nil {
		c.traceID = text(e.Trace.TraceID)
	}
	switch {
	case e.Call != nil:
		c.requestID, c.callID = text(e.Call.RequestID), text(e.Call.ID)
	case e.Actor != nil:
		c.requestID = text(e.Actor.RequestID)
	}
	if c.person = s.hashes.person(e.Subject()); c.person != "" {
		c.issuer = text(e.Caller.Issuer)
	}
	c.edge, c.tally = edgeOf(e)
	return c
}

// partyName is the service, or where only an identity is known, its name, as text.
func partyName(p *audit.Party) string {
	switch {
	case p == nil:
		return ""
	case p.Service != "":
		return text(p.Service)
	}
	return text(p.ID.Name())
}
