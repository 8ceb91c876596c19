package store

import (
	"context"
	"database/sql"
)

// prepare compiles the statements of the write path, and those of a proof, as the store opens,
// where the database is in this process: SQLite takes longer to compile an insertion
// than to carry it out. Over a network the driver keeps what the server compiled.
func (s *Store) prepare(ctx context.Context) error {
	if !s.engine.local() {
		return nil
	}
	s.hot = map[string]*sql.Stmt{}
	for _, query := range []string{beginLog, growLog, holdLog, nextPositions, insertEntries(1), addMinute, addActions, putTile, putCheckpoint} {
		stmt, err := s.write.PrepareContext(ctx, query)
		if err != nil {
			return err
		}
		s.hot[query] = stmt
	}
	s.quick.hot = map[string]*sql.Stmt{}
	for _, query := range []string{selectTile, selectByID, selectNewest} {
		stmt, err := s.read.PrepareContext(ctx, query)
		if err != nil {
			return err
		}
		s.quick.hot[query] = stmt
	}
	return nil
}

// quick is the database for reading, where some statements are compiled already.
type quick struct {
	*sql.DB
	hot map[string]*sql.Stmt
}

// QueryContext is that of the database.
func (q *quick) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if stmt := q.hot[query]; stmt != nil {
		return stmt.QueryContext(ctx, args...)
	}
	return q.DB.QueryContext(ctx, query, args...)
}

// QueryRowContext is that of the database.
func (q *quick) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if stmt := q.hot[query]; stmt != nil {
		return stmt.QueryRowContext(ctx, args...)
	}
	return q.DB.QueryRowContext(ctx, query, args...)
}

// A statement is a query in a transaction, with which it ends.
type statement struct {
	tx    *sql.Tx
	query string
	stmt  *sql.Stmt // compiled; nil if it is not
}

// in is query in tx.
func (s *Store) in(ctx context.Context, tx *sql.Tx, query string) statement {
	st := statement{tx: tx, query: query}
	if compiled := s.hot[query]; compiled != nil {
		st.stmt = tx.StmtContext(ctx, compiled)
	}
	return st
}

func (s statement) exec(ctx context.Context, args ...any) (err error) {
	if s.stmt != nil {
		_, err = s.stmt.ExecContext(ctx, args...)
	} else {
		_, err = s.tx.ExecContext(ctx, s.query, args...)
	}
	return err
}

func (s statement) row(ctx context.Context, args ...any) *sql.Row {
	if s.stmt != nil {
		return s.stmt.QueryRowContext(ctx, args...)
	}
	return s.tx.QueryRowContext(ctx, s.query, args...)
}
