package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
)

// CreateKey implements control.Keys; control.ErrConflict if there is a key of that id.
func (s *Store) CreateKey(ctx context.Context, k control.Key, e *audit.Event) error {
	scopes, err := json.Marshal(k.Scopes)
	if err != nil {
		return fmt.Errorf("create key: %w", err)
	}
	return s.update(ctx, "create key", func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `INSERT INTO api_key (id, name, digest, scopes, not_after, created, revoked)
			VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING`,
			text(k.ID), text(k.Name), k.Digest[:], string(scopes), micro(k.NotAfter), micro(k.Created), micro(k.Revoked))
		if err := oneRow(done, err, control.ErrConflict); err != nil {
			return err
		}
		return s.record(ctx, tx, e)
	})
}

// RevokeKey implements control.Keys.
func (s *Store) RevokeKey(ctx context.Context, id string, at time.Time, e *audit.Event) error {
	return s.update(ctx, "revoke key "+id, func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `UPDATE api_key SET revoked = $1 WHERE id = $2 AND revoked = 0`, micro(at), text(id))
		if err := oneRow(done, err, control.ErrNotFound); err != nil {
			return err
		}
		return s.record(ctx, tx, e)
	})
}

// oneRow is none unless a statement changed exactly one row.
func oneRow(done sql.Result, err, none error) error {
	if err != nil {
		return err
	}
	n, err := done.RowsAffected()
	if err != nil {
		return err
	}
	if n != 1 {
		return none
	}
	return nil
}

// Keys implements control.Keys.
func (s *Store) Keys(ctx context.Context) ([]control.Key, error) {
	all, err := list(ctx, s.read, scanKey, `SELECT id, name, digest, scopes, not_after, created, revoked FROM api_key`)
	slices.SortFunc(all, func(a, b control.Key) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return all, s.explain("list keys", err)
}

func scanKey(rows *sql.Rows) (k control.Key, err error) {
	var digest []byte
	var scopes string
	var notAfter, created, revoked int64
	if err := rows.Scan(&k.ID, &k.Name, &digest, &scopes, &notAfter, &created, &revoked); err != nil {
		return k, err
	}
	if len(digest) != len(k.Digest) {
		return k, fmt.Errorf("key %s: a digest of %d bytes", k.ID, len(digest))
	}
	k.Digest = [32]byte(digest)
	if err := json.Unmarshal([]byte(scopes), &k.Scopes); err != nil {
		return k, fmt.Errorf("key %s: scopes: %w", k.ID, err)
	}
	k.NotAfter, k.Created, k.Revoked = fromMicro(notAfter), fromMicro(created), fromMicro(revoked)
	return k, nil
}
