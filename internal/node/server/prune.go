package server

import (
	"context"
	"time"

	"github.com/parleymesh/parley/internal/audit"
)

// How often the server looks for events that are older than the mesh file keeps
// them, and whether that has changed.
const (
	pruneEvery = time.Hour
	pruneLook  = time.Second
)

// Prune empties events that are older than the mesh file keeps them, until ctx ends:
// every hour, and at once when it keeps them for another time than before. What
// cannot be emptied is logged and tried again.
func (s *Server) Prune(ctx context.Context) {
	var last time.Time
	kept := s.retention.Load()
	for s.cfg.Clock.Sleep(ctx, pruneLook) == nil {
		now, published := s.cfg.Clock.Now(), s.retention.Load()
		if published == nil || kept != nil && *published == *kept && now.Sub(last) < pruneEvery {
			continue
		}
		kept, last = published, now
		s.prune(ctx, audit.Access, kept.Access)
		s.prune(ctx, audit.Security, kept.Security)
	}
}

func (s *Server) prune(ctx context.Context, class audit.Class, keep time.Duration) {
	if keep == 0 {
		return
	}
	n, err := s.store.Prune(ctx, class, s.cfg.Clock.Now().Add(-keep), func() *audit.Event {
		e := s.event(audit.Pruned)
		e.Actor.System, e.Object = "retention", &audit.Object{Kind: "class", Name: string(class)}
		return e
	})
	if err != nil && ctx.Err() == nil {
		s.cfg.Logger.Error("events that are too old are not emptied", "component", "audit", "class", class, "error", err)
	}
	if n > 0 {
		s.cfg.Logger.Info("events that are too old were emptied", "component", "audit", "class", class, "events", n)
	}
}
