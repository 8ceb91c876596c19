package spool

import (
	"fmt"
	"path/filepath"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"golang.org/x/sys/unix"
)

// A Report is what verifying a log found.
type Report struct {
	Log string
	// First is the oldest entry that is still there, Next the one behind the
	// newest.
	First, Next uint64
	// Root is the RFC 6962 root of all entries, those too that were discarded; zero
	// where it cannot be known, since entries are missing.
	Root audit.Hash
	// Signed is how many entries the newest signed checkpoint is of, 0 where there is
	// none.
	Signed uint64
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

// Verify reads every file of the log in dir, recomputes every sum, leaf hash and the
// root, and compares that with the checkpoints; whose signature they have it does
// not say. It may run beside an agent. The error says that something could
// not be read; what does not verify is in the report.
func Verify(dir string) (Report, error) {
	files, err := list(dir)
	if err != nil {
		return Report{}, err
	}
	return verify(dir, files, nil)
}

// Verify is the function Verify on the log's own directory, and holds the checkpoints
// to the key of the log.
func (s *Spool) Verify() (Report, error) {
	s.reading.Lock() // no file goes away meanwhile
	defer s.reading.Unlock()
	files, _, err := s.files()
	if err != nil {
		return Report{}, err
	}
	return verify(s.cfg.Dir, files, s.verifier())
}

func verify(dir string, files []file, key *checkpoint.Verifier) (Report, error) {
	var r Report
	if len(files) == 0 {
		return r, fmt.Errorf("no audit log in %s", dir)
	}
	t := newTracer(key)
	r.First, r.Next = files[0].first, files[0].first
	for i, f := range files {
		data, err := openFile(f.path, unix.PROT_READ)
		if err != nil {
			return r, fmt.Errorf("verify audit log: %w", err)
		}
		name := filepath.Base(f.path)
		err = guard(func() {
			c := inspect(data, f.first, end(files, i))
			r.add(name, c)
			for _, why := range t.file(c, f.first) {
				r.Problems = append(r.Problems, Problem{name, why})
			}
			if n := len(c.records); n > 0 {
				r.Next = c.records[n-1].index + 1
			}
			if len(c.losses) > 0 {
				t.tree = nil
			}
		})
		unmap(data)
		if err != nil {
			r.Problems = append(r.Problems, Problem{name, err.Error()})
			t.tree = nil
		}
	}
	if t.newest != nil {
		r.Signed = t.newest.size
	}
	if t.tree != nil && t.tree.Size() == r.Next && len(r.Problems) == 0 {
		r.Root = t.tree.Root()
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
