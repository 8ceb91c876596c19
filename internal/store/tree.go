package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/fault"
)

// edges are the right edges of trees, so that a tree that grows is not read first.
// One that is here and not in the database, since its transaction failed, has another
// size than the log has, and is left alone.
type edges struct {
	mu    sync.Mutex // guards known
	known map[string]*tiles.Edge
}

// maxEdges bounds how many are kept: of logs that grow, at most some ten kilobytes
// each.
const maxEdges = 1024

func (e *edges) of(log string, size uint64) *tiles.Edge {
	e.mu.Lock()
	defer e.mu.Unlock()
	if known := e.known[log]; known.Size() == size {
		return known
	}
	return nil
}

func (e *edges) keep(log string, edge *tiles.Edge) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known == nil || len(e.known) >= maxEdges {
		e.known = map[string]*tiles.Edge{}
	}
	e.known[log] = edge
}

const putTile = `INSERT INTO tile (log, level, n, hashes) VALUES ($1, $2, $3, $4)
	ON CONFLICT (log, level, n) DO UPDATE SET hashes = excluded.hashes`

// plant lets the tree of a log of size entries, which is locked, grow by leaves.
func (s *Store) plant(ctx context.Context, tx *sql.Tx, log string, size uint64, leaves []audit.Hash) (*tiles.Edge, error) {
	edge := s.edges.of(log, size)
	if edge == nil && size > 0 {
		var err error
		if edge, err = tiles.LoadEdge(ctx, s.loader(tx, log), size); err != nil {
			return nil, fmt.Errorf("the tree of %s: %w", log, err)
		}
	}
	edge, changed := edge.Append(leaves...)
	if err := s.putTiles(ctx, tx, log, changed); err != nil {
		return nil, err
	}
	s.edges.keep(log, edge)
	return edge, nil
}

func (s *Store) putTiles(ctx context.Context, tx *sql.Tx, log string, changed []tiles.Tile) error {
	put := s.in(ctx, tx, putTile)
	for _, t := range changed {
		if err := put.exec(ctx, log, t.Level, int64(t.N), t.Hashes); err != nil {
			return err
		}
	}
	return nil
}

// A querier is a database or a transaction.
type querier interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

const selectTile = `SELECT hashes FROM tile WHERE log = $1 AND level = $2 AND n = $3`

// loader gets the tiles of a log.
func (s *Store) loader(db querier, log string) tiles.Loader {
	return func(ctx context.Context, ids []tiles.ID) ([][]byte, error) {
		all := make([][]byte, len(ids))
		for i, id := range ids {
			err := db.QueryRowContext(ctx, selectTile, log, id.Level, int64(id.N)).Scan(&all[i])
			if errors.Is(err, sql.ErrNoRows) {
				err = fmt.Errorf("%s is missing", id.Path())
			}
			if err != nil {
				return nil, err
			}
		}
		return all, nil
	}
}

// plantPage is how many leaves are read at once to make the tree of a log anew.
const plantPage = 16 * tiles.Width

// plantAll makes the trees of all logs from their entries.
func (s *Store) plantAll(ctx context.Context, tx *sql.Tx) error {
	logs, err := list(ctx, tx, scanLog, selectLogs)
	if err != nil {
		return err
	}
	for _, l := range logs {
		var edge *tiles.Edge
		for next := int64(0); next < l.size; {
			leaves, err := s.leaves(ctx, tx, l.name, next, min(l.size, next+plantPage))
			if err != nil {
				return s.broken(l.name, err)
			}
			var changed []tiles.Tile
			edge, changed = edge.Append(leaves...)
			if err := s.putTiles(ctx, tx, l.name, changed); err != nil {
				return err
			}
			if next += int64(len(leaves)); next%(64*plantPage) == 0 || next == l.size {
				s.cfg.Logger.Info("the tree of an audit log is being made", "log", l.name, "entries", next, "of", l.size)
			}
		}
	}
	return nil
}

// errHole says that an entry is missing, or its leaf, which VerifyLogs locates.
var errHole = errors.New("an entry is missing")

// leaves are those of a log from first up to end.
func (s *Store) leaves(ctx context.Context, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, log string, first, end int64,
) ([]audit.Hash, error) {
	next := first
	leaves, err := list(ctx, db, func(rows *sql.Rows) (leaf audit.Hash, err error) {
		var index int64
		var b []byte
		if err := rows.Scan(&index, &b); err != nil {
			return leaf, err
		}
		if index != next {
			return leaf, fmt.Errorf("entry %d: %w", next, errHole)
		}
		if len(b) != len(leaf) {
			return leaf, fmt.Errorf("entry %d: its leaf has %d bytes: %w", index, len(b), errHole)
		}
		next++
		return audit.Hash(b), nil
	}, `SELECT idx, leaf FROM entry WHERE log = $1 AND idx >= $2 AND idx < $3 ORDER BY idx`, log, first, end)
	if err == nil && next != end {
		err = fmt.Errorf("entry %d: %w", next, errHole)
	}
	return leaves, err
}

// broken makes err a fault where a log is not whole.
func (s *Store) broken(log string, err error) error {
	err = fmt.Errorf("%s: %w", log, err)
	if !errors.Is(err, errHole) {
		return err
	}
	return fault.Wrap(err, fault.StoreCorrupt, "keep it for inspection (the parley that last ran here has: parley audit verify), and restore the last good copy",
		"the audit log in the database %s is not whole", s.engine)
}

// A named log with its size.
type named struct {
	name string
	size int64
}

const selectLogs = `SELECT name, size FROM log`

func scanLog(rows *sql.Rows) (l named, err error) {
	err = rows.Scan(&l.name, &l.size)
	return l, err
}
