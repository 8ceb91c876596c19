package spool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/audit"
	"golang.org/x/sys/unix"
)

const (
	rebuildName = "rebuild"
	// maxLost bounds the gap events that one start writes; a log that lost more
	// is not repaired but left to a person.
	maxLost = 1 << 17
)

// A note is what a start has to say about the log where no entry is known to be
// missing: a gap event whose count is 0.
type note struct{ reason, message string }

// A file is a segment file by its name.
type file struct {
	path  string
	first uint64
}

// list is every segment file of dir, oldest first.
func list(dir string) ([]file, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	var files []file
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		first, err := strconv.ParseUint(digits, 10, 63)
		if err != nil || segmentName(first) != e.Name() {
			return nil, broke(dir, "%s in the audit log is no segment file", e.Name())
		}
		files = append(files, file{filepath.Join(dir, e.Name()), first})
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return files, nil
}

// end is the first entry behind files[i], unended for the last.
func end(files []file, i int) uint64 {
	if i+1 < len(files) {
		return files[i+1].first
	}
	return unended
}

// recover brings the directory into use.
func (s *Spool) recover() error {
	if err := s.tidy(); err != nil {
		return err
	}
	files, err := list(s.cfg.Dir)
	if err != nil {
		return err
	}
	if s.name, err = logName(s.cfg.Dir, files); err != nil {
		return err
	}
	var notes []note
	switch {
	case len(files) > 0 && s.name == "":
		notes, err = s.setAside(files)
	case len(files) == 0:
		err = s.found()
	default:
		notes, err = s.load(files)
	}
	if err != nil {
		return err
	}
	s.stock()
	for _, n := range notes {
		if err := s.Record(s.gapEvent(n.reason, n.message, s.next, 0)); err != nil { // counted: a gap event is owed
			s.cfg.Logger.Error("the audit log cannot record its own damage", "log", s.name, "error", err)
		}
	}
	return s.sealAll(false)
}

// tidy puts away what an interrupted start or rotation left: a spare whose
// header is whole was about to get its name.
func (s *Spool) tidy() error {
	dir := s.cfg.Dir
	if err := os.Remove(filepath.Join(dir, rebuildName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open audit log: %w", err)
	}
	spare := filepath.Join(dir, spareName)
	data, err := openFile(spare, unix.PROT_READ)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	h, err := readHeader(data)
	unmap(data)
	if err == nil {
		path := filepath.Join(dir, segmentName(h.first))
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return os.Rename(spare, path)
		}
	}
	return os.Remove(spare)
}

// found makes the first segment of a new log.
func (s *Spool) found() error {
	s.name = audit.NewLogName(s.cfg.Log)
	g, err := s.create(spareName, s.cfg.SegmentSize)
	if err != nil {
		return err
	}
	s.spare = g
	s.begin(g, 0)
	g.path = filepath.Join(s.cfg.Dir, segmentName(0))
	s.segments, s.spare = []*segment{g}, nil
	if err := unix.Msync(g.data[:headerSize], unix.MS_SYNC); err != nil {
		return fmt.Errorf("sync audit log: %w", err)
	}
	if err := os.Rename(filepath.Join(s.cfg.Dir, spareName), g.path); err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	return nil
}

// logName is the name that the headers agree on, empty where none is whole.
func logName(dir string, files []file) (string, error) {
	var name string
	for _, f := range files {
		data, err := openFile(f.path, unix.PROT_READ)
		if err != nil {
			return "", fmt.Errorf("open audit log: %w", err)
		}
		h, err := readHeader(data)
		unmap(data)
		switch {
		case errors.Is(err, errHeader):
			continue
		case err != nil:
			return "", broke(dir, "%s: %v", f.path, err)
		case name == "":
			name = h.log
		case name != h.log:
			return "", broke(dir, "%s is of the log %s, and others there of %s", f.path, h.log, name)
		}
	}
	return name, nil
}

// load takes every segment, repairs those that need it, and returns the events
// to be recorded about the log itself.
func (s *Spool) load(files []file) (notes []note, err error) {
	budget := uint64(maxLost)
	for i, f := range files {
		data, err := openFile(f.path, unix.PROT_READ|unix.PROT_WRITE)
		if err != nil {
			return nil, fmt.Errorf("open audit log: %w", err)
		}
		c := inspect(data, f.first, end(files, i))
		last := i == len(files)-1
		if c.header != nil || len(c.losses) > 0 {
			if data, err = s.repair(f, data, c, &budget); err != nil {
				return nil, err
			}
			if len(c.losses) == 0 {
				notes = append(notes, note{"log_damaged", fmt.Sprintf("%s: %v; none of its entries is missing", filepath.Base(f.path), c.header)})
			}
			c = inspect(data, f.first, end(files, i))
		}
		s.lost.count += c.owed
		g := &segment{path: f.path, first: f.first, data: data, end: c.tail, sealOff: headerSize, sealNext: f.first}
		s.segments = append(s.segments, g)
		s.next = f.first + uint64(len(c.records))
		if c.sealed && !last {
			g.unmap()
			g.sealNext = s.next
		}
		if last && c.boot != s.boot && c.boot != [16]byte{} {
			notes = append(notes, note{"power_loss", "the machine stopped while the log was open; events of the last 100 ms before that may be missing"})
		}
	}
	s.take(s.segments[len(s.segments)-1])
	return notes, nil
}

// take makes g the active segment: what a killed process half wrote behind the
// last record is wiped, or a later record could seem to follow it.
func (s *Spool) take(g *segment) {
	for rest := g.data[g.end:]; len(rest) > 0; {
		n := min(len(rest), headerSize)
		if slices.ContainsFunc(rest[:n], func(b byte) bool { return b != 0 }) {
			clear(rest[:n])
		}
		rest = rest[n:]
	}
	copy(g.data[offBoot:], s.boot[:])
	s.writeLost()
}

// repair writes f anew with a gap event in the place of every missing entry, so
// that the others keep their indexes, and keeps the damaged file.
func (s *Spool) repair(f file, data []byte, c *contents, budget *uint64) ([]byte, error) {
	defer unmap(data)
	bodies := make(map[uint64][]byte, len(c.records))
	next, need := f.first, headerSize
	put := func(index uint64, body []byte) {
		bodies[index] = body
		need += recordSize(len(body))
		next = max(next, index+1)
	}
	for _, r := range c.records {
		put(r.index, r.body)
	}
	for _, l := range c.losses {
		s.cfg.Logger.Error("the audit log is damaged", "log", s.name, "file", f.path, "from", l.from, "to", l.to, "reason", l.why)
		s.repaired = append(s.repaired, Problem{filepath.Base(f.path), l.String()})
		n := l.to - l.from + 1
		if n > *budget {
			return nil, broke(s.cfg.Dir, "%s in %s: more than can be repaired", l, f.path)
		}
		*budget -= n
		for i := l.from; i <= l.to; i++ {
			body, err := audit.Encode(nil, s.gapEvent("log_damaged", fmt.Sprintf("entry %d in %s %s", i, filepath.Base(f.path), l.why), i, 1))
			if err != nil {
				return nil, fmt.Errorf("repair audit log: %w", err)
			}
			put(i, body)
		}
	}
	g, err := s.create(rebuildName, max(s.cfg.SegmentSize, int64(need+headerSize-1)/headerSize*headerSize))
	if err != nil {
		return nil, err
	}
	s.begin(g, f.first)
	for i := f.first; i < next; i++ {
		body := bodies[i]
		write(g.data, g.end, i, body, crc32.Checksum(body, castagnoli))
		g.end += recordSize(len(body))
	}
	g.durable = true // its name comes below
	word(g.data, offLost).Store(checked(c.owed))
	copy(g.data[offBoot:], c.boot[:])
	if err := s.replace(g, f.path); err != nil {
		g.unmap()
		return nil, fmt.Errorf("repair audit log: %w", err)
	}
	return g.data, nil
}

// replace puts g in the place of path, durably, and keeps what was there.
func (s *Spool) replace(g *segment, path string) error {
	if err := s.sealSegment(g, g.end); err != nil {
		return err
	}
	if err := unix.Msync(g.data[:headerSize], unix.MS_SYNC); err != nil {
		return err
	}
	if err := keep(path); err != nil {
		return err
	}
	if err := os.Rename(g.path, path); err != nil {
		return err
	}
	g.path = path
	return syncDir(s.cfg.Dir)
}
