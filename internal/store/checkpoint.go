package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/control"
)

var errUnsigned = errors.New("the server's log has no key")

// ErrOwnKey is that the own log was signed by another key before.
var ErrOwnKey = errors.New("the server's log was signed by another key before")

// Signed says whether the own log was ever signed, and by which key.
func (s *Store) Signed(ctx context.Context) (key string, ok bool, err error) {
	key, _, err = keyOf(ctx, s.read, s.log)
	return key, key != "", s.explain("read the key of the server's log", err)
}

// UseKey signs the own log from now on, and now what was recorded without a key:
// before it nothing can be recorded. ErrOwnKey is for a key that is not the log's.
func (s *Store) UseKey(ctx context.Context, signer *checkpoint.Signer) error {
	return s.update(ctx, "sign the server's log", func(tx *sql.Tx) error {
		if err := s.pin(ctx, tx, s.log, signer.Verifier(), s.cfg.Host); errors.Is(err, collect.ErrKey) {
			return ErrOwnKey
		} else if err != nil {
			return err
		}
		size, err := s.hold(ctx, tx, s.log)
		if err != nil {
			return err
		}
		s.signer = signer
		newest, err := newestCheckpoint(ctx, tx, s.log)
		if err != nil || newest.size == size {
			return err
		}
		edge, err := s.plant(ctx, tx, s.log, uint64(size), nil)
		if err != nil {
			return err
		}
		return s.sign(ctx, tx, edge)
	})
}

// sign keeps the checkpoint of the own log, whose tree has that edge.
func (s *Store) sign(ctx context.Context, tx *sql.Tx, edge *tiles.Edge) error {
	if s.signer == nil {
		return errUnsigned
	}
	c := checkpoint.Checkpoint{Origin: s.signer.Name(), Size: edge.Size(), Root: edge.Root()}
	return s.putCheckpoint(ctx, tx, s.log, c, s.signer.Sign(nil, c.Size, c.Root))
}

const putCheckpoint = `INSERT INTO checkpoint (log, hour, size, root, note, time) VALUES ($1, $2, $3, $4, $5, $6)
	ON CONFLICT (log, hour) DO UPDATE SET size = excluded.size, root = excluded.root, note = excluded.note, time = excluded.time`

// putCheckpoint keeps note as the newest of log.
func (s *Store) putCheckpoint(ctx context.Context, tx *sql.Tx, log string, c checkpoint.Checkpoint, note []byte) error {
	now := micro(s.cfg.Clock.Now())
	return s.in(ctx, tx, putCheckpoint).exec(ctx, log, hourOf(now), int64(c.Size), c.Root[:], note, now)
}

func hourOf(us int64) int64 { return us / time.Hour.Microseconds() }

// Growth implements collect.Counterpart.
func (s *Store) Growth(ctx context.Context, have uint64) (*collect.Growth, error) {
	const doing = "show the server's log"
	if s.signer == nil {
		return nil, fmt.Errorf("%s: %w", doing, errUnsigned)
	}
	newest, err := newestCheckpoint(ctx, s.read, s.log)
	if err != nil {
		return nil, s.explain(doing, err)
	}
	g := &collect.Growth{Key: s.signer.Verifier().String(), Note: newest.note}
	if size := uint64(newest.size); have > 0 && have < size {
		// Whole tiles stay as they are, and a partial one holds what it held: the log
		// may grow meanwhile.
		if g.Proof, err = tiles.Consistency(ctx, s.loader(s.read, s.log), size, have); err != nil {
			return nil, s.explain(doing, err)
		}
	}
	return g, nil
}

// A stored checkpoint; the zero one is none.
type storedCheckpoint struct {
	size       int64
	root, note []byte
	hour, time int64
}

const (
	selectCheckpoint = `SELECT size, root, note, hour, time FROM checkpoint WHERE log = $1 ORDER BY size`
	selectNewest     = selectCheckpoint + ` DESC LIMIT 1`
)

func scanCheckpoint(rows *sql.Rows) (c storedCheckpoint, err error) {
	err = rows.Scan(&c.size, &c.root, &c.note, &c.hour, &c.time)
	return c, err
}

// Checkpoints are the signed checkpoints of a log that were kept, by size.
func (s *Store) Checkpoints(ctx context.Context, log string) ([]control.Signed, error) {
	all, err := list(ctx, s.read, scanCheckpoint, selectCheckpoint, log)
	signed := make([]control.Signed, len(all))
	for i, c := range all {
		signed[i] = control.Signed{Note: c.note, Time: fromMicro(c.time)}
	}
	return signed, s.explain("read the checkpoints of "+log, err)
}

func newestCheckpoint(ctx context.Context, db querier, log string) (c storedCheckpoint, err error) {
	err = db.QueryRowContext(ctx, selectNewest, log).Scan(&c.size, &c.root, &c.note, &c.hour, &c.time)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return c, err
}

func keyOf(ctx context.Context, db querier, log string) (key, host string, err error) {
	err = db.QueryRowContext(ctx, `SELECT key, host FROM log_key WHERE log = $1`, log).Scan(&key, &host)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return key, host, err
}

// pin takes the key of a log that has none yet. Another one, or from another host, is
// collect.ErrKey.
func (s *Store) pin(ctx context.Context, tx *sql.Tx, log string, key *checkpoint.Verifier, host string) error {
	if _, err := tx.ExecContext(ctx, `INSERT INTO log_key (log, key, host, since) VALUES ($1, $2, $3, $4) ON CONFLICT (log) DO NOTHING`,
		log, key.String(), text(host), micro(s.cfg.Clock.Now())); err != nil {
		return err
	}
	pinned, from, err := keyOf(ctx, tx, log)
	switch {
	case err != nil:
		return err
	case pinned != key.String():
		return fmt.Errorf("the key is not %s: %w", pinned, collect.ErrKey)
	case log != s.log && from != text(host):
		return fmt.Errorf("the log is of host %s: %w", from, collect.ErrKey)
	}
	return nil
}

// Witness implements collect.Witness.
func (s *Store) Witness(ctx context.Context, log string, st collect.Statement) (receipt []byte, err error) {
	doing := "witness " + log
	if !audit.ValidLogName(log) || log == s.log {
		return nil, fmt.Errorf("witness %q: %w", log, collect.ErrName)
	}
	if s.signer == nil {
		return nil, fmt.Errorf("%s: %w", doing, errUnsigned)
	}
	key, err := checkpoint.ParseVerifier(st.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	if origin := checkpoint.Origin(s.domain(), log); key.Name() != origin || key.Witness() {
		return nil, fmt.Errorf("%s: the key is of %q, not of %q: %w", doing, key.Name(), origin, collect.ErrName)
	}
	note, err := checkpoint.Open(st.Note, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	err = s.update(ctx, doing, func(tx *sql.Tx) (err error) {
		if err := s.pin(ctx, tx, log, key, st.Host); err != nil {
			return err
		}
		receipt, err = s.witness(ctx, tx, log, note)
		return err
	})
	switch {
	case errors.Is(err, collect.ErrFork):
		err = errors.Join(err, s.forked(ctx, log, forkTree, note.Size, st, err))
	case errors.Is(err, collect.ErrKey):
		err = errors.Join(err, s.forked(ctx, log, forkKey, note.Size, st, err))
	}
	return receipt, err
}

// witness holds a checkpoint against the tree, and keeps it where it is the newest.
func (s *Store) witness(ctx context.Context, tx *sql.Tx, log string, note *checkpoint.Note) ([]byte, error) {
	if err := s.in(ctx, tx, beginLog).exec(ctx, log); err != nil {
		return nil, err
	}
	size, err := s.hold(ctx, tx, log)
	if err != nil || note.Size > uint64(size) {
		return nil, err
	}
	root, err := s.rootAt(ctx, tx, log, uint64(size), note.Size)
	if err != nil {
		return nil, err
	}
	if root != note.Root {
		return nil, fmt.Errorf("at %d entries it has another root than the checkpoint says: %w", note.Size, collect.ErrFork)
	}
	newest, err := newestCheckpoint(ctx, tx, log)
	if err != nil || newest.note != nil && uint64(newest.size) >= note.Size {
		return newest.note, err
	}
	signed, err := s.signer.Cosign(note, s.cfg.Clock.Now())
	if err != nil {
		return nil, err
	}
	return signed, s.putCheckpoint(ctx, tx, log, note.Checkpoint, signed)
}

// rootAt is the root that a log of size entries had when it had fewer.
func (s *Store) rootAt(ctx context.Context, db querier, log string, size, at uint64) (audit.Hash, error) {
	if at == size {
		if edge := s.edges.of(log, size); edge != nil {
			return edge.Root(), nil
		}
	}
	return tiles.Root(ctx, s.loader(db, log), at)
}

// What contradicts a log.
const (
	forkEntry = "fork_entry"
	forkTree  = "fork_tree"
	forkKey   = "fork_key"
)

// forked records, once, that the writer of a log contradicts it: evidence that
// nobody can make but with the log's key, where there is a note.
func (s *Store) forked(ctx context.Context, log, reason string, size uint64, st collect.Statement, why error) error {
	return s.update(ctx, "record a fork of "+log, func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `INSERT INTO fork (log, reason, time, size, host, note) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (log, reason) DO NOTHING`, log, reason, micro(s.cfg.Clock.Now()), int64(size), text(st.Host), bytesOf(st.Note))
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return err
		}
		s.cfg.Logger.Error("an audit log is contradicted", "log", log, "host", st.Host, "entries", size, "error", why)
		return s.record(ctx, tx, &audit.Event{
			Action: audit.Forked, Outcome: audit.Denied, Reason: reason, Actor: &audit.Actor{System: "collect"},
			Object: &audit.Object{Kind: "log", Name: log, Detail: fmt.Sprintf("host %q, %d entries", st.Host, size)},
			Message: map[string]string{
				forkTree:  "the log's signed checkpoint has another root than the entries that were collected",
				forkEntry: "another entry was brought in the place of one that was collected",
				forkKey:   "a checkpoint was brought with another key, or by another host, than the first of the log",
			}[reason],
		})
	})
}
