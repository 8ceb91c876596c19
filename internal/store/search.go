package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
)

const (
	selectEntry = `SELECT log, idx, leaf, body, position FROM entry `
	selectByID  = selectEntry + `WHERE event_id = $1 ORDER BY position LIMIT 1`
)

// Search implements control.Events. Events come in the order of arrival, which
// is that of time but for what an agent delivered late. Since is included, Until
// is not. A limit that is not above zero is 100, none is above 10,000.
func (s *Store) Search(ctx context.Context, f control.Filter) ([]control.StoredEvent, error) {
	where, args := s.conditions(f)
	query := selectEntry + `WHERE ` + where + ` ORDER BY position`
	if f.Newest {
		query += ` DESC`
	}
	args = append(args, pageSize(f.Limit))
	found, err := list(ctx, s.read, scanEntry, fmt.Sprintf("%s LIMIT $%d", query, len(args)), args...)
	if f.Newest {
		slices.Reverse(found)
	}
	return found, s.explain("search events", err)
}

// conditions are f in SQL; every value is a parameter.
func (s *Store) conditions(f control.Filter) (string, []any) {
	where, args := []string{"position > $1"}, []any{f.After}
	add := func(column, op string, value any) {
		if s, ok := value.(string); ok {
			value = text(s)
		}
		args = append(args, value)
		where = append(where, fmt.Sprintf("%s %s $%d", column, op, len(args)))
	}
	for _, c := range []struct{ column, value string }{
		{"caller", f.From}, {"callee", f.To}, {"action", f.Action}, {"outcome", f.Outcome},
	} {
		if c.value != "" {
			add(c.column, "=", c.value)
		}
	}
	// The index of these holds no empty ones, and is used only where that shows.
	for _, c := range []struct{ column, value string }{
		{"trace_id", f.TraceID},
		{"request_id", f.RequestID},
		{"call_id", f.CallID},
		{"person", s.hashes.person(f.Subject)},
	} {
		if c.value != "" {
			add(c.column, "=", c.value)
			where = append(where, c.column+" <> ''")
		}
	}
	if !f.Since.IsZero() {
		add("time", ">=", micro(f.Since))
	}
	if !f.Until.IsZero() {
		add("time", "<", micro(f.Until))
		where = append(where, "time > 0") // what was pruned has none
	}
	return strings.Join(where, " AND "), args
}

// Event implements control.Events.
func (s *Store) Event(ctx context.Context, id string) (*control.StoredEvent, error) {
	doing := fmt.Sprintf("read event %q", id)
	found, err := list(ctx, &s.quick, scanEntry, selectByID, text(id))
	if err != nil {
		return nil, s.explain(doing, err)
	}
	if len(found) == 0 || id == "" {
		return nil, fmt.Errorf("%s: %w", doing, control.ErrNotFound)
	}
	return &found[0], nil
}

func scanEntry(rows *sql.Rows) (e control.StoredEvent, err error) {
	var leaf []byte
	var index int64
	if err := rows.Scan(&e.Log, &index, &leaf, &e.Body, &e.Position); err != nil {
		return e, err
	}
	e.Index = uint64(index)
	if len(leaf) != len(e.Leaf) {
		return e, fmt.Errorf("entry %d of %s: a leaf hash of %d bytes", index, e.Log, len(leaf))
	}
	e.Leaf = audit.Hash(leaf)
	return e, nil
}
