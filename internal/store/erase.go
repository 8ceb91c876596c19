package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
)

// Erasable implements control.Eraser.
func (s *Store) Erasable(ctx context.Context, p control.Person) (found []control.Extent, err error) {
	err = s.ofPerson(ctx, s.read, p, func(e control.StoredEvent) error {
		found = extend(found, e)
		return nil
	})
	return found, s.explain("look for a person", err)
}

// Erase implements control.Eraser. The hashes stay as they are: what they cover does
// not have the person.
func (s *Store) Erase(ctx context.Context, p control.Person, e *audit.Event) (erased []control.Extent, err error) {
	const doing = "erase a person"
	err = s.update(ctx, doing, func(tx *sql.Tx) error {
		erased = nil
		// The locks in the order in which record takes them. With the order of arrival
		// held, what is being collected is there already, or finds this erasure.
		if _, err := s.hold(ctx, tx, s.log); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE arrival SET last = last WHERE id = 1`); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO erasure (person, issuer, before) VALUES ($1, $2, $3)
			ON CONFLICT (person, issuer) DO UPDATE SET before = excluded.before`,
			s.hashes.person(p.Subject), text(p.Issuer), micro(e.Time)); err != nil {
			return err
		}
		if err := s.ofPerson(ctx, tx, p, func(found control.StoredEvent) error {
			erased = extend(erased, found)
			body := audit.Committed(found.Body)
			if _, err := tx.ExecContext(ctx, `UPDATE entry SET body = $1, person = '' WHERE log = $2 AND idx = $3`,
				body, found.Log, int64(found.Index)); err != nil {
				return err
			}
			return lighten(ctx, tx, found.Log, len(found.Body)-len(body))
		}); err != nil {
			return err
		}
		return s.recordErasure(ctx, tx, p, e, erased)
	})
	if err == nil {
		err = s.explain(doing, s.engine.scrub(ctx, s.write))
	}
	return erased, err
}

// recordErasure is one event for each log, or where there was nothing, one of none.
func (s *Store) recordErasure(ctx context.Context, tx *sql.Tx, p control.Person, e *audit.Event, erased []control.Extent) error {
	of := *e
	of.Object = &audit.Object{Kind: "person", Name: s.hashes.person(p.Subject), Detail: p.Issuer}
	if len(erased) == 0 {
		return s.record(ctx, tx, &of)
	}
	for i, x := range erased {
		if i > 0 {
			of.ID = audit.NewID(e.Time)
		}
		of.Log = &audit.LogFacts{Name: x.Log, From: x.From, To: x.To, Count: x.Count}
		if err := s.record(ctx, tx, &of); err != nil {
			return err
		}
	}
	return nil
}

// erasePage is how many events of a person are read at once.
const erasePage = 500

// ofPerson calls each for every event of p, in order of arrival.
func (s *Store) ofPerson(ctx context.Context, q interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, p control.Person,
	each func(control.StoredEvent) error,
) error {
	var after int64
	for {
		found, err := list(ctx, q, scanEntry, selectEntry+`WHERE person = $1 AND person <> '' AND position > $2 ORDER BY position LIMIT $3`,
			s.hashes.person(p.Subject), after, erasePage)
		if err != nil {
			return err
		}
		for _, f := range found {
			after = f.Position
			e, err := audit.Decode(f.Body)
			if err != nil {
				return fmt.Errorf("entry %d of %s: %w", f.Index, f.Log, err)
			}
			if p.Issuer != "" && (e.Caller == nil || e.Caller.Issuer != p.Issuer) {
				continue
			}
			if err := each(f); err != nil {
				return err
			}
		}
		if len(found) < erasePage {
			return nil
		}
	}
}

// lighten takes off a log's figures what its bodies no longer have.
func lighten(ctx context.Context, tx *sql.Tx, log string, bytes int) error {
	_, err := tx.ExecContext(ctx, `UPDATE log SET bytes = bytes - $1 WHERE name = $2`, bytes, log)
	return err
}

// extend counts e.
func extend(all []control.Extent, e control.StoredEvent) []control.Extent {
	i := slices.IndexFunc(all, func(x control.Extent) bool { return x.Log == e.Log })
	if i < 0 {
		return append(all, control.Extent{Log: e.Log, From: e.Index, To: e.Index, Count: 1})
	}
	x := &all[i]
	x.From, x.To, x.Count = min(x.From, e.Index), max(x.To, e.Index), x.Count+1
	return all
}

// forget is entries as they are stored: without what is said of somebody who was
// erased after it happened, and before it arrived. What it gets stays as it is.
func (s *Store) forget(ctx context.Context, tx *sql.Tx, entries []audit.Entry, cols []columns) ([]audit.Entry, []columns, error) {
	if !slices.ContainsFunc(cols, func(c columns) bool { return c.person != "" }) {
		return entries, cols, nil
	}
	var some bool
	if err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM erasure)`).Scan(&some); err != nil || !some {
		return entries, cols, err
	}
	entries, cols = slices.Clone(entries), slices.Clone(cols)
	for i := range cols {
		c := &cols[i]
		if c.person == "" {
			continue
		}
		var before sql.NullInt64
		err := tx.QueryRowContext(ctx, `SELECT MAX(before) FROM erasure WHERE person = $1 AND issuer IN ('', $2)`, c.person, c.issuer).Scan(&before)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, nil, err
		}
		if !before.Valid || c.time >= before.Int64 {
			continue
		}
		body := audit.Committed(entries[i].Body)
		if err := lighten(ctx, tx, entries[i].Log, len(entries[i].Body)-len(body)); err != nil {
			return nil, nil, err
		}
		entries[i].Body, c.person = body, ""
	}
	return entries, cols, nil
}
