package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/sys/unix"
)

// reader is the place where the last Read ended, since most go on from there.
type reader struct {
	first uint64 // of the mapped segment
	data  []byte
	next  uint64
	off   int
}

func (r *reader) drop() { unmap(r.data); *r = reader{} }

// Read returns up to max sealed entries from index from on; none where from is
// not sealed yet. The bodies are the caller's. An entry that was discarded is
// ErrDiscarded, one that is damaged fault.LogBroken.
func (s *Spool) Read(from uint64, max int) ([]audit.Entry, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	files, sealed, err := s.files()
	if err != nil {
		return nil, err
	}
	if from < files[0].first {
		return nil, fmt.Errorf("entry %d of %s, the oldest is %d: %w", from, s.name, files[0].first, ErrDiscarded)
	}
	var entries []audit.Entry
	for ; from < sealed && len(entries) < max; from++ {
		var e audit.Entry
		if fault := guard(func() { e, err = s.entry(files, from) }); fault != nil {
			err = broke(s.cfg.Dir, "entry %d of %s: %v", from, s.name, fault)
		}
		if err != nil {
			s.reader.drop()
			s.suspect(files, from, err)
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// entry is entry index, which is sealed.
func (s *Spool) entry(files []file, index uint64) (audit.Entry, error) {
	r, err := s.seek(files, index)
	if err != nil {
		return audit.Entry{}, err
	}
	body, err := canonical(make([]byte, 0, 2*len(r.body)), r.body)
	if err != nil {
		return audit.Entry{}, broke(s.cfg.Dir, "entry %d of %s is damaged: %v", index, s.name, err)
	}
	return audit.Entry{Log: s.name, Index: index, Leaf: r.leaf, Body: body}, nil
}

// suspect has the segment of a damaged entry mended, if it is not written to any more.
func (s *Spool) suspect(files []file, index uint64, err error) {
	if known := fault.All(err); len(known) == 0 {
		return // it could not be opened, which the watchdog sees too
	}
	i := sort.Search(len(files), func(i int) bool { return files[i].first > index }) - 1
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		if g.first == files[i].first {
			s.fall(g, damaged)
		}
	}
}

// files are the segments there are and the index behind the last sealed entry.
func (s *Spool) files() ([]file, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, 0, ErrClosed
	}
	files := make([]file, len(s.segments))
	for i, g := range s.segments {
		files[i] = file{g.path, g.first}
	}
	return files, s.sealed, nil
}

// seek moves the reader to entry index, which is sealed, and over it.
func (s *Spool) seek(files []file, index uint64) (record, error) {
	i := sort.Search(len(files), func(i int) bool { return files[i].first > index }) - 1
	r := &s.reader
	if r.data == nil || r.first != files[i].first {
		r.drop()
		data, err := openFile(files[i].path, unix.PROT_READ)
		if err != nil {
			return record{}, fmt.Errorf("read audit log: %w", err)
		}
		*r = reader{first: files[i].first, data: data, next: files[i].first, off: headerSize}
	}
	if r.next > index {
		r.next, r.off = r.first, headerSize
	}
	for {
		rec, size, ok := parse(r.data, r.off)
		if !ok || rec.index != r.next {
			at := r.next
			r.drop()
			return record{}, broke(s.cfg.Dir, "entry %d in %s is damaged", at, files[i].path)
		}
		r.off += size
		r.next++
		if rec.index == index {
			return rec, nil
		}
	}
}

// Discard removes the segments all of whose entries are below before. The
// newest stays, and so the log's name and position do. Of the entries below before
// that stay, it wipes what is said of persons.
func (s *Spool) Discard(before uint64) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	if err := s.remove(before); err != nil {
		return err
	}
	s.wipe(before)
	return nil
}

// remove is the part of Discard that is about whole segments.
func (s *Spool) remove(before uint64) error {
	for {
		s.mu.Lock()
		// Something of the second is sealed, so that its header is on the disk.
		gone := !s.closed && len(s.segments) > 1 && s.segments[1].first <= before && s.segments[1].first < s.sealed
		var oldest *segment
		if gone {
			oldest = s.segments[0]
			s.segments = s.segments[1:]
		}
		s.mu.Unlock()
		if !gone {
			return nil
		}
		oldest.drop()
		if s.reader.first == oldest.first {
			s.reader.drop()
		}
		// One after the other and each durably, or a loss of power could bring
		// an older one back and leave a hole.
		if err := os.Remove(oldest.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("discard from audit log: %w", err)
		}
		if err := syncDir(s.cfg.Dir); err != nil {
			return fmt.Errorf("discard from audit log: %w", err)
		}
	}
}
