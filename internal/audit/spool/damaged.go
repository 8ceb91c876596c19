package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// keptMark follows the name of a segment file in that of its damaged original.
const keptMark = suffix + ".damaged"

// keep gives the file at path a second name, under which it stays for whoever
// looks into the damage.
func keep(path string) error {
	kept := path + ".damaged"
	for n := 2; ; n++ {
		err := os.Link(path, kept)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		kept = fmt.Sprintf("%s.damaged-%d", path, n)
	}
}

// setAside begins a new log where no file of the old one has a whole header:
// whose entries they are, and which, nobody can say any more.
func (s *Spool) setAside(files []file) ([]note, error) {
	for _, f := range files {
		s.cfg.Logger.Error("the audit log is damaged", "file", f.path, "reason", errHeader)
		if err := keep(f.path); err != nil {
			return nil, fmt.Errorf("set the damaged audit log aside: %w", err)
		}
		if err := os.Remove(f.path); err != nil {
			return nil, fmt.Errorf("set the damaged audit log aside: %w", err)
		}
	}
	if err := s.found(); err != nil {
		return nil, err
	}
	return []note{{"log_damaged", fmt.Sprintf("no header of the log's files (%d) is whole: they are kept as *%s, and a new log begins here", len(files), keptMark)}}, nil
}

// Repaired are the entries that this start found missing or damaged and replaced
// by gap events. Those that were collected before are known to the collector all
// the same, so the log itself says nothing more about them.
func (s *Spool) Repaired() []Problem { return s.repaired }

// Kept is what is wrong with the damaged files that earlier starts have kept. They
// stay until a person moves them away.
func (s *Spool) Kept() ([]Problem, error) {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	var r Report
	for _, e := range entries {
		if !strings.Contains(e.Name(), keptMark) {
			continue
		}
		var first uint64
		if _, err := fmt.Sscanf(e.Name(), "%d", &first); err != nil {
			continue // not a name of ours
		}
		data, err := openFile(filepath.Join(s.cfg.Dir, e.Name()), unix.PROT_READ)
		if err != nil {
			return nil, fmt.Errorf("read audit log: %w", err)
		}
		c := inspect(data, first, unended)
		c.log = s.name // whose log it is was settled when it was kept
		r.add(e.Name(), c)
		unmap(data)
	}
	return r.Problems, nil
}
