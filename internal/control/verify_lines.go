package control

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
)

// VisitVerifyMeshResponse runs the verification and writes what comes of it, line by
// line.
func (v *meshVerification) VisitVerifyMeshResponse(w http.ResponseWriter) error {
	defer func() { <-v.server.verifying }()
	v.out = &lines{server: v.server, w: w, rc: http.NewResponseController(w)}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	v.out.send(&api.VerifyLine{Plan: api.VerifyPlan{
		Run: v.run, TrustDomain: v.server.cfg.TrustDomain.String(), Revision: v.revision, Edges: v.edges,
		Hosts: slices.Sorted(maps.Keys(v.orders)),
	}})
	ctx, stop := context.WithCancel(v.ctx)
	defer stop()
	var beating sync.WaitGroup
	beating.Go(func() { v.out.beat(ctx) })
	err := v.try()
	stop()
	beating.Wait()
	if err != nil {
		if v.ctx.Err() == nil {
			v.server.cfg.Logger.ErrorContext(v.ctx, "a verification ended early", "component", "control", "run", v.run, "error", err)
		}
		panic(http.ErrAbortHandler) // the client must not take it for the end
	}
	done := api.VerifyDone{Missed: []api.VerifyMissed{}}
	for _, host := range slices.Sorted(maps.Keys(v.missed)) {
		done.Missed = append(done.Missed, api.VerifyMissed{Host: host, Why: v.missed[host]})
	}
	v.out.send(&api.VerifyLine{Done: done})
	return nil
}

// lines are the reply of a verification. A client that left ends it by its request's
// context, so that what cannot be written matters no more.
type lines struct {
	server *Server

	mu   sync.Mutex // guards what follows
	w    http.ResponseWriter
	rc   *http.ResponseController
	last time.Time // when the last line was written
}

func (l *lines) send(line *api.VerifyLine) {
	body, err := encodeExact(line)
	if err != nil {
		l.server.cfg.Logger.Error("a line of a verification not written", "error", err)
		return
	}
	l.write(body)
}

func (l *lines) write(body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = l.server.cfg.Clock.Now()
	_ = l.rc.SetWriteDeadline(l.last.Add(writeTimeout)) // a recorder has none
	if _, err := l.w.Write(body); err == nil {
		_ = l.rc.Flush()
	}
}

// beat writes an empty line where there was nothing for long.
func (l *lines) beat(ctx context.Context) {
	for l.server.cfg.Clock.Sleep(ctx, tailBeat) == nil {
		l.mu.Lock()
		due := l.server.cfg.Clock.Now().Sub(l.last) >= tailBeat
		l.mu.Unlock()
		if due {
			l.write([]byte("\n"))
		}
	}
}
