package control

import (
	"context"
	"net/http"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// maxSubject is the longest subject of a token that is accepted anywhere, in bytes.
const maxSubject = 512

func (o operations) ErasePerson(ctx context.Context, r api.ErasePersonRequestObject) (api.ErasePersonResponseObject, error) {
	p := Person{Subject: r.Body.Subject, Issuer: r.Body.Issuer}
	if p.Subject == "" || len(p.Subject) > maxSubject || len(p.Issuer) > maxSubject {
		return nil, fault.New(fault.BadRequest, "parley audit search --outcome allowed shows whom events are of",
			"a subject has 1 to %d bytes, and an issuer no more", maxSubject)
	}
	o.cfg.Collector.Settle(ctx)
	if r.Body.DryRun {
		found, err := o.cfg.Eraser.Erasable(ctx, p)
		if err != nil {
			return nil, err
		}
		return erased{eraseResult(found, false), o.cfg.Clock.Now}, nil
	}
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// What is committed has to leave the files too, whether the client stays or not.
	found, err := o.cfg.Eraser.Erase(context.WithoutCancel(ctx), p, o.event(ctx, audit.Erased, audit.Success, nil))
	if err != nil {
		return nil, err
	}
	return erased{eraseResult(found, true), o.cfg.Clock.Now}, nil
}

func eraseResult(found []Extent, done bool) api.EraseResult {
	r := api.EraseResult{Done: done, Logs: []api.Extent{}}
	for _, x := range found {
		r.Events += int64(x.Count)
		r.Logs = append(r.Logs, api.Extent{Log: x.Log, From: int64(x.From), To: int64(x.To), Count: int64(x.Count)})
	}
	return r
}

// An erased result comes as late as the database is large, so its reply has a
// deadline of its own.
type erased struct {
	api.EraseResult
	now func() time.Time
}

func (e erased) VisitErasePersonResponse(w http.ResponseWriter) error {
	_ = http.NewResponseController(w).SetWriteDeadline(e.now().Add(writeTimeout)) // a recorder has none
	return api.ErasePerson200JSONResponse(e.EraseResult).VisitErasePersonResponse(w)
}
