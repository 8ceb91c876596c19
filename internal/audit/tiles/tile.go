// Package tiles is the RFC 6962 tree of a log, kept and handed out as the tiles of
// C2SP tlog-tiles: 256 hashes a tile, each the root of a full tile one level down.
// It grows a tree by its right edge, proves inclusion and consistency from a few
// tiles, and writes and reads exports: directories of tiles, entries and a signed
// checkpoint, which other tools read too.
//
// It refuses to verify an export; audit/offline does.
package tiles

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	// Width is the number of hashes of a full tile, and of entries of a full bundle.
	Width = 1 << height

	height   = 8
	hashSize = sha256.Size
)

// ErrTile says that what was loaded as a tile is not one, or too short.
var ErrTile = errors.New("not the tile that belongs there")

// An ID names a tile: the Width first of its hashes.
type ID struct {
	Level int
	N     uint64
	Width int // 1 to 256
}

// At is the tile n of a level as a tree of that size has it; its Width is 0 where
// the tree has none.
func At(size uint64, level int, n uint64) ID {
	id := ID{Level: level, N: n}
	if hashes := size >> (height * level); n < (hashes+Width-1)/Width {
		id.Width = int(min(hashes-n*Width, Width))
	}
	return id
}

// Path is the place of the tile in an export.
func (id ID) Path() string {
	return "tile/" + strconv.Itoa(id.Level) + "/" + place(id.N, id.Width)
}

// BundlePath is the place in an export of the entries whose hashes tile n of level
// 0 has.
func BundlePath(n uint64, width int) string { return "tile/entries/" + place(n, width) }

// place is N in groups of three digits, all but the last marked, and the width of
// what is not full.
func place(n uint64, width int) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	if width < Width {
		s += ".p/" + strconv.Itoa(width)
	}
	return s
}

// A Loader gets the hashes of tiles, 32 bytes each and at least as many as Width
// says: a log that has grown since may have more. All that is needed at once is
// asked for at once.
type Loader func(ctx context.Context, ids []ID) ([][]byte, error)

// load checks what a Loader says, and cuts it to what was asked for.
func (l Loader) load(ctx context.Context, ids []ID) ([][]byte, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	data, err := l(ctx, ids)
	if err != nil {
		return nil, err
	}
	if len(data) != len(ids) {
		return nil, fmt.Errorf("%w: %d tiles were asked for, %d came", ErrTile, len(ids), len(data))
	}
	cut := make([][]byte, len(data))
	for i, id := range ids {
		if len(data[i]) < id.Width*hashSize || len(data[i]) > Width*hashSize || len(data[i])%hashSize != 0 {
			return nil, fmt.Errorf("%s: %w: it has %d bytes, %d hashes are %d", id.Path(), ErrTile, len(data[i]), id.Width, id.Width*hashSize)
		}
		cut[i] = data[i][:id.Width*hashSize]
	}
	return cut, nil
}

// A hashReader is the tlog.HashReader of a tree of that size.
type hashReader struct {
	ctx  context.Context
	load Loader
	size uint64
}

// ReadHashes implements tlog.HashReader.
func (r hashReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	type subtree struct {
		tile        int // of ids
		first, span int // hashes of the tile
	}
	trees := make([]subtree, len(indexes))
	var ids []ID
	known := map[ID]int{}
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		span := 1 << (level % height)
		first := uint64(n) * uint64(span)
		id := At(r.size, level/height, first/Width)
		k, seen := known[id]
		if !seen {
			k = len(ids)
			known[id] = k
			ids = append(ids, id)
		}
		trees[i] = subtree{tile: k, first: int(first % Width), span: span}
		if trees[i].first+span > id.Width {
			return nil, fmt.Errorf("%s: %w: a tree of %d entries has no hash %d of it", id.Path(), ErrTile, r.size, trees[i].first+span-1)
		}
	}
	data, err := r.load.load(r.ctx, ids)
	if err != nil {
		return nil, err
	}
	hashes := make([]tlog.Hash, len(indexes))
	for i, t := range trees {
		hashes[i] = tlog.Hash(SubtreeHash(data[t.tile][t.first*hashSize : (t.first+t.span)*hashSize]))
	}
	return hashes, nil
}

// Open is the tiles of a tree that are not full, one a level at most and from the
// entries up: what LoadEdge asks for.
func Open(size uint64) []ID {
	var ids []ID
	for level := 0; size>>(height*level) > 0; level++ {
		if id := At(size, level, size>>(height*(level+1))); id.Width > 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// SubtreeHash is the root of the complete tree over hashes, of 32 bytes each and a
// power of two of them: of a full tile the hash that the tile above has.
func SubtreeHash(hashes []byte) audit.Hash {
	if len(hashes) == hashSize {
		return audit.Hash(hashes)
	}
	half := len(hashes) / 2
	return nodeHash(SubtreeHash(hashes[:half]), SubtreeHash(hashes[half:]))
}

func nodeHash(left, right audit.Hash) audit.Hash {
	return audit.Hash(tlog.NodeHash(tlog.Hash(left), tlog.Hash(right)))
}

func checkSize(size uint64) error {
	if size > checkpoint.MaxSize {
		return fmt.Errorf("a tree of %d entries is larger than any", size)
	}
	return nil
}
