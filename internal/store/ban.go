package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/identity"
)

// Ban implements control.Bans; control.ErrConflict if the identity is banned already.
func (s *Store) Ban(ctx context.Context, b control.Ban, e *audit.Event) error {
	return s.update(ctx, "ban "+b.ID.String(), func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `INSERT INTO ban (id, actor, reason, since) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING`,
			b.ID.String(), text(b.Actor), text(b.Reason), micro(b.Since))
		if err := oneRow(done, err, control.ErrConflict); err != nil {
			return err
		}
		return s.record(ctx, tx, e)
	})
}

// Unban implements control.Bans.
func (s *Store) Unban(ctx context.Context, id identity.ID, e *audit.Event) error {
	return s.update(ctx, "unban "+id.String(), func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `DELETE FROM ban WHERE id = $1`, id.String())
		if err := oneRow(done, err, control.ErrNotFound); err != nil {
			return err
		}
		return s.record(ctx, tx, e)
	})
}

// Bans implements control.Bans.
func (s *Store) Bans(ctx context.Context) ([]control.Ban, error) {
	all, err := list(ctx, s.read, func(rows *sql.Rows) (b control.Ban, err error) {
		var id string
		var since int64
		if err := rows.Scan(&id, &b.Actor, &b.Reason, &since); err != nil {
			return b, err
		}
		if b.ID, err = identity.ParseID(id); err != nil {
			return b, fmt.Errorf("ban of %q: %w", id, err)
		}
		b.Since = fromMicro(since)
		return b, nil
	}, `SELECT id, actor, reason, since FROM ban`)
	slices.SortFunc(all, func(a, b control.Ban) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return all, s.explain("list bans", err)
}
