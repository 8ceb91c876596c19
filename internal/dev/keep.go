package dev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/mesh"
)

// The shop's mesh file is there to be edited, and so are its revisions. A start
// therefore goes on with what somebody made of it: of the file in the data
// directory and the newest revision, the one that was written last.

// meshFile is the shop's mesh file in the data directory.
const meshFile = "parley.yaml"

// A draft is the mesh file that a data directory had when the start began; the
// zero one was not there.
type draft struct {
	text    string
	written time.Time
}

// readDraft reads the mesh file of a data directory.
func readDraft(path string) (d draft, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	var data []byte
	if err == nil {
		if info.Size() > mesh.MaxSize {
			return d, fault.New(fault.MeshTooLarge, "is it the right file? ls -l "+quote(path), "%s has %d bytes, the limit is %d", path, info.Size(), mesh.MaxSize)
		}
		data, err = os.ReadFile(path)
	}
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			err = at.Err
		}
		return d, fault.Wrap(err, fault.MeshUnreadable, "ls -l "+quote(path), "cannot read %s", path)
	}
	return draft{string(data), info.ModTime()}, nil
}

// builtIn is the port base of text where that is the shop as Parley writes it.
func builtIn(dir, text string) (base int, ok bool) {
	f, err := mesh.Parse(meshFile, []byte(text))
	if err != nil {
		return 0, false
	}
	base = f.OutboundPorts - offOutbound
	return base, demoMesh(dir, base) == text
}

// chooseDemo chooses the shop's mesh file before anything is made: the draft where
// somebody edited it, and otherwise the built-in text for the ports asked for.
func (m *Mesh) chooseDemo(cfg *Config) (err error) {
	cfg.MeshName = filepath.Join(cfg.Dir, meshFile)
	if !cfg.Fresh {
		if m.draft, err = readDraft(cfg.MeshName); err != nil {
			return err
		}
	}
	base, untouched := builtIn(cfg.Dir, m.draft.text)
	if !untouched {
		base = 0
	}
	if m.Base, err = portBase(cfg.PortBase, base, cfg.Command); err != nil {
		return err
	}
	if !m.draft.written.IsZero() && !untouched {
		cfg.MeshText = m.draft.text
		return m.keep(cfg, cfg.MeshName+" was edited")
	}
	if untouched && cfg.PortBase == 0 {
		m.Base = base
	}
	cfg.MeshText = demoMesh(cfg.Dir, m.Base)
	if cfg.Debug.Mesh != nil {
		cfg.MeshText = cfg.Debug.Mesh(cfg.MeshText)
	}
	return nil
}

// keep is called when the shop runs as somebody changed it. That is not the shop of
// the tour, and its ports are its own.
func (m *Mesh) keep(cfg *Config, changed string) error {
	if cfg.Try {
		return fault.New(fault.Usage, "choose a directory for the tour: parley dev --dir /tmp/p --try",
			"%s, and --try makes the calls of the shop as it was: nothing was changed", changed)
	}
	if cfg.PortBase != 0 {
		return fault.New(fault.Usage, "leave --port-base out, or choose another directory: --dir /tmp/p",
			"%s, and the ports are those that it names: --port-base would not move them; nothing was changed", changed)
	}
	base, untouched := builtIn(cfg.Dir, cfg.MeshText)
	m.changed = !untouched
	if base >= minPortBase && base <= maxPortBase {
		m.Base = base // what is left of it is where metrics are
	}
	return nil
}

// settle looks at the newest revision, of which nothing is known before the node
// runs: where it is newer than the mesh file, it stays.
func (m *Mesh) settle(ctx context.Context, cfg *Config) error {
	head, err := m.API.Revision(ctx, 0)
	if known := fault.All(err); len(known) > 0 && known[0].Code == fault.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	_, headIs := builtIn(cfg.Dir, head.Text)
	_, mineIs := builtIn(cfg.Dir, cfg.MeshText)
	switch {
	case head.Text == cfg.MeshText, headIs && mineIs:
		return nil
	case m.draft.written.After(head.Applied):
		m.note("%s is newer than revision %d, so it is applied. Undo it:  %s config rollback %d", cfg.MeshName, head.Number, m.Command(), head.Number)
		return nil
	}
	if !m.draft.written.IsZero() {
		m.note("revision %d is newer than %s, so it goes on. What the file would change:  %s apply --dry-run -f %s", head.Number, cfg.MeshName, m.Command(), m.shell(meshFile))
	}
	cfg.MeshName, cfg.MeshText = head.Name, head.Text
	return m.keep(cfg, fmt.Sprintf("revision %d was applied", head.Number))
}

// note keeps something that whoever starts the mesh is to be told.
func (m *Mesh) note(format string, args ...any) {
	m.Notes = append(m.Notes, fmt.Sprintf(format, args...))
}

// writeMesh writes the mesh file where it can be read, and never over what somebody
// wrote.
func (m *Mesh) writeMesh(cfg Config) error {
	_, was := builtIn(cfg.Dir, m.draft.text)
	_, is := builtIn(cfg.Dir, cfg.MeshText)
	if cfg.MeshText == m.draft.text || !m.draft.written.IsZero() && !(was && is) {
		return nil
	}
	return keys.WriteMode(filepath.Join(cfg.Dir, meshFile), []byte(cfg.MeshText), 0o644)
}
