package store

import (
	"context"
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
