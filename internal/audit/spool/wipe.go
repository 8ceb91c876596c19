package spool

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/parleymesh/parley/internal/audit"
	"golang.org/x/sys/unix"
)

// A record is wiped in three steps, each on the disk before the next: the commitment
// goes into the place that the body has for it; the word becomes that of the wiped body;
// the padding is written. A kill or a loss of power within the first leaves a record as
// it was, within the last one that is wiped: parse and audit.Untear take both.

// maxWipe is how many records are wiped at once.
const maxWipe = 1024

// A wiper is how far the log is wiped: up to next, in the segment of first.
type wiper struct {
	first, next uint64
	off         int
	text        string // what went wrong last, which is logged once
}

// A wiping is a record to be wiped.
type wiping struct {
	off, at int    // of the record; of the private part in its body
	body    []byte // the wiped one
}

// wipe takes what is said of persons out of the sealed entries below before. What fails
// is tried again by the next Discard, and does not keep entries from being delivered.
// The caller holds reading.
func (s *Spool) wipe(before uint64) {
	files, sealed, err := s.files()
	if err != nil {
		return
	}
	before = min(before, sealed)
	for i, f := range files {
		stop := min(before, end(files, i))
		if f.first < s.wiped.first || f.first >= stop {
			continue
		}
		if f.first != s.wiped.first || s.wiped.off == 0 {
			s.wiped = wiper{first: f.first, next: f.first, off: headerSize, text: s.wiped.text}
		}
		if s.wiped.next >= stop {
			continue
		}
		if err := s.wipeFile(f.path, stop); err != nil {
			if text := err.Error(); text != s.wiped.text {
				s.wiped.text = text
				s.cfg.Logger.Error("what was collected of persons cannot be wiped yet", "log", s.name, "error", err)
			}
			return
		}
		s.wiped.text = ""
	}
}

// wipeFile wipes the segment of s.wiped as far as stop, or to a damaged entry: once
// that is mended, it is begun anew.
func (s *Spool) wipeFile(path string, stop uint64) error {
	data, err := openFile(path, unix.PROT_READ|unix.PROT_WRITE)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the watchdog sees that
	}
	if err != nil {
		return fmt.Errorf("wipe audit log: %w", err)
	}
	defer unmap(data)
	w := s.wiped
	for w.next < stop {
		from := w.off
		var found []wiping
		fault := guard(func() {
			if found = w.look(data, stop); len(found) > 0 {
				err = s.wipeAll(data[from&^(page-1):w.off], data, found)
			}
		})
		if fault != nil {
			return nil // the watchdog sees that, too
		}
		if err != nil {
			return fmt.Errorf("wipe audit log %s: %w", path, err)
		}
		s.wiped.next, s.wiped.off = w.next, w.off
	}
	return nil
}

// look finds the next records that have something to wipe.
func (w *wiper) look(data []byte, stop uint64) (found []wiping) {
	for w.next < stop && len(found) < maxWipe {
		r, size, ok := parse(data, w.off)
		if !ok || r.index != w.next {
			w.next = stop
			return found
		}
		if r.torn {
			copy(data[w.off+recordHead:], r.body)
		}
		if body, at, ok := audit.AppendWiped(nil, r.body); ok {
			found = append(found, wiping{w.off, at, body})
		}
		w.off += size
		w.next++
	}
	return found
}

// wipeAll wipes what was found in data, all of it within part.
func (s *Spool) wipeAll(part, data []byte, found []wiping) error {
	for _, step := range []func(wiping){
		func(f wiping) { copy(data[f.off+recordHead:], f.body[:f.at]) },
		func(f wiping) {
			sum := bodySum(f.body, data[f.off+offIndex:f.off+offLeaf])
			word(data, f.off).Store(publishedWord(len(f.body), sum))
		},
		func(f wiping) { copy(data[f.off+recordHead+f.at:], f.body[f.at:]) },
	} {
		for _, f := range found {
			step(f)
		}
		if err := s.disk.sync(part); err != nil {
			return err
		}
	}
	return nil
}
