package tiles

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
)

// Errors of a Writer.
var (
	// ErrForeign says that the directory holds something else, or another log.
	ErrForeign = errors.New("not an export of this log")
	// ErrDamaged says that an export cannot be continued, since it is not intact.
	ErrDamaged = errors.New("the export that is to be continued is damaged")
	// ErrDiffers says that a checkpoint is not that of what was exported.
	ErrDiffers = errors.New("the checkpoint is not that of the entries in the export")
)

// A Writer writes an export: a directory that grows with the log, and of which what
// the last checkpoint spoke of stays as it is. It holds one bundle in memory. Each
// file is whole and durable before it has its name, and the checkpoint is the last.
type Writer struct {
	root   *os.Root
	origin string
	// edge is that of what was there, and of the full bundles written since; bundle
	// and leaves are the entries behind it, but bundle begins with those of the open
	// tile of edge.
	edge   *Edge
	bundle []byte
	leaves []audit.Hash
	stale  []string        // partial files of the export that is continued
	dirty  map[string]bool // directories with new names in them
}

// maxDirty bounds how many directories wait to be made durable.
const maxDirty = 16

// OpenWriter makes the directory an export of the log with that origin, or
// continues the one that it is. What an interrupted first export left is written
// anew; of a directory with other files in it, or of another log, comes ErrForeign.
// Close it.
func OpenWriter(dir, origin string) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	w := &Writer{root: root, origin: origin, dirty: map[string]bool{}}
	if err := w.resume(); err != nil {
		root.Close()
		return nil, err
	}
	return w, nil
}

// resume reads where the export in the directory ends.
func (w *Writer) resume() error {
	d := &Dir{w.root}
	signed, err := d.Checkpoint()
	if errors.Is(err, fs.ErrNotExist) {
		return w.checkEmpty()
	}
	if err != nil {
		return err
	}
	c, err := checkpoint.Unverified(signed)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", checkpointPath, ErrForeign, err)
	}
	if c.Origin != w.origin {
		return fmt.Errorf("%w: it is of %s, not of %s", ErrForeign, c.Origin, w.origin)
	}
	if w.edge, err = LoadEdge(context.Background(), d.Loader(c.Size), c.Size); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if w.edge.Root() != c.Root {
		return fmt.Errorf("%w: the root of its tiles is not the one of its checkpoint", ErrDamaged)
	}
	for _, id := range Open(c.Size) {
		w.stale = append(w.stale, id.Path())
	}
	width := int(c.Size % Width)
	if width == 0 {
		return nil
	}
	entries, err := d.Bundle(c.Size/Width, width)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	for _, e := range entries {
		if w.bundle, err = AppendEntry(w.bundle, e); err != nil {
			return err
		}
	}
	w.stale = append(w.stale, BundlePath(c.Size/Width, width))
	return nil
}

// checkEmpty refuses a directory that somebody uses for something else.
func (w *Writer) checkEmpty() error {
	f, err := w.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name != "tile" && !strings.HasPrefix(name, checkpointPath+".") {
			return fmt.Errorf("%w: there is %q in it, and no checkpoint", ErrForeign, name)
		}
	}
	return nil
}

// Size is the number of entries in the export: the index of the next one.
func (w *Writer) Size() uint64 { return w.edge.Size() + uint64(len(w.leaves)) }

// Append adds the next entry and its leaf hash: of a body with a private part what is
// committed of it. Of one whose body was pruned the entry is empty and the hash is
// left.
func (w *Writer) Append(entry []byte, leaf audit.Hash) error {
	var err error
	if w.bundle, err = AppendEntry(w.bundle, audit.Committed(entry)); err != nil {
		return fmt.Errorf("entry %d: %w", w.Size(), err)
	}
	w.leaves = append(w.leaves, leaf)
	if w.Size()%Width > 0 {
		return nil
	}
	next, changed := w.edge.Append(w.leaves...)
	for _, t := range changed {
		if t.Width == Width {
			if err := w.write(t.Path(), t.Hashes); err != nil {
				return err
			}
		}
	}
	if err := w.write(BundlePath(w.Size()/Width-1, Width), w.bundle); err != nil {
		return err
	}
	w.edge, w.leaves, w.bundle = next, w.leaves[:0], w.bundle[:0]
	return nil
}

// Finish ends the export with a signed checkpoint: what is not full is written, and
// then the checkpoint. One of another log, of another number of entries or with
// another root is ErrDiffers, and leaves the export as it was. The signature is not
// looked at.
func (w *Writer) Finish(signed []byte) error {
	c, err := checkpoint.Unverified(signed)
	if err != nil {
		return err
	}
	edge, _ := w.edge.Append(w.leaves...)
	switch {
	case c.Origin != w.origin:
		return fmt.Errorf("%w: it is of %s, not of %s", ErrDiffers, c.Origin, w.origin)
	case c.Size != edge.Size():
		return fmt.Errorf("%w: it speaks of %d entries, the export has %d", ErrDiffers, c.Size, edge.Size())
	case c.Root != edge.Root():
		return fmt.Errorf("%w: of %d entries it has another root", ErrDiffers, c.Size)
	}
	kept := map[string]bool{}
	for _, id := range Open(c.Size) {
		kept[id.Path()] = true
		if err := w.write(id.Path(), edge.open[id.Level]); err != nil {
			return err
		}
	}
	if width := int(c.Size % Width); width > 0 {
		path := BundlePath(c.Size/Width, width)
		kept[path] = true
		if err := w.write(path, w.bundle); err != nil {
			return err
		}
	}
	if err := w.sync(); err != nil {
		return err
	}
	if err := w.write(checkpointPath, signed); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	w.edge, w.leaves = edge, w.leaves[:0]
	return w.tidy(kept)
}

// tidy removes what was partial before and is now in a longer file.
func (w *Writer) tidy(kept map[string]bool) error {
	stale := w.stale
	w.stale = nil
	for name := range kept {
		w.stale = append(w.stale, name)
	}
	for _, name := range stale {
		if kept[name] {
			continue
		}
		if err := w.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Of directories this removes but those that are empty; others hold what is current.
		_ = w.root.Remove(path.Dir(name))
	}
	return nil
}

// write puts a file in its place, whole and durable.
func (w *Writer) write(name string, data []byte) error {
	dir := path.Dir(name)
	if err := w.root.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp := fmt.Sprintf("%s.%d.tmp", name, os.Getpid())
	f, err := w.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = w.root.Rename(temp, name)
	}
	if err != nil {
		_ = w.root.Remove(temp) // what it is worth is in err
		return err
	}
	for ; ; dir = path.Dir(dir) { // the directories may be new, too
		w.dirty[dir] = true
		if dir == "." {
			break
		}
	}
	if len(w.dirty) > maxDirty {
		return w.sync()
	}
	return nil
}

// sync makes the names of files durable.
func (w *Writer) sync() error {
	for dir := range w.dirty {
		f, err := w.root.Open(dir)
		if err != nil {
			return err
		}
		err = f.Sync()
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
	}
	clear(w.dirty)
	return nil
}

// Close lets go of the directory. Without Finish the export stays at its older
// checkpoint.
func (w *Writer) Close() error { return w.root.Close() }
