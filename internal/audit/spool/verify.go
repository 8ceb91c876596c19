package spool

import (
	"fmt"
	"path/filepath"

	"github.com/parleymesh/parley/internal/audit"
	"golang.org/x/sys/unix"
)

// A Report is what verifying a log found.
type Report struct {
	Log string
	// First is the oldest entry that is still there, Next the one behind the
	// newest.
	First, Next uint64
	// Root is the RFC 6962 root of all entries; zero where entries were
	// discarded or are missing, since it cannot be known then.
	Root audit.Hash
	// Problems are empty where the log verifies. Gap events are no problem: they
	// are how the log says that something is missing.
	Problems []Problem
}

// A Problem is one thing that is wrong with a log, and where.
type Problem struct {
	File string // without its folder
	What string // "entry 17 is damaged"
}

// Err is fault.LogBroken with the first problem, or nil.
func (r Report) Err() error {
	if len(r.Problems) == 0 {
		return nil
	}
	p := r.Problems[0]
	return broke("the log", "audit log %s: %s: %s", r.Log, p.File, p.What)
}

// Verify reads every file of the log in dir and recomputes every sum, leaf hash
// and the root. It may run beside an agent. The error says that something could
// not be read; what does not verify is in the report.
func Verify(dir string) (Report, error) {
	files, err := list(dir)
	if err != nil {
		return Report{}, err
	}
	return verify(dir, files)
}

// Verify is the function Verify on the log's own directory.
func (s *Spool) Verify() (Report, error) {
	s.reading.Lock() // no file goes away meanwhile
	defer s.reading.Unlock()
	files, _, err := s.files()
	if err != nil {
		return Report{}, err
	}
	return verify(s.cfg.Dir, files)
}

func verify(dir string, files []file) (Report, error) {
	var r Report
	if len(files) == 0 {
		return r, fmt.Errorf("no audit log in %s", dir)
	}
	var tree audit.Tree
	r.First, r.Next = files[0].first, files[0].first
	for i, f := range files {
		data, err := openFile(f.path, unix.PROT_READ)
		if err != nil {
			return r, fmt.Errorf("verify audit log: %w", err)
		}
		c := inspect(data, f.first, end(files, i))
		r.add(filepath.Base(f.path), c)
		for _, rec := range c.records {
			tree.Append(rec.leaf)
			r.Next = rec.index + 1
		}
		unmap(data)
	}
	if r.First == 0 && tree.Size() == r.Next && len(r.Problems) == 0 {
		r.Root = tree.Root()
	}
	return r, nil
}

func (r *Report) add(name string, c *contents) {
	switch {
	case c.header != nil:
		r.Problems = append(r.Problems, Problem{name, c.header.Error()})
	case r.Log == "":
		r.Log = c.log
	case r.Log != c.log:
		r.Problems = append(r.Problems, Problem{name, "the file is of the log " + c.log})
	}
	for _, l := range c.losses {
		r.Problems = append(r.Problems, Problem{name, l.String()})
	}
}
