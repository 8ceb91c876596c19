package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"golang.org/x/mod/sumdb/tlog"
)

// Export verifies the export in a directory: the signature of its checkpoint, every
// tile from the signed root down, every entry against its leaf hash, that nothing
// is missing, and each pin. An error says that this could not be done; what is wrong
// with the log is in the report. Memory does not grow with the log.
func Export(ctx context.Context, dir string, given Given) (*Report, error) {
	if err := given.check(); err != nil {
		return nil, err
	}
	d, err := tiles.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	r := &Report{Kind: "export", Name: dir}
	signed, err := d.Checkpoint()
	if err != nil {
		return nil, fmt.Errorf("%s is no export of a log: %w", dir, err)
	}
	c, err := given.checkpoint(signed, "checkpoint", r)
	if err != nil {
		r.find(Finding{Kind: "signature", File: "checkpoint", What: err.Error()})
		return r, nil
	}
	pins, err := given.pins(c.Origin, r)
	if err != nil {
		return nil, err
	}
	w := &walk{ctx: ctx, dir: d, r: r, size: c.Size}
	if err := w.tree(c); err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	if err := w.pins(c, pins); err != nil {
		return nil, err
	}
	w.when()
	r.Intact = r.Signed && len(r.Findings) == 0
	return r, nil
}

// errEnough ends a walk that has found as much as is reported.
var errEnough = errors.New("there is enough to report")

// A walk goes through an export from the root to the entries. Each tile is held
// against the hash that the tile above has of it; only where one differs, what it
// should be is computed from the entries, which tells which of the two was changed.
type walk struct {
	ctx  context.Context
	dir  *tiles.Dir
	r    *Report
	size uint64
	// first and last are the first and the last body that is in the tree.
	first, last []byte
	beside      *bundle // the one that was looked into last, for times
}

// go on, unless it was cancelled or there is enough to report.
func (w *walk) goOn() error {
	if w.r.More {
		return errEnough
	}
	return w.ctx.Err()
}

// tree verifies the tiles at the right edge by the root, and all else by them.
func (w *walk) tree(c checkpoint.Checkpoint) error {
	edge := tiles.Open(w.size)
	choice := make([][]byte, len(edge))
	for i, id := range edge {
		data, err := w.dir.Tile(id)
		if err == nil {
			choice[i] = data
		} else if !errors.Is(err, fs.ErrNotExist) {
			w.find("tile", id, err.Error())
		} else {
			w.find("missing", id, "the tile is missing")
		}
	}
	if w.rootOf(choice) != c.Root {
		if err := w.mend(edge, choice, c.Root); err != nil {
			return err
		}
	}
	for i := len(edge) - 1; i >= 0; i-- {
		if err := w.below(edge[i], choice[i]); err != nil {
			return err
		}
	}
	return nil
}

// mend finds out which of the tiles at the edge are not what the root says, by
// computing them from what is below: the mix of those and of the files that has the
// root is the tree. Where none has, it is reported that the tree is another.
func (w *walk) mend(edge []tiles.ID, choice [][]byte, root audit.Hash) error {
	computed := make([][]byte, len(edge))
	var differ []int
	for i, id := range edge {
		data, err := w.compute(id)
		if err != nil {
			return err
		}
		computed[i] = data
		if data != nil && string(data) != string(choice[i]) {
			differ = append(differ, i)
		}
	}
	mix := make([][]byte, len(edge))
	for take := uint(1); take < 1<<len(differ); take++ {
		copy(mix, choice)
		for k, i := range differ {
			if take>>k&1 == 1 {
				mix[i] = computed[i]
			}
		}
		if w.rootOf(mix) != root {
			continue
		}
		for i, id := range edge {
			w.blame(id, choice[i], mix[i])
		}
		copy(choice, mix)
		return nil
	}
	whole := true
	for i := range choice {
		if choice[i] == nil {
			choice[i] = computed[i]
		}
		whole = whole && choice[i] != nil
	}
	if whole { // what is missing was reported, and then there is no root to compare
		w.r.find(Finding{Kind: "root", File: "checkpoint", What: fmt.Sprintf("the tiles and entries do not have the root that it says, %x: they are of another tree", root)})
	}
	return nil
}

// below verifies what stands under a tile with these hashes; nil are not known.
func (w *walk) below(id tiles.ID, hashes []byte) error {
	if id.Level == 0 {
		return w.entries(id, hashes)
	}
	for i := range id.Width {
		child := tiles.At(w.size, id.Level-1, id.N*tiles.Width+uint64(i))
		var want *audit.Hash
		if hashes != nil {
			h := audit.Hash(hashes[i*32 : i*32+32])
			want = &h
		}
		if err := w.tile(child, want); err != nil {
			return err
		}
	}
	return nil
}

// tile verifies a full tile, whose hash is want in the tile above, and what stands
// under it.
func (w *walk) tile(id tiles.ID, want *audit.Hash) error {
	if err := w.goOn(); err != nil {
		return err
	}
	data, err := w.dir.Tile(id)
	if err == nil && (want == nil || tiles.SubtreeHash(data) == *want) {
		return w.below(id, data)
	}
	if err != nil {
		data = nil
	}
	computed, computeErr := w.compute(id)
	if computeErr != nil {
		return computeErr
	}
	switch right := computed != nil && want != nil && tiles.SubtreeHash(computed) == *want; {
	case err != nil && errors.Is(err, fs.ErrNotExist):
		w.find("missing", id, "the tile is missing")
	case err != nil:
		w.find("tile", id, err.Error())
	case right:
		w.blame(id, data, computed)
	default:
		w.find("tile", id, "their tile is not the one whose hash the tile above has: they, or their hashes, are others than the tree had")
	}
	if computed != nil && (data == nil || want != nil && tiles.SubtreeHash(computed) == *want) {
		data = computed
	}
	return w.below(id, data)
}

// blame reports the hashes of a tile that differ from what they should be, which
// the entries under them say too. What is not there was reported before.
func (w *walk) blame(id tiles.ID, is, should []byte) {
	for i := 0; is != nil && i < id.Width; i++ {
		if string(is[i*32:i*32+32]) != string(should[i*32:i*32+32]) {
			w.r.find(Finding{
				Kind: "tile", File: id.Path(), Entries: span(id.Level, id.N*tiles.Width+uint64(i), 1),
				What: fmt.Sprintf("hash %d of their tile was changed; the entries are what the root says", i),
			})
		}
	}
}

// compute is the hashes of a tile as they follow from the entries under it; nil if
// one of those is not to be had.
func (w *walk) compute(id tiles.ID) ([]byte, error) {
	if err := w.goOn(); err != nil {
		return nil, err
	}
	if id.Level > 0 {
		hashes := make([]byte, 0, id.Width*32)
		for i := range id.Width {
			below, err := w.compute(tiles.At(w.size, id.Level-1, id.N*tiles.Width+uint64(i)))
			if below == nil || err != nil {
				return nil, err
			}
			h := tiles.SubtreeHash(below)
			hashes = append(hashes, h[:]...)
		}
		return hashes, nil
	}
	entries, err := w.dir.Bundle(id.N, id.Width)
	if err != nil { // which is reported where the entries are verified
		return nil, nil
	}
	known, _ := w.dir.Tile(id) // for entries without a body
	hashes := make([]byte, 0, id.Width*32)
	for i, e := range entries {
		h := leafHash(e)
		if len(e) == 0 {
			if known == nil {
				return nil, nil
			}
			h = audit.Hash(known[i*32 : i*32+32])
		}
		hashes = append(hashes, h[:]...)
	}
	return hashes, nil
}

// entries verifies the entries of a tile of level 0.
func (w *walk) entries(id tiles.ID, hashes []byte) error {
	if err := w.goOn(); err != nil {
		return err
	}
	first := id.N * tiles.Width
	entries, err := w.dir.Bundle(id.N, id.Width)
	path := tiles.BundlePath(id.N, id.Width)
	switch {
	case errors.Is(err, tiles.ErrBundle):
		w.broken(id, entries, hashes, err)
		return nil
	case errors.Is(err, fs.ErrNotExist):
		w.r.find(Finding{Kind: "missing", File: path, Entries: span(0, first, uint64(id.Width)), What: "the bundle of the entries is missing"})
		return nil
	case err != nil:
		w.r.find(Finding{Kind: "bundle", File: path, Entries: span(0, first, uint64(id.Width)), What: err.Error()})
		return nil
	}
	for i, e := range entries {
		if hashes == nil {
			break // that the tile is missing was reported
		}
		leaf, want := leafHash(e), audit.Hash(hashes[i*32:i*32+32])
		switch {
		case len(e) == 0:
			w.r.pruned(first + uint64(i))
		case leaf == want:
			w.r.Verified++
			if w.last = e; w.first == nil {
				w.first = e
			}
		default:
			what := "its leaf hash is not in the tree"
			if at := indexOf(hashes, leaf); at >= 0 {
				what = fmt.Sprintf("its leaf hash is not in the tree there: it is that of entry %d", first+uint64(at))
			}
			w.r.find(Finding{Kind: "entry", File: path, Entries: span(0, first+uint64(i), 1), What: what})
		}
	}
	return nil
}

// broken says where a bundle that cannot be read whole begins to differ.
func (w *walk) broken(id tiles.ID, entries [][]byte, hashes []byte, err error) {
	hash := func(i int) (h audit.Hash) {
		if hashes != nil && i < id.Width {
			h = audit.Hash(hashes[i*32 : i*32+32])
		}
		return h
	}
	i := 0
	for i < len(entries) && (len(entries[i]) == 0 || leafHash(entries[i]) == hash(i)) {
		i++
	}
	first := id.N*tiles.Width + uint64(min(i, id.Width-1))
	what := err.Error()
	switch {
	case i < len(entries) && leafHash(entries[i]) == hash(i+1):
		what = "it was taken out: the one after it stands in its place"
	case i+1 < len(entries) && leafHash(entries[i+1]) == hash(i):
		what = "another entry was put in before it"
	}
	w.r.find(Finding{
		Kind: "bundle", File: tiles.BundlePath(id.N, id.Width), What: what,
		Entries: &Range{First: first, Last: id.N*tiles.Width + uint64(id.Width) - 1},
	})
}

func (w *walk) find(kind string, id tiles.ID, what string) {
	w.r.find(Finding{Kind: kind, File: id.Path(), Entries: span(id.Level, id.N*tiles.Width, uint64(id.Width)), What: what})
}

// span is the entries under count hashes of a level.
func span(level int, n, count uint64) *Range {
	return &Range{First: n << (8 * level), Last: (n+count)<<(8*level) - 1}
}

func indexOf(hashes []byte, h audit.Hash) int {
	for i := 0; i < len(hashes); i += 32 {
		if audit.Hash(hashes[i:i+32]) == h {
			return i / 32
		}
	}
	return -1
}

// leafHash is that of the bytes as they are. audit.LeafHash leaves a private part out
// of account, and so would not see one that somebody added to an export.
func leafHash(entry []byte) audit.Hash { return audit.Hash(tlog.RecordHash(entry)) }

// rootOf is the root of a tree that has these tiles at its edge; where one is
// missing it is none.
func (w *walk) rootOf(data [][]byte) audit.Hash {
	edge, err := tiles.LoadEdge(w.ctx, func(context.Context, []tiles.ID) ([][]byte, error) { return data, nil }, w.size)
	if err != nil {
		return audit.Hash{}
	}
	return edge.Root()
}
