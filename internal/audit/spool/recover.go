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
	"github.com/parleymesh/parley/internal/audit/checkpoint"
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
		if first, ok := isSegment(e.Name()); ok {
			files = append(files, file{filepath.Join(dir, e.Name()), first})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return files, nil
}

// isSegment says whether a file has the name of a segment, and of which.
func isSegment(name string) (first uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 10, 63)
	return first, err == nil && segmentName(first) == name
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
		if err = s.openKey(); err == nil {
			notes, err = s.load(files)
		}
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

// tidy puts away what an interrupted start or rotation left: a spare or reserve
// whose header is whole was about to get its name.
func (s *Spool) tidy() error {
	dir := s.cfg.Dir
	if err := os.Remove(filepath.Join(dir, rebuildName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open audit log: %w", err)
	}
	for _, name := range []string{spareName, reserveName} {
		if err := tidyOne(dir, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("open audit log: %w", err)
		}
	}
	return nil
}

func tidyOne(dir, spare string) error {
	data, err := openFile(spare, unix.PROT_READ)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
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
	if err := s.openKey(); err != nil {
		return err
	}
	g, err := s.create(spareName, s.cfg.SegmentSize)
	if err != nil {
		return err
	}
	s.spare = g
	s.begin(g, 0)
	s.tree, g.edged = &audit.Tree{}, true
	g.path = filepath.Join(s.cfg.Dir, segmentName(0))
	s.segments, s.spare = []*segment{g}, nil
	if err := s.disk.sync(g.data[:headerSize]); err != nil {
		return fmt.Errorf("sync audit log: %w", err)
	}
	if err := os.Rename(filepath.Join(s.cfg.Dir, spareName), g.path); err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	return nil
}

// openKey has the key of the log found or made.
func (s *Spool) openKey() (err error) {
	if s.cfg.Key == nil {
		return nil
	}
	if s.signer, err = s.cfg.Key(s.name); err != nil {
		return fmt.Errorf("the key of the audit log %s: %w", s.name, err)
	}
	return nil
}

// verifier is the public key of the log, nil where there is none.
func (s *Spool) verifier() *checkpoint.Verifier {
	if s.signer == nil {
		return nil
	}
	return s.signer.Verifier()
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
	t := newTracer(s.verifier())
	for i, f := range files {
		g, c, err := s.loadOne(f, end(files, i), &budget, &notes)
		if err != nil {
			return nil, err
		}
		for _, why := range t.file(c, f.first) {
			s.damaged(&notes, f, why)
		}
		g.edge, g.edged = t.edge, t.edged
		s.lost.count += c.owed
		s.segments = append(s.segments, g)
		s.next = f.first + uint64(len(c.records))
		if last := i == len(files)-1; c.sealed && !last {
			g.unmap()
			g.sealNext = s.next
		} else if last && c.boot != s.boot && c.boot != [16]byte{} {
			notes = append(notes, note{"power_loss", "the machine stopped while the log was open; events of the last 100 ms before that may be missing"})
		}
	}
	s.tree, s.signed, s.slot = t.tree, t.newest, nextSlot(s.active().data)
	if s.tree == nil {
		s.cfg.Logger.Error("the tree of the audit log is not known, and its checkpoints are not signed any more", "log", s.name)
	}
	s.limitOpen()
	s.take(s.active())
	return notes, nil
}

// loadOne opens a segment, and repairs it where it needs that.
func (s *Spool) loadOne(f file, end uint64, budget *uint64, notes *[]note) (*segment, *contents, error) {
	g := &segment{path: f.path, first: f.first, sealOff: headerSize, sealNext: f.first}
	file, err := os.OpenFile(f.path, os.O_RDWR, 0)
	if err == nil {
		err = g.open(file)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open audit log: %w", err)
	}
	c := inspect(g.data, f.first, end)
	if c.header != nil || len(c.losses) > 0 {
		if len(c.losses) == 0 {
			*notes = append(*notes, note{"log_damaged", fmt.Sprintf("%s: %v; none of its entries is missing", filepath.Base(f.path), c.header)})
		}
		if err := s.repair(g, c, budget, true); err != nil {
			g.drop()
			return nil, nil, err
		}
		c = inspect(g.data, f.first, end)
	}
	for _, r := range c.records {
		if r.torn {
			copy(g.data[r.off+recordHead:], r.body)
		}
	}
	g.end = c.tail
	return g, c, nil
}

// damaged says that the log is not what was signed.
func (s *Spool) damaged(notes *[]note, f file, why string) {
	s.cfg.Logger.Error("the audit log is damaged", "log", s.name, "file", f.path, "reason", why)
	s.repaired = append(s.repaired, Problem{filepath.Base(f.path), why})
	*notes = append(*notes, note{"log_damaged", filepath.Base(f.path) + ": " + why})
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

// repair writes g anew with a gap event in the place of every missing entry, so
// that the others keep their indexes. g is the new file then; keeping leaves the old
// one beside it.
func (s *Spool) repair(g *segment, c *contents, budget *uint64, keeping bool) error {
	bodies := make(map[uint64][]byte, len(c.records))
	next, need := g.first, headerSize
	put := func(index uint64, body []byte) {
		bodies[index] = body
		need += recordSize(len(body))
		next = max(next, index+1)
	}
	for _, r := range c.records {
		put(r.index, r.body)
	}
	for _, l := range c.losses {
		s.cfg.Logger.Error("the audit log is damaged", "log", s.name, "file", g.path, "from", l.from, "to", l.to, "reason", l.why)
		s.repaired = append(s.repaired, Problem{filepath.Base(g.path), l.String()})
		n := l.to - l.from + 1
		if n > *budget {
			return broke(s.cfg.Dir, "%s in %s: more than can be repaired", l, g.path)
		}
		*budget -= n
		for i := l.from; i <= l.to; i++ {
			body, err := pack(nil, s.gapEvent(c.lossReason(i), fmt.Sprintf("entry %d in %s %s", i, filepath.Base(g.path), l.why), i, 1))
			if err != nil {
				return fmt.Errorf("repair audit log: %w", err)
			}
			put(i, body)
		}
	}
	made, err := s.create(rebuildName, max(s.cfg.SegmentSize, int64(need+headerSize-1)/headerSize*headerSize))
	if err != nil {
		return err
	}
	s.begin(made, g.first)
	for i := g.first; i < next; i++ {
		body := bodies[i]
		write(made.data, made.end, i, body, crc32.Checksum(body, castagnoli))
		made.end += recordSize(len(body))
	}
	made.edge, made.edged = g.edge, g.edged
	if !made.edged {
		made.edge, made.edged = c.edge, c.edged
	}
	made.durable = true // its name comes below
	for i, st := range c.stands {
		st.write(made.data[:headerSize], i)
	}
	word(made.data, offLost).Store(checked(c.owed))
	copy(made.data[offBoot:], c.boot[:])
	if err := s.replace(made, g.path, keeping); err != nil {
		made.drop()
		return fmt.Errorf("repair audit log: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.drop()
	g.data, g.file, g.info, g.end = made.data, made.file, made.info, made.end
	g.sealOff, g.sealNext, g.durable, g.edge, g.edged, g.ill = made.sealOff, made.sealNext, true, made.edge, made.edged, ""
	return nil
}

// notSealed is the reason of a gap in the place of an entry that was lost before it was
// sealed, mostly with the power: nobody has signed or collected it.
const notSealed = "not_sealed"

// lossReason is that of the gap at index.
func (c *contents) lossReason(index uint64) string {
	if index < c.fresh {
		return string(damaged)
	}
	return notSealed
}

// replace puts g in the place of path, durably, and keeps what was there if that is
// asked for.
func (s *Spool) replace(g *segment, path string, keeping bool) error {
	if err := s.sealSegment(g, g.end); err != nil {
		return err
	}
	if err := s.disk.sync(g.data[:headerSize]); err != nil {
		return err
	}
	if keeping {
		if err := keep(path); err != nil {
			return err
		}
	}
	if err := os.Rename(g.path, path); err != nil {
		return err
	}
	g.path = path
	return syncDir(s.cfg.Dir)
}
