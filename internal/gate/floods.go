package gate

import (
	"strconv"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
)

const (
	// floodPeriod is how often one kind of refusal is recorded.
	floodPeriod = 10 * time.Second
	// maxFloods is how many kinds are told apart; what is beyond shares one for each
	// listener and reason, of which there are no more than the mesh file makes.
	maxFloods = 1024
)

// A flood is what counts as the same refusal: at this listener, for this reason, from
// this address or process.
type flood struct{ listener, reason, from string }

// floodOf is the flood that a refusal of r belongs to.
func floodOf(r *call.Request, reason string) flood {
	f := flood{r.Listener, reason, r.Remote.Addr().Unmap().String()}
	switch {
	case r.Process != (call.Process{}):
		f.from = strconv.Itoa(r.Process.UID) + " " + r.Process.Exe
	case reason == ReasonBanned || reason == ReasonNotMember:
		f.from += " " + r.Peer.ID.String() // who that is was proven
	}
	return f
}

// floods are the refusals of the last seconds. The zero value is ready for use; it is
// safe for concurrent use.
type floods struct {
	mu    sync.Mutex // guards known
	known map[flood]*repeats
}

// repeats are what was refused since the last record.
type repeats struct {
	last  *record // what was recorded; nil until it is
	since time.Time
	audit.Repeated
}

// count says whether a refusal is to be recorded, with what was not since the one
// before, nil for nothing. keep is owed then.
func (f *floods) count(kind flood, now time.Time) (rep *repeats, before *audit.Repeated, due bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rep = f.known[kind]
	if rep == nil && len(f.known) >= maxFloods {
		kind.from = ""
		rep = f.known[kind]
	}
	if rep == nil || now.Sub(rep.since) >= floodPeriod || now.Before(rep.since) {
		if rep != nil && rep.Count > 0 {
			before = &rep.Repeated
		}
		if f.known == nil {
			f.known = map[flood]*repeats{}
		}
		rep = &repeats{since: now}
		f.known[kind] = rep
		return rep, before, true
	}
	if rep.Count == 0 {
		rep.First = now
	}
	rep.Count++
	rep.Last = now
	return rep, nil, false
}

// keep keeps what a refusal was recorded as.
func (f *floods) keep(rep *repeats, rec *record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rep.last = rec.clone()
}

// id is that of the event that others are counted with, "" while there is none yet.
func (f *floods) id(rep *repeats) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rep.last == nil {
		return ""
	}
	return rep.last.event.ID
}

// over takes out what has not been repeated for a period, or with all everything, and
// returns those of which some were not recorded.
func (f *floods) over(now time.Time, all bool) (untold []*repeats) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for kind, rep := range f.known {
		if rep.last == nil {
			continue // its record is on its way
		}
		if all || now.Sub(rep.since) >= floodPeriod || now.Before(rep.since) {
			delete(f.known, kind)
			if rep.Count > 0 {
				untold = append(untold, rep)
			}
		}
	}
	return untold
}

// Told records what of repeated refusals was left out, once the repetition has an end;
// with all, whether it has or not. It is called every few seconds and when the gate is
// used no more, so that no count is lost.
func (g *Gate) Told(all bool) {
	now := g.cfg.Clock.Now()
	for _, rep := range g.floods.over(now, all) {
		g.record(rep.lastly(now))
	}
}

// lastly is the event of what was not recorded. It is another than the last: whoever
// was counted just before may still ask for the id of that.
func (rep *repeats) lastly(now time.Time) *audit.Event {
	e := &rep.last.clone().event
	e.ID, e.Time, e.Call.Duration = audit.NewID(now), rep.Last.UTC(), 0
	if rep.Count--; rep.Count > 0 { // one of them is the event itself
		e.Repeated = &rep.Repeated
	}
	return e
}

// clone is rec, for longer than it is in use.
func (rec *record) clone() *record {
	c := *rec
	e := &c.event
	e.Call, e.Caller = &c.call, &c.caller
	if e.Callee != nil {
		e.Callee = &c.callee
	}
	if e.Decision != nil {
		e.Decision = &c.decision
	}
	if e.TLS != nil {
		e.TLS = &c.tls
	}
	if e.UpstreamTLS != nil {
		e.UpstreamTLS = &c.upstream
	}
	if e.Trace != nil {
		e.Trace = &c.trace
	}
	if e.Private != nil {
		e.Private = &c.private
	}
	if c.caller.UID != nil {
		c.caller.UID = &c.uid
	}
	e.Repeated = nil
	return &c
}
