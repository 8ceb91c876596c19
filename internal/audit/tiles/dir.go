package tiles

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
)

// Errors of exports.
var (
	// ErrBundle says that a file is not a bundle of that many entries.
	ErrBundle = errors.New("not the entries that belong there")
	// ErrIrregular says that something in an export is neither file nor directory.
	ErrIrregular = errors.New("not a regular file")
)

const (
	checkpointPath = "checkpoint"

	maxBundle = Width * (2 + audit.MaxEvent)
)

// AppendEntry appends an entry as bundles have it: its length in two bytes, and
// itself. One that is longer than audit.MaxEvent is audit.ErrTooLong.
func AppendEntry(bundle, entry []byte) ([]byte, error) {
	if len(entry) > audit.MaxEvent {
		return bundle, audit.ErrTooLong
	}
	bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(entry)))
	return append(bundle, entry...), nil
}

// ParseBundle is the width entries of a bundle, as parts of data. Anything too
// little or too much is ErrBundle; the entries before that come along.
func ParseBundle(data []byte, width int) ([][]byte, error) {
	entries := make([][]byte, 0, max(0, min(width, Width)))
	rest := data
	for i := range width {
		if len(rest) < 2 {
			return entries, fmt.Errorf("%w: it ends at byte %d, after %d entries of %d", ErrBundle, len(data), i, width)
		}
		n := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; len(rest) < n {
			return entries, fmt.Errorf("%w: entry %d of it, of %d bytes, begins at byte %d, and it has %d", ErrBundle, i, n, len(data)-len(rest), len(data))
		}
		entries, rest = append(entries, rest[:n:n]), rest[n:]
	}
	if len(rest) > 0 {
		return entries, fmt.Errorf("%w: %d bytes follow the last one", ErrBundle, len(rest))
	}
	return entries, nil
}

// A Dir is an export that is read. Nothing outside it is, whatever links it holds,
// and no file further than an honest one goes.
type Dir struct{ root *os.Root }

// OpenDir opens an export. Close it.
func OpenDir(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Dir{root}, nil
}

// Close closes the directory.
func (d *Dir) Close() error { return d.root.Close() }

// Checkpoint is the signed checkpoint of the export, unverified.
func (d *Dir) Checkpoint() ([]byte, error) {
	return readFile(d.root, checkpointPath, checkpoint.MaxNote)
}

// Loader is the Loader of an export of size entries, for trees of that size and all
// smaller ones.
func (d *Dir) Loader(size uint64) Loader {
	return func(ctx context.Context, ids []ID) ([][]byte, error) {
		data := make([][]byte, len(ids))
		for i, id := range ids {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			var err error
			if data[i], err = d.Tile(At(size, id.Level, id.N)); err != nil {
				return nil, err
			}
		}
		return data, nil
	}
}

// Tile is the hashes of a tile, exactly as many as its width says. Where a partial
// one is gone, as it may be once the tile is full, they are those of the full one.
func (d *Dir) Tile(id ID) ([]byte, error) {
	width, full := id.Width, id
	full.Width = Width
	data, whole, err := d.either(id.Path(), full.Path(), Width*hashSize)
	if whole {
		id = full
	}
	if err == nil && len(data) != id.Width*hashSize {
		err = fmt.Errorf("%s: %w: it has %d bytes, %d hashes are %d", id.Path(), ErrTile, len(data), id.Width, id.Width*hashSize)
	}
	if err != nil {
		return nil, err
	}
	return data[:width*hashSize], nil
}

// Bundle is the first width entries of those whose hashes tile n of level 0 has,
// from the full bundle where the partial one is gone. An entry whose body was
// pruned is empty. With ErrBundle come the entries that could be read.
func (d *Dir) Bundle(n uint64, width int) ([][]byte, error) {
	path, has := BundlePath(n, width), width
	data, whole, err := d.either(path, BundlePath(n, Width), maxBundle)
	if err != nil {
		return nil, err
	}
	if whole {
		path, has = BundlePath(n, Width), Width
	}
	entries, err := ParseBundle(data, has)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return entries[:min(len(entries), width)], err
}

// either reads the one file, or where it is not there the other.
func (d *Dir) either(path, other string, limit int64) (data []byte, second bool, err error) {
	data, err = readFile(d.root, path, limit)
	if path == other || !errors.Is(err, fs.ErrNotExist) {
		return data, false, err
	}
	if data, otherErr := readFile(d.root, other, limit); otherErr == nil {
		return data, true, nil
	}
	return nil, false, err
}

// readFile reads a regular file of at most limit bytes.
func readFile(root *os.Root, path string, limit int64) ([]byte, error) {
	// Without O_NONBLOCK a named pipe would be waited for.
	f, err := root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, ErrIrregular)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s: it has %d bytes, and should have at most %d", path, info.Size(), limit)
	}
	data := make([]byte, 0, info.Size()+1)
	for len(data) < cap(data) {
		n, err := f.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: it grows while it is read", path)
}
