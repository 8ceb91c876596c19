package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/mesh"
)

// maxPage bounds what one call lists.
const maxPage = 10_000

// Apply implements control.Revisions; rev.Number is set when it returns nil. The
// counter's row stays locked until the transaction ends, so the order of numbers
// is the order of commits.
func (s *Store) Apply(ctx context.Context, rev *control.Revision, expect int64, e *audit.Event) error {
	ports, err := encodePorts(rev.Ports)
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	number := int64(0)
	err = s.update(ctx, "apply", func(tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `UPDATE meta SET rev = rev + 1 WHERE id = 1 AND rev = $1 RETURNING rev`, expect).Scan(&number)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("revision %d is not the newest: %w", expect, control.ErrConflict)
		}
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO revision (number, applied, actor, message, name, text, digest, ports, rollback_of)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			number, micro(rev.Applied), text(rev.Actor), text(rev.Message), text(rev.Name), bytesOf(rev.Text), rev.Digest, ports, rev.RollbackOf); err != nil {
			return err
		}
		return s.record(ctx, tx, e)
	})
	if err == nil {
		rev.Number = number
	}
	return err
}

// bytesOf keeps an empty text from being NULL.
func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

const selectRevision = `SELECT number, applied, actor, message, name, text, digest, ports, rollback_of FROM revision `

// Head implements control.Revisions.
func (s *Store) Head(ctx context.Context) (*control.Revision, error) {
	return s.revision(ctx, "read the newest revision", selectRevision+`ORDER BY number DESC LIMIT 1`)
}

// Revision implements control.Revisions.
func (s *Store) Revision(ctx context.Context, number int64) (*control.Revision, error) {
	return s.revision(ctx, fmt.Sprintf("read revision %d", number), selectRevision+`WHERE number = $1`, number)
}

func (s *Store) revision(ctx context.Context, doing, query string, args ...any) (*control.Revision, error) {
	all, err := s.revisions(ctx, doing, query, args...)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: %w", doing, control.ErrNotFound)
	}
	return all[0], nil
}

// Revisions implements control.Revisions; a limit that is not above zero is 100.
func (s *Store) Revisions(ctx context.Context, before int64, limit int) ([]*control.Revision, error) {
	if before <= 0 {
		before = 1<<63 - 1
	}
	return s.revisions(ctx, "list revisions", selectRevision+`WHERE number < $1 ORDER BY number DESC LIMIT $2`, before, pageSize(limit))
}

// pageSize is limit within bounds; 100 where none is given.
func pageSize(limit int) int {
	if limit <= 0 {
		limit = 100
	}
	return min(limit, maxPage)
}

func (s *Store) revisions(ctx context.Context, doing, query string, args ...any) ([]*control.Revision, error) {
	all, err := list(ctx, s.read, func(rows *sql.Rows) (*control.Revision, error) {
		var r control.Revision
		var applied int64
		var ports string
		if err := rows.Scan(&r.Number, &applied, &r.Actor, &r.Message, &r.Name, &r.Text, &r.Digest, &ports, &r.RollbackOf); err != nil {
			return nil, err
		}
		r.Applied = fromMicro(applied)
		var err error
		r.Ports, err = decodePorts(ports)
		return &r, err
	}, query, args...)
	return all, s.explain(doing, err)
}

// list is every row that query finds, as scan reads it.
func list[T any](ctx context.Context, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, scan func(*sql.Rows) (T, error), query string, args ...any,
) ([]T, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// A port is one entry of mesh.Ports, which JSON cannot have as a map.
type port struct {
	mesh.Edge
	Port int `json:"port"`
}

func encodePorts(ports mesh.Ports) (string, error) {
	all := make([]port, 0, len(ports))
	for e, p := range ports {
		all = append(all, port{e, p})
	}
	slices.SortFunc(all, func(a, b port) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	text, err := json.Marshal(all)
	return string(text), err
}

func decodePorts(text string) (mesh.Ports, error) {
	var all []port
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, fmt.Errorf("ports: %w", err)
	}
	ports := make(mesh.Ports, len(all))
	for _, p := range all {
		ports[p.Edge] = p.Port
	}
	return ports, nil
}
