package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

// Exec runs a statement behind the store's back: what a person with the file and
// a SQL prompt could do.
func (s *Store) Exec(t testing.TB, statement string, args ...any) {
	t.Helper()
	if _, err := s.write.ExecContext(context.Background(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// RootAt is the root that the stored tree of a log had at that size.
func (s *Store) RootAt(ctx context.Context, log string, size uint64) (audit.Hash, error) {
	return tiles.Root(ctx, s.loader(s.read, log), size)
}

// Rows are the rows of a query, as text.
func (s *Store) Rows(t testing.TB, query string) string {
	t.Helper()
	all, err := list(t.Context(), s.read, func(rows *sql.Rows) (string, error) {
		names, err := rows.Columns()
		if err != nil {
			return "", err
		}
		values, into := make([]any, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		err = rows.Scan(into...)
		return fmt.Sprintln(values...), err
	}, query)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "")
}

// Plan is how the database would answer a query.
func (s *Store) Plan(t testing.TB, query string) (plan string) {
	t.Helper()
	steps, err := list(context.Background(), s.read, func(rows *sql.Rows) (detail string, err error) {
		var id, parent, unused int
		err = rows.Scan(&id, &parent, &unused, &detail)
		return detail, err
	}, `EXPLAIN QUERY PLAN `+query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return strings.Join(steps, "; ")
}

// Fit is what a store thinks of a server.
func Fit(version int, product, encoding string) error {
	at, err := parseURL("postgres://parley@127.0.0.1/parley")
	if err != nil {
		return err
	}
	return (&postgres{target: at}).fit(version, product, encoding)
}
