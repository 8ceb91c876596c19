package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/sys/unix"
)

// watchEvery is how often the watchdog looks.
const watchEvery = time.Second

// A defect is what can happen to the files of a log, as a stable code.
type defect string

const (
	moved      defect = "log_moved"      // the directory is not where it was
	unlocked   defect = "log_unlocked"   // its lock is not the one that is held
	deleted    defect = "log_deleted"    // a file has its name no more
	replaced   defect = "log_replaced"   // another file has its name
	truncated  defect = "log_truncated"  // a file was cut short
	damaged    defect = "log_damaged"    // a file was written to by somebody else
	unsynced   defect = "log_unsynced"   // the disk did not take a file
	readOnly   defect = "log_read_only"  // nothing new can be made in the directory
	full       defect = "log_full"       // there is no room for another segment
	unwritable defect = "log_unwritable" // or none can be made, for another reason
	foreign    defect = "log_foreign"    // a file that is not of the log
)

// text is a defect as a sentence about a file.
func (d defect) text() string {
	switch d {
	case moved:
		return "the directory is not where it was"
	case unlocked:
		return "it is not the file that this process has locked"
	case deleted:
		return "the file was deleted, or has another name"
	case replaced:
		return "another file has its name"
	case truncated:
		return "the file was cut short"
	case damaged:
		return "the file was changed by another program"
	case unsynced:
		return "the disk did not take what was written"
	case foreign:
		return "the file is not of the log, and is left alone"
	}
	return "nothing can be written"
}

// A Trouble is something that is wrong with the files of the log now.
type Trouble struct {
	// Reason is that of the events about it, such as log_deleted.
	Reason  string
	Message string
	// Code is what `parley explain` has a page of.
	Code  fault.Code
	Since time.Time
}

// A trouble goes on until its end is recorded.
type trouble struct {
	Trouble
	told, over bool
}

// Troubles are what is wrong now, in order of Reason.
func (s *Spool) Troubles() []Trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Trouble
	for _, t := range s.troubles {
		if !t.over {
			all = append(all, t.Trouble)
		}
	}
	slices.SortFunc(all, func(a, b Trouble) int { return strings.Compare(a.Reason, b.Reason) })
	return all
}

// watch looks after the files until ctx ends.
func (s *Spool) watch(ctx context.Context) {
	for ctx.Err() == nil {
		s.look()
		_ = s.cfg.Clock.Sleep(ctx, watchEvery)
	}
}

// look compares the files with what is mapped, mends what it can, and records each
// change of that.
func (s *Spool) look() {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return
	}
	found := s.compare()
	s.tell(found)
	if len(found) > 0 {
		why := ""
		if err := s.mend(found); err != nil {
			why = err.Error()
		}
		if why != "" && why != s.helpless {
			s.cfg.Logger.Error("the audit log cannot be mended now", "log", s.name, "error", why)
		}
		s.helpless = why
		s.tell(s.compare())
	}
}

// compare is what is wrong, each kind of it once. It marks segments as ill. The
// caller holds sealing and reading.
func (s *Spool) compare() map[defect]string {
	found := map[defect]string{}
	add := func(d defect, message string) {
		if _, known := found[d]; d != "" && !known {
			found[d] = message
		}
	}
	entries, err := os.ReadDir(s.cfg.Dir)
	if !s.home() {
		add(moved, s.cfg.Dir+": "+moved.text())
		return found // of what it was like nothing else is to be said
	}
	if err != nil {
		add(unwritable, err.Error())
	}
	if lock, err := os.Lstat(filepath.Join(s.cfg.Dir, lockName)); err != nil || !same(s.lock, lock) {
		add(unlocked, lockName+": "+unlocked.text())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		if d := g.look(s.name); d != "" && g.ill != unsynced {
			g.ill = d // what it is, and not how it was met
		}
		if g.ill != "" {
			add(g.ill, filepath.Base(g.path)+": "+g.ill.text())
		}
	}
	s.lookAtStock()
	switch err := s.spareErr; {
	case err == nil:
	case errors.Is(err, unix.EROFS):
		add(readOnly, s.cfg.Dir+" is read-only")
	case isFull(err):
		add(full, "no space left for the audit log in "+s.cfg.Dir)
	default:
		add(unwritable, err.Error())
	}
	if errors.Is(unix.Access(s.cfg.Dir, unix.W_OK), unix.EROFS) {
		add(readOnly, s.cfg.Dir+" is read-only")
	}
	add(s.foreigner(entries))
	return found
}

// home says that the directory is where it was.
func (s *Spool) home() bool {
	here, err := os.Stat(s.cfg.Dir)
	return err == nil && same(s.dir, here)
}

// same says that f is the file that info is of.
func same(f *os.File, info os.FileInfo) bool {
	own, err := f.Stat()
	return err == nil && os.SameFile(own, info)
}

// look is what is wrong with the file of g, a segment of log.
func (g *segment) look(log string) defect {
	now, err := os.Lstat(g.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return deleted
	case err != nil:
		return ""
	case !os.SameFile(g.info, now):
		return replaced
	case now.Size() < g.info.Size():
		return truncated
	case g.data == nil || g.file == nil:
		return ""
	}
	head := make([]byte, headerSize)
	if _, err := g.file.ReadAt(head, 0); err != nil {
		return truncated
	}
	if h, err := readHeader(head); err != nil || h.log != log || h.first != g.first {
		return damaged
	}
	return ""
}

// lookAtStock drops what is prepared and was changed: it is made anew. The caller
// holds mu.
func (s *Spool) lookAtStock() {
	for _, p := range []**segment{&s.spare, &s.reserve} {
		g := *p
		if g == nil {
			continue
		}
		if now, err := os.Lstat(g.path); err != nil || !os.SameFile(g.info, now) || now.Size() < g.info.Size() {
			g.drop()
			*p = nil
			poke(s.need)
		}
	}
}

// foreigner is the first file that is not of the log. The caller holds mu.
func (s *Spool) foreigner(entries []os.DirEntry) (defect, string) {
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || strings.Contains(name, keptMark) || slices.Contains([]string{lockName, spareName, reserveName, rebuildName}, name) {
			continue
		}
		first, ok := isSegment(name)
		if !ok || !slices.ContainsFunc(s.segments, func(g *segment) bool { return g.first == first }) {
			return foreign, fmt.Sprintf("%q: %s", name, foreign.text())
		}
	}
	return "", ""
}

// tell records what begins and what is over, once each: at once where the log takes
// it, and otherwise as soon as it does.
func (s *Spool) tell(found map[defect]string) {
	s.mu.Lock()
	var all []*trouble
	for d, message := range found {
		t := s.troubles[d]
		if t == nil {
			t = &trouble{Trouble: Trouble{string(d), message, code(d), s.cfg.Clock.Now()}}
			s.troubles[d] = t
			s.cfg.Logger.Error("something is wrong with the audit log", "log", s.name, "reason", string(d), "what", message)
		}
		t.over = false
	}
	for d, t := range s.troubles {
		if _, still := found[d]; !still && !t.over {
			t.over = true
			s.cfg.Logger.Info("the audit log is as it should be again", "log", s.name, "reason", string(d))
		}
		all = append(all, t)
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *trouble) int { return strings.Compare(a.Reason, b.Reason) })
	for _, t := range all {
		s.tellOne(t)
	}
}

func (s *Spool) tellOne(t *trouble) {
	over := t.over
	if !t.told {
		e := s.event(audit.Degraded, audit.Failure, t.Reason, t.Message)
		e.Time = t.Since
		if t.told = s.Record(e) == nil; !t.told {
			return
		}
	}
	if !over {
		return
	}
	took := s.cfg.Clock.Now().Sub(t.Since).Round(time.Millisecond)
	if s.Record(s.event(audit.Recovered, audit.Success, t.Reason, fmt.Sprintf("after %s; it was: %s", took, t.Message))) == nil {
		s.mu.Lock()
		delete(s.troubles, defect(t.Reason))
		s.mu.Unlock()
	}
}

// code is the page about a defect.
func code(d defect) fault.Code {
	switch d {
	case full:
		return fault.LogFull
	case deleted, replaced, truncated, damaged:
		return fault.LogBroken
	}
	return fault.LogUnusable
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}
