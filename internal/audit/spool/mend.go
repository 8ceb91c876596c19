package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// mend brings back what compare found: each segment that is ill is written anew, from
// what its file still has. The caller holds sealing and reading.
func (s *Spool) mend(found map[defect]string) error {
	if !s.home() {
		if err := s.rehome(); err != nil {
			return err
		}
	}
	if _, ok := found[unlocked]; ok {
		if err := s.relock(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	segments, turn := append([]*segment{}, s.segments...), s.active().ill != ""
	s.mu.Unlock()
	if turn {
		if err := s.turn(); err != nil {
			return err
		}
	}
	s.reader.drop()
	s.wiped = wiper{}
	for i, g := range segments {
		s.mu.Lock()
		ill, next := g.ill, s.next
		if i+1 < len(s.segments) {
			next = s.segments[i+1].first
		}
		s.mu.Unlock()
		if ill == "" {
			continue
		}
		if err := s.rewrite(g, ill, next); err != nil {
			return fmt.Errorf("write %s anew: %w", g.path, err)
		}
	}
	s.mu.Lock()
	s.broken = nil
	s.mu.Unlock()
	return s.sealMapped(false)
}

// turn goes on in a new segment. Should it be ill, too, the next look finds that.
func (s *Spool) turn() error {
	s.stock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spare != nil {
		return s.rotate(&s.spare)
	}
	if s.spareErr != nil {
		return s.spareErr
	}
	return errors.New("there is no new segment yet")
}

// rewrite makes a new file of what g holds before next. It is sealed and synced then,
// and nothing is written to it any more.
func (s *Spool) rewrite(g *segment, ill defect, next uint64) error {
	data, err := s.contents(g)
	if err != nil {
		return err
	}
	if h, err := readHeader(data); err == nil && h.log != s.name {
		data = nil // another log's
	}
	c := inspect(data, g.first, next)
	c.owed = 0 // the segment behind it owes that
	budget := uint64(maxLost)
	keeping := ill == replaced || ill == truncated || ill == damaged
	if err := s.repair(g, c, &budget, keeping); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.unmap()
	s.limitOpen()
	s.cfg.Logger.Info("a file of the audit log is written anew", "log", s.name, "file", g.path, "reason", string(ill), "entries", len(c.records), "lost", len(c.losses))
	return nil
}

// contents are what the file of g holds. They are read, since a mapping of what is
// not there faults, and what is in the mapping is what is read.
func (s *Spool) contents(g *segment) ([]byte, error) {
	f := g.file
	if f == nil {
		if f = s.openIn(g); f == nil {
			return nil, nil // it is gone, and what was in it
		}
		defer f.Close()
	}
	data := make([]byte, g.info.Size())
	n, err := f.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return data[:n&^7], nil // records begin at a multiple of 8
}

// openIn opens the file of g by its name in the directory, wherever that is now; nil
// where it is not there.
func (s *Spool) openIn(g *segment) *os.File {
	fd, err := unix.Openat(int(s.dir.Fd()), filepath.Base(g.path), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), g.path)
	if !same(f, g.info) {
		f.Close()
		return nil
	}
	return f
}

// rehome makes the directory anew where it is not any more, and has every segment
// written there. Its files stay as they are, wherever they are now.
func (s *Spool) rehome() error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	files, err := list(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if !s.owns(f) {
			return fmt.Errorf("%s is another directory now, and has files of a log in it", s.cfg.Dir)
		}
	}
	lock, err := lockDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	dir, err := os.Open(s.cfg.Dir)
	if err != nil {
		return errors.Join(err, unlockDir(lock))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		if g.file == nil { // while it can be had by its name
			g.file = s.openIn(g)
		}
		g.ill = moved
	}
	s.lookAtStock()
	err = errors.Join(bring(s.dir, dir), unlockDir(s.lock), s.dir.Close())
	s.lock, s.dir = lock, dir
	return err
}

// bring moves the directories in from to to: what others keep beside the log, such as
// pins, is looked for there.
func bring(from, to *os.File) error {
	entries, err := from.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, unix.Renameat(int(from.Fd()), e.Name(), int(to.Fd()), e.Name()))
		}
	}
	return err
}

// owns says that f is a segment of s, which was made before the directory was looked at.
func (s *Spool) owns(f file) bool {
	now, err := os.Lstat(f.path)
	s.mu.Lock()
	defer s.mu.Unlock()
	return err == nil && slices.ContainsFunc(s.segments, func(g *segment) bool { return os.SameFile(g.info, now) })
}

// relock takes the lock again where its file was removed or replaced. If another
// process was faster, nothing more is recorded here.
func (s *Spool) relock() error {
	lock, err := lockDir(s.cfg.Dir)
	if err != nil {
		s.mu.Lock()
		s.broken = err
		s.mu.Unlock()
		return err
	}
	err = unlockDir(s.lock)
	s.lock = lock
	return err
}
