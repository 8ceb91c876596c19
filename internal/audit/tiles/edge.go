package tiles

import (
	"context"
	"math/bits"

	"github.com/parleymesh/parley/internal/audit"
)

// An Edge is the right edge of a tree: what it takes to let it grow, and to know
// its root. It does not change, so a transaction that fails leaves the old one in
// force; nil is the edge of the empty tree.
type Edge struct {
	tree *audit.Tree
	// open holds the hashes of the tile of each level that is not full yet.
	open [][]byte
}

// A Tile is a tile with its hashes.
type Tile struct {
	ID
	// Hashes are all of it, 32 bytes each: ID.Width of them. They are the edge's
	// too, and not to be changed.
	Hashes []byte
	// Old is how many of them stood there before: 0 for a tile that is new.
	Old int
}

// LoadEdge gets the edge of a tree of that size: one tile a level, asked for at
// once. Whether it is the edge of that tree shows its root.
func LoadEdge(ctx context.Context, load Loader, size uint64) (*Edge, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	ids := Open(size)
	data, err := load.load(ctx, ids)
	if err != nil {
		return nil, err
	}
	e := &Edge{}
	var roots []audit.Hash // largest first: the last level's first
	for i := len(ids) - 1; i >= 0; i-- {
		id, hashes := ids[i], data[i]
		for len(e.open) <= id.Level {
			e.open = append(e.open, nil)
		}
		e.open[id.Level] = hashes
		for rest := id.Width; rest > 0; {
			span := 1 << (bits.Len(uint(rest)) - 1)
			roots = append(roots, SubtreeHash(hashes[:span*hashSize]))
			hashes, rest = hashes[span*hashSize:], rest-span
		}
	}
	if e.tree, err = audit.NewTree(size, roots); err != nil {
		return nil, err
	}
	return e, nil
}

// Size is the number of entries.
func (e *Edge) Size() uint64 {
	if e == nil {
		return 0
	}
	return e.tree.Size()
}

// Root is the RFC 6962 hash of the tree.
func (e *Edge) Root() audit.Hash {
	if e == nil {
		return new(audit.Tree).Root()
	}
	return e.tree.Root()
}

// Append is the edge after leaves, the hashes of the next entries, and the tiles
// that this makes or changes: of each level those at its end, in order. It hashes
// each node of the tree once.
func (e *Edge) Append(leaves ...audit.Hash) (*Edge, []Tile) {
	next := e.clone()
	g := growth{open: next.open, size: e.Size()}
	nodes := make([]audit.Hash, 0, 64)
	for _, leaf := range leaves {
		nodes = next.tree.AppendNodes(nodes[:0], leaf)
		for level := 0; level*height < len(nodes); level++ {
			g.add(level, nodes[level*height])
		}
	}
	next.open = g.open
	return next, g.close()
}

func (e *Edge) clone() *Edge {
	if e == nil {
		return &Edge{tree: &audit.Tree{}}
	}
	tree, err := audit.NewTree(e.tree.Size(), e.tree.Edge())
	if err != nil {
		panic(err) // it was one before
	}
	return &Edge{tree: tree, open: append([][]byte(nil), e.open...)}
}

// A growth collects the tiles that change.
type growth struct {
	size    uint64 // before
	open    [][]byte
	changed [][]Tile // by level
}

// add puts a hash behind the others of its level.
func (g *growth) add(level int, h audit.Hash) {
	for len(g.open) <= level {
		g.open = append(g.open, nil)
	}
	for len(g.changed) <= level {
		g.changed = append(g.changed, nil)
	}
	tiles := g.changed[level]
	if len(tiles) == 0 || tiles[len(tiles)-1].Width == Width {
		n := (g.size >> (height * level)) / Width
		if len(tiles) > 0 {
			n = tiles[len(tiles)-1].N + 1
		}
		old := g.open[level]
		hashes := append(make([]byte, 0, Width*hashSize), old...)
		tiles = append(tiles, Tile{ID: ID{Level: level, N: n, Width: len(old) / hashSize}, Hashes: hashes, Old: len(old) / hashSize})
		g.changed[level] = tiles
	}
	t := &tiles[len(tiles)-1]
	t.Hashes = append(t.Hashes, h[:]...)
	t.Width++
	g.open[level] = t.Hashes
	if t.Width == Width {
		g.open[level] = nil
	}
}

func (g *growth) close() []Tile {
	var all []Tile
	for _, tiles := range g.changed {
		all = append(all, tiles...)
	}
	return all
}
