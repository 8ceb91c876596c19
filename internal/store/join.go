package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
)

// CreateJoin implements enrol.Joins; control.ErrConflict if there is a token of
// that id.
func (s *Store) CreateJoin(ctx context.Context, r enrol.JoinRecord, e *audit.Event) error {
	return s.update(ctx, "create join token", func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `INSERT INTO join_token (id, digest, host, created, expires, used, key)
			VALUES ($1, $2, $3, $4, $5, 0, '') ON CONFLICT (id) DO NOTHING`,
			text(r.ID), r.Digest[:], text(r.Host), micro(r.Created), micro(r.Expires))
		if err := oneRow(done, err, control.ErrConflict); err != nil {
			return err
		}
		return s.record(ctx, tx, e)
	})
}

// ClaimJoin implements enrol.Joins.
func (s *Store) ClaimJoin(ctx context.Context, c enrol.Claim, e *audit.Event) (host, reason string, err error) {
	err = s.update(ctx, "claim a join token", func(tx *sql.Tx) error {
		// The decision and the use are this one statement.
		err := tx.QueryRowContext(ctx, `UPDATE join_token SET used = $1, key = $2
			WHERE id = $3 AND digest = $4 AND expires > $1 AND (used = 0 OR key = $2) RETURNING host`,
			micro(c.At), text(c.Key), text(c.ID), c.Digest[:]).Scan(&host)
		if errors.Is(err, sql.ErrNoRows) {
			reason = refusedJoin(ctx, tx, c)
			return enrol.ErrJoin
		}
		if err != nil {
			return err
		}
		joined := *e
		object := audit.Object{Kind: "host"}
		if e.Object != nil {
			object = *e.Object
		}
		object.Name = host
		joined.Object = &object
		return s.record(ctx, tx, &joined)
	})
	return host, reason, err
}

// refusedJoin is why a claim changed nothing, for the record only.
func refusedJoin(ctx context.Context, tx *sql.Tx, c enrol.Claim) string {
	var expires int64
	err := tx.QueryRowContext(ctx, `SELECT expires FROM join_token WHERE id = $1 AND digest = $2`, text(c.ID), c.Digest[:]).Scan(&expires)
	switch {
	case err != nil:
		return "join_unknown"
	case expires <= micro(c.At):
		return "join_expired"
	}
	return "join_used"
}
