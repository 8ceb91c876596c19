package server

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"
)

// headsFile holds the heads of the audit logs, sealed: whoever can write to the
// database alone cannot make one.
const (
	headsFile    = "audit.heads"
	headsPurpose = "heads of the audit logs"
)

// headsEvery is how often what was recorded since is taken in: the end of a log
// that is younger may be cut off unnoticed.
const headsEvery = time.Second

// openHeads takes up the heads of the last run; logged says that there was one.
func (s *Server) openHeads(logged bool) error {
	b, err := s.master.Open(s.headsPath(), headsPurpose)
	if errors.Is(err, fs.ErrNotExist) {
		s.newHeads = logged
		return nil
	}
	if err != nil {
		return err
	}
	return s.store.UnmarshalHeads(b)
}

func (s *Server) headsPath() string { return filepath.Join(s.cfg.Dir, headsFile) }

// KeepHeads writes the heads of the audit logs until ctx ends, and then once more.
// What cannot be written is logged, once, and tried again.
func (s *Server) KeepHeads(ctx context.Context) {
	var said string
	keep := func(ctx context.Context) {
		text := ""
		if err := s.keepHeads(ctx); err != nil {
			text = err.Error()
		}
		if text != "" && text != said && ctx.Err() == nil {
			s.cfg.Logger.Error("the heads of the audit logs are not kept", "error", text)
		}
		said = text
	}
	for {
		keep(ctx)
		if s.cfg.Clock.Sleep(ctx, headsEvery) != nil {
			last, done := context.WithTimeout(context.WithoutCancel(ctx), headsEvery)
			defer done()
			keep(last)
			return
		}
	}
}

func (s *Server) keepHeads(ctx context.Context) error {
	fresh, err := s.store.ExtendHeads(ctx)
	s.unkept = s.unkept || fresh > 0
	if !s.unkept {
		return err
	}
	b, left, merr := s.store.MarshalHeads()
	if merr != nil {
		return errors.Join(err, merr)
	}
	if serr := s.master.Seal(s.headsPath(), headsPurpose, b); serr != nil {
		return errors.Join(err, serr)
	}
	if s.newHeads {
		s.newHeads = false
		s.cfg.Logger.Warn("the heads of the audit logs were made anew: nothing says what was there before", "file", s.headsPath(), "entries", fresh)
	}
	s.unkept = false
	if left > 0 {
		err = errors.Join(err, errors.New("there is no room for all of them"))
	}
	return err
}
