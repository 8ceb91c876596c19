package store

import (
	"context"
	"database/sql"
	"strings"
	"testing"
)

// Exec runs a statement behind the store's back: what a person with the file and
// a SQL prompt could do.
func (s *Store) Exec(t testing.TB, statement string, args ...any) {
	t.Helper()
	if _, err := s.write.ExecContext(context.Background(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
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
