package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
)

// A tileCheck compares the tiles that the entries of a log make with the stored ones.
type tileCheck struct {
	log  string
	edge *tiles.Edge
	// open are the tiles that are not full, by level.
	open  map[int]tiles.Tile
	count int64 // of those that are full
}

// add takes the leaves that come next.
func (t *tileCheck) add(ctx context.Context, v *verifier, leaves []audit.Hash) error {
	var made []tiles.Tile
	t.edge, made = t.edge.Append(leaves...)
	if t.open == nil {
		t.open = map[int]tiles.Tile{}
	}
	for _, tile := range made {
		if tile.Width < tiles.Width {
			t.open[tile.Level] = tile
			continue
		}
		t.count++
		if t.open[tile.Level].N == tile.N {
			delete(t.open, tile.Level)
		}
		if err := t.compare(ctx, v, tile); err != nil {
			return err
		}
	}
	return nil
}

// end takes the end of the log: what is not full, and that there are no others.
func (t *tileCheck) end(ctx context.Context, v *verifier) error {
	if err := t.compareOpen(ctx, v); err != nil {
		return err
	}
	var stored int64
	if err := v.tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM tile WHERE log = $1`, t.log).Scan(&stored); err != nil {
		return err
	}
	if stored > t.count+int64(len(t.open)) {
		v.fail(v.tree.Size(), "the stored tree goes on behind the end")
	}
	return nil
}

// compareOpen compares the tiles that are not full, the entries' first.
func (t *tileCheck) compareOpen(ctx context.Context, v *verifier) error {
	for _, level := range slices.Sorted(maps.Keys(t.open)) {
		if err := t.compare(ctx, v, t.open[level]); err != nil {
			return err
		}
	}
	return nil
}

// compare says at which entry the stored tile is another.
func (t *tileCheck) compare(ctx context.Context, v *verifier, want tiles.Tile) error {
	var stored []byte
	err := v.tx.QueryRowContext(ctx, selectTile, t.log, want.Level, int64(want.N)).Scan(&stored)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if bytes.Equal(stored, want.Hashes) {
		return nil
	}
	const size = len(audit.Hash{})
	k := 0
	for k < want.Width && bytes.Equal(stored[min(k*size, len(stored)):min((k+1)*size, len(stored))], want.Hashes[k*size:(k+1)*size]) {
		k++
	}
	at := (want.N*tiles.Width + uint64(k)) << (8 * want.Level)
	switch {
	case err != nil:
		v.fail(at, fmt.Sprintf("the stored tree lacks tile %d of level %d", want.N, want.Level))
	case k == want.Width:
		v.fail(v.tree.Size(), "the stored tree goes on behind the end")
	default:
		v.fail(at, fmt.Sprintf("the stored tree has another hash at level %d, tile %d, hash %d", want.Level, want.N, k))
	}
	return nil
}

// A signedCheck holds the checkpoints of a log against its entries.
type signedCheck struct {
	own     bool
	key     *checkpoint.Verifier
	witness *checkpoint.Verifier // this server, of others' logs
	all     []storedCheckpoint   // by size; those before next were looked at
	next    int
	// bad says that the key is none.
	bad string
}

// signedOf reads what was signed of a log.
func (s *Store) signedOf(ctx context.Context, tx *sql.Tx, log string) (c signedCheck, err error) {
	c.own = log == s.log
	if c.all, err = list(ctx, tx, scanCheckpoint, selectCheckpoint, log); err != nil {
		return c, err
	}
	text, _, err := keyOf(ctx, tx, log)
	if err != nil {
		return c, err
	}
	switch {
	case s.signer == nil:
	case c.own: // what this server signs with, whatever the database says
		text = s.signer.Verifier().String()
	default:
		c.witness = s.signer.Witness()
	}
	if text != "" {
		if c.key, err = checkpoint.ParseVerifier(text); err != nil {
			c.bad = "the stored key is none: " + err.Error()
		}
	}
	return c, nil
}

// contradiction is what was brought against a log first, if anything was.
func contradiction(ctx context.Context, tx *sql.Tx, log string) (string, error) {
	var reason, host string
	var at, size int64
	err := tx.QueryRowContext(ctx, `SELECT reason, time, size, host FROM fork WHERE log = $1 ORDER BY time LIMIT 1`, log).Scan(&reason, &at, &size, &host)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	what := map[string]string{
		forkEntry: fmt.Sprintf("entry %d: another one was brought in its place", size),
		forkTree:  fmt.Sprintf("entry %d: a signed checkpoint was brought with another root up to here", max(size, 1)-1),
		forkKey:   "a checkpoint of another key or host was brought",
	}[reason]
	if host != "" {
		what += fmt.Sprintf(", by host %q", host)
	}
	return what + ", on " + stamp(at), err
}

func stamp(us int64) string { return fromMicro(us).Format(time.RFC3339) }

// check looks at the checkpoints of the size that the tree has.
func (c *signedCheck) check(tree *audit.Tree) string {
	for ; c.next < len(c.all) && c.all[c.next].size == int64(tree.Size()); c.next++ {
		if fault := c.one(&c.all[c.next], tree.Root()); fault != "" {
			return fault
		}
	}
	return ""
}

// one checks a checkpoint at whose size the entries have that root.
func (c *signedCheck) one(k *storedCheckpoint, root audit.Hash) string {
	signed := "the checkpoint of " + stamp(k.time)
	switch {
	case c.bad != "":
		return c.bad
	case c.key == nil:
		return signed + " has no key"
	}
	known := []*checkpoint.Verifier{c.key}
	if c.witness != nil {
		known = append(known, c.witness)
	}
	note, err := checkpoint.Open(k.note, known...)
	switch {
	case err != nil:
		return fmt.Sprintf("%s is not the log's: %v", signed, err)
	case c.witness != nil && len(note.Cosignatures) == 0:
		return signed + " was not witnessed by this server"
	case note.Root != root:
		return signed + " is of another log: up to here it had another root"
	case int64(note.Size) != k.size || !bytes.Equal(note.Root[:], k.root) || hourOf(k.time) != k.hour:
		return signed + " is not what is stored beside it"
	}
	return ""
}

// missing says what a log that ends with tree lacks.
func (c *signedCheck) missing(tree *audit.Tree) string {
	if fault := c.check(tree); fault != "" { // of an empty log
		return fault
	}
	if c.next < len(c.all) {
		k := c.all[c.next]
		if k.size < int64(tree.Size()) {
			return fmt.Sprintf("a checkpoint is stored for %d entries", k.size)
		}
		return fmt.Sprintf("it is missing, a checkpoint of %s has %d entries", stamp(k.time), k.size)
	}
	if c.own && tree.Size() > 0 && (len(c.all) == 0 || c.all[len(c.all)-1].size != int64(tree.Size())) {
		return fmt.Sprintf("the newest checkpoint is missing, that of %d entries", tree.Size())
	}
	return ""
}
