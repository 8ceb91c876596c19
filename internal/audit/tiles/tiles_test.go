package tiles_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"golang.org/x/mod/sumdb/tlog"
)

// place is where a tile is kept, whatever its width.
type place struct {
	level int
	n     uint64
}

// memory keeps tiles as a database does, and counts what is loaded.
type memory struct {
	tiles  map[place][]byte
	calls  int
	loaded int
}

func (m *memory) save(t testing.TB, changed []tiles.Tile) {
	t.Helper()
	for _, c := range changed {
		k := place{c.Level, c.N}
		if old := m.tiles[k]; len(old) != 32*c.Old || !bytes.HasPrefix(c.Hashes, old) || len(c.Hashes) != 32*c.Width || c.Width <= c.Old {
			t.Fatalf("%s: %d bytes of which %d are old, over %d", c.Path(), len(c.Hashes), c.Old, len(old))
		}
		m.tiles[k] = bytes.Clone(c.Hashes)
	}
}

func (m *memory) load(_ context.Context, ids []tiles.ID) ([][]byte, error) {
	m.calls++
	m.loaded += len(ids)
	var data [][]byte
	for _, id := range ids {
		data = append(data, m.tiles[place{id.Level, id.N}])
	}
	return data, nil
}

// stored is the log as golang.org/x/mod/sumdb/tlog keeps it: the reference.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range indexes {
		out = append(out, s[i])
	}
	return out, nil
}

func leaf(n uint64) audit.Hash { return audit.LeafHash(binary.BigEndian.AppendUint64(nil, n)) }

// grow appends count leaves from edge on, in batches of at most batch.
func grow(t testing.TB, m *memory, edge *tiles.Edge, count, batch int) *tiles.Edge {
	t.Helper()
	for count > 0 {
		n := min(count, batch)
		leaves := make([]audit.Hash, n)
		for i := range leaves {
			leaves[i] = leaf(edge.Size() + uint64(i))
		}
		next, changed := edge.Append(leaves...)
		m.save(t, changed)
		edge, count = next, count-n
	}
	return edge
}

// For each size: the same root as audit.Tree and tlog have, the tiles that the
// specification asks for and no others, the same edge when it is loaded, and the
// same proofs as tlog's.
func TestEverySize(t *testing.T) {
	t.Parallel()
	const sizes = 1100
	rng := rand.New(rand.NewPCG(1, 2))
	m := &memory{tiles: map[place][]byte{}}
	var edge *tiles.Edge
	var tree audit.Tree
	var ref stored
	for size := uint64(0); size <= sizes; size++ {
		if size > 0 {
			hashes, err := tlog.StoredHashesForRecordHash(int64(size-1), tlog.Hash(leaf(size-1)), ref)
			if err != nil {
				t.Fatal(err)
			}
			ref = append(ref, hashes...)
			tree.Append(leaf(size - 1))
			edge = grow(t, m, edge, 1, 1)
		}
		if edge.Size() != size || edge.Root() != tree.Root() {
			t.Fatalf("size %d: %d entries, root %x, want %x", size, edge.Size(), edge.Root(), tree.Root())
		}
		if root, err := tiles.Root(t.Context(), m.load, size); err != nil || root != tree.Root() {
			t.Fatalf("size %d: Root = %x, %v", size, root, err)
		}
		checkTiles(t, m, size, ref)
		loaded, err := tiles.LoadEdge(t.Context(), m.load, size)
		if err != nil || loaded.Size() != size || loaded.Root() != tree.Root() {
			t.Fatalf("size %d: LoadEdge = %v, %v", size, loaded, err)
		}
		a, changed := edge.Append(leaf(size), leaf(size+1))
		b, changedToo := loaded.Append(leaf(size), leaf(size+1))
		if a.Root() != b.Root() || fmt.Sprint(changed) != fmt.Sprint(changedToo) {
			t.Fatalf("size %d: a loaded edge grows otherwise", size)
		}
		for range 3 {
			checkProofs(t, m, ref, size, rng)
		}
	}
}

// checkTiles compares all tiles of a tree with their definition.
func checkTiles(t *testing.T, m *memory, size uint64, ref stored) {
	t.Helper()
	count := 0
	for level := 0; size>>(8*level) > 0; level++ {
		for n := uint64(0); ; n++ {
			id := tiles.At(size, level, n)
			if id.Width == 0 {
				break
			}
			count++
			got := m.tiles[place{level, n}]
			if len(got) != 32*id.Width {
				t.Fatalf("size %d: %s has %d bytes", size, id.Path(), len(got))
			}
			for i := range id.Width {
				want := ref[tlog.StoredHashIndex(8*level, int64(n*256)+int64(i))]
				if !bytes.Equal(got[32*i:32*i+32], want[:]) {
					t.Fatalf("size %d: hash %d of %s is another", size, i, id.Path())
				}
			}
		}
	}
	if count != len(m.tiles) {
		t.Fatalf("size %d: %d tiles, not %d", size, len(m.tiles), count)
	}
}

// checkProofs makes a proof of each kind in a tree of size entries and compares it
// with tlog's.
func checkProofs(t *testing.T, m *memory, ref stored, size uint64, rng *rand.Rand) {
	t.Helper()
	root, err := tiles.Root(t.Context(), m.load, size)
	if err != nil {
		t.Fatal(err)
	}
	old := rng.Uint64N(size + 1)
	oldRoot, err := tiles.Root(t.Context(), m.load, old)
	if err != nil {
		t.Fatal(err)
	}
	consistent, err := tiles.Consistency(t.Context(), m.load, size, old)
	if err != nil {
		t.Fatal(err)
	}
	if err := tiles.CheckConsistency(consistent, size, root, old, oldRoot); err != nil {
		t.Fatalf("%d of %d: %v", old, size, err)
	}
	if old > 0 {
		want, err := tlog.ProveTree(int64(size), int64(old), ref)
		if err != nil || fmt.Sprintf("%x", consistent) != fmt.Sprintf("%x", [][32]byte(theirs(want))) {
			t.Fatalf("%d of %d: another proof than tlog's (%v)", old, size, err)
		}
		if err := tiles.CheckConsistency(consistent, size, root, old, leaf(0)); (oldRoot != leaf(0)) != errors.Is(err, tiles.ErrProof) {
			t.Fatalf("%d of %d, another root: %v", old, size, err)
		}
	}
	if size == 0 {
		return
	}
	index := rng.Uint64N(size)
	included, err := tiles.Inclusion(t.Context(), m.load, size, index)
	if err != nil {
		t.Fatal(err)
	}
	want, err := tlog.ProveRecord(int64(size), int64(index), ref)
	if err != nil || fmt.Sprintf("%x", included) != fmt.Sprintf("%x", [][32]byte(theirs(want))) {
		t.Fatalf("entry %d of %d: another proof than tlog's (%v)", index, size, err)
	}
	if err := tiles.CheckInclusion(included, size, root, index, leaf(index)); err != nil {
		t.Fatalf("entry %d of %d: %v", index, size, err)
	}
	for _, err := range []error{
		tiles.CheckInclusion(included, size, root, index, leaf(index+1)),
		tiles.CheckInclusion(included, size, leaf(size), index, leaf(index)),
		tiles.CheckInclusion(append(included, root), size, root, index, leaf(index)),
		tiles.CheckInclusion(included, size, root, size, leaf(index)),
	} {
		if !errors.Is(err, tiles.ErrProof) {
			t.Fatalf("entry %d of %d: a false proof: %v", index, size, err)
		}
	}
}

func theirs[P ~[]tlog.Hash](p P) [][32]byte {
	var out [][32]byte
	for _, h := range p {
		out = append(out, h)
	}
	return out
}

// Whatever the batches, the same tiles come of it.
func TestRandomBatches(t *testing.T) {
	t.Parallel()
	const size = 66_500 // three levels, and the second has just a full tile
	rng := rand.New(rand.NewPCG(3, 4))
	want := &memory{tiles: map[place][]byte{}}
	all := grow(t, want, nil, size, size)
	for range 2 {
		got := &memory{tiles: map[place][]byte{}}
		var edge *tiles.Edge
		for edge.Size() < size {
			edge = grow(t, got, edge, min(1+rng.IntN(600), int(size-edge.Size())), 600)
			if rng.IntN(4) == 0 {
				var err error
				if edge, err = tiles.LoadEdge(t.Context(), got.load, edge.Size()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if edge.Root() != all.Root() || len(got.tiles) != len(want.tiles) {
			t.Fatalf("root %x of %d tiles, want %x of %d", edge.Root(), len(got.tiles), all.Root(), len(want.tiles))
		}
		for k, data := range want.tiles {
			if !bytes.Equal(got.tiles[k], data) {
				t.Fatalf("tile %+v is another", k)
			}
		}
	}
}

// An edge stays what it is while others grow from it.
func TestAnEdgeDoesNotChange(t *testing.T) {
	t.Parallel()
	m := &memory{tiles: map[place][]byte{}}
	edge := grow(t, m, nil, 300, 300)
	root := edge.Root()
	a, first := edge.Append(leaf(1), leaf(2))
	kept := fmt.Sprint(first)
	b, _ := edge.Append(leaf(3), leaf(4))
	again, second := edge.Append(leaf(1), leaf(2))
	if edge.Root() != root || a.Root() == b.Root() || a.Root() != again.Root() || fmt.Sprint(first) != kept || fmt.Sprint(second) != kept {
		t.Error("one append shows in another")
	}
	if same, changed := edge.Append(); same.Root() != root || len(changed) != 0 {
		t.Errorf("nothing appended, and %d tiles changed", len(changed))
	}
}

// What is proved of an older size, while the log has grown on.
func TestProofsOfAnOlderSize(t *testing.T) {
	t.Parallel()
	m := &memory{tiles: map[place][]byte{}}
	grow(t, m, nil, 1000, 256)
	for _, size := range []uint64{1, 2, 255, 256, 257, 511, 700, 999} {
		root, err := tiles.Root(t.Context(), m.load, size)
		if err != nil {
			t.Fatal(err)
		}
		for _, index := range []uint64{0, size / 2, size - 1} {
			p, err := tiles.Inclusion(t.Context(), m.load, size, index)
			if err != nil {
				t.Fatal(err)
			}
			if err := tiles.CheckInclusion(p, size, root, index, leaf(index)); err != nil {
				t.Errorf("entry %d of %d: %v", index, size, err)
			}
		}
	}
}

func TestFewLoads(t *testing.T) {
	t.Parallel()
	m := &memory{tiles: map[place][]byte{}}
	grow(t, m, nil, 70_000, 4096)
	for name, prove := range map[string]func() ([]audit.Hash, error){
		"inclusion":   func() ([]audit.Hash, error) { return tiles.Inclusion(t.Context(), m.load, 70_000, 33_333) },
		"consistency": func() ([]audit.Hash, error) { return tiles.Consistency(t.Context(), m.load, 70_000, 33_333) },
	} {
		m.calls, m.loaded = 0, 0
		if _, err := prove(); err != nil {
			t.Fatal(err)
		}
		if m.calls != 1 || m.loaded > 6 { // three levels, two each
			t.Errorf("%s: %d calls, %d tiles", name, m.calls, m.loaded)
		}
	}
	m.calls, m.loaded = 0, 0
	if _, err := tiles.LoadEdge(t.Context(), m.load, 70_000); err != nil || m.calls != 1 || m.loaded != 3 {
		t.Errorf("LoadEdge: %d calls, %d tiles, %v", m.calls, m.loaded, err)
	}
}

func TestBadTilesAndSizes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	broken := errors.New("the disk is gone")
	for name, load := range map[string]tiles.Loader{
		"none":    func(context.Context, []tiles.ID) ([][]byte, error) { return nil, nil },
		"empty":   func(_ context.Context, ids []tiles.ID) ([][]byte, error) { return make([][]byte, len(ids)), nil },
		"short":   always(make([]byte, 32)),
		"crooked": always(make([]byte, 32*256-1)),
		"long":    always(make([]byte, 32*257)),
	} {
		for _, err := range []error{
			second(tiles.LoadEdge(ctx, load, 700)),
			second(tiles.Root(ctx, load, 700)),
			second(tiles.Inclusion(ctx, load, 700, 3)),
			second(tiles.Consistency(ctx, load, 700, 300)),
		} {
			if !errors.Is(err, tiles.ErrTile) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	fails := func(context.Context, []tiles.ID) ([][]byte, error) { return nil, broken }
	m := &memory{tiles: map[place][]byte{}}
	const large = checkpoint.MaxSize + 1
	for name, err := range map[string]error{
		"LoadEdge":         second(tiles.LoadEdge(ctx, m.load, large)),
		"Root":             second(tiles.Root(ctx, m.load, large)),
		"Inclusion":        second(tiles.Inclusion(ctx, m.load, large, 1)),
		"Consistency":      second(tiles.Consistency(ctx, m.load, large, 1)),
		"beyond":           second(tiles.Inclusion(ctx, m.load, 5, 5)),
		"longer":           second(tiles.Consistency(ctx, m.load, 5, 6)),
		"CheckInclusion":   tiles.CheckInclusion(nil, large, leaf(1), 1, leaf(1)),
		"CheckConsistency": tiles.CheckConsistency(nil, large, leaf(1), 1, leaf(1)),
		"shrunk":           tiles.CheckConsistency(nil, 1, leaf(1), 2, leaf(1)),
		"empty, a root":    tiles.CheckConsistency(nil, 1, leaf(1), 0, leaf(1)),
		"empty, a proof":   tiles.CheckConsistency([]audit.Hash{leaf(1)}, 1, leaf(1), 0, new(audit.Tree).Root()),
		"both empty":       tiles.CheckConsistency(nil, 0, leaf(1), 0, new(audit.Tree).Root()),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := second(tiles.LoadEdge(ctx, fails, 700)); !errors.Is(err, broken) {
		t.Errorf("LoadEdge: %v", err)
	}
}

func always(data []byte) tiles.Loader {
	return func(_ context.Context, ids []tiles.ID) ([][]byte, error) {
		return slices.Repeat([][]byte{data}, len(ids)), nil
	}
}

func second[T any](_ T, err error) error { return err }

// The examples of C2SP tlog-tiles.
func TestPaths(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"tile/0/x001/x234/067":       tiles.ID{N: 1234067, Width: 256}.Path(),
		"tile/0/273.p/112":           tiles.At(70_000, 0, 273).Path(),
		"tile/0/272":                 tiles.At(70_000, 0, 272).Path(),
		"tile/1/000":                 tiles.At(70_000, 1, 0).Path(),
		"tile/1/001.p/17":            tiles.At(70_000, 1, 1).Path(),
		"tile/2/000.p/1":             tiles.At(70_000, 2, 0).Path(),
		"tile/0/000":                 tiles.At(256, 0, 0).Path(),
		"tile/7/000.p/16":            tiles.At(1<<60, 7, 0).Path(),
		"tile/1/000.p/1":             tiles.At(256, 1, 0).Path(),
		"tile/entries/x001/000.p/13": tiles.BundlePath(1000, 13),
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, none := range []tiles.ID{tiles.At(0, 0, 0), tiles.At(256, 0, 1), tiles.At(255, 1, 0), tiles.At(70_000, 3, 0), tiles.At(70_000, 0, 274), tiles.At(1<<60, 7, 1), tiles.At(1<<60, 8, 0)} {
		if none.Width != 0 {
			t.Errorf("%+v", none)
		}
	}
}

func BenchmarkAppend256(b *testing.B) {
	var edge *tiles.Edge
	leaves := make([]audit.Hash, 256)
	b.ReportAllocs()
	for b.Loop() {
		edge, _ = edge.Append(leaves...)
	}
}

func BenchmarkAppendOne(b *testing.B) {
	edge, _ := (*tiles.Edge)(nil).Append(make([]audit.Hash, 70_000)...)
	var one audit.Hash
	b.ReportAllocs()
	for b.Loop() {
		edge, _ = edge.Append(one)
	}
}

// A proof at a million entries, whose tiles are all alike.
func BenchmarkInclusion(b *testing.B) {
	load := always(make([]byte, 32*256))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tiles.Inclusion(context.Background(), load, 1_000_000, 345_678); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConsistency(b *testing.B) {
	load := always(make([]byte, 32*256))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tiles.Consistency(context.Background(), load, 1_000_000, 345_678); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoadEdge(b *testing.B) {
	load := always(make([]byte, 32*256))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tiles.LoadEdge(context.Background(), load, 1_000_000); err != nil {
			b.Fatal(err)
		}
	}
}
