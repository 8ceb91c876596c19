// Package xtest is a gate for tests of the request path: it decides by a
// function, keeps what it was told, and fails a test that was told twice.
//
// It refuses to be imported by anything but tests.
package xtest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
)

// An Entry is one Check with its Done, or one Refuse.
type Entry struct {
	Request call.Request
	Outcome call.Outcome
	Code    string // of a Refuse
	Err     error  // of a Refuse
	Done    bool
}

// A Gate implements route.Gate.
type Gate struct {
	tb testing.TB
	// Keep is false for benchmarks, where nothing is kept.
	Keep bool

	next    atomic.Int64
	mu      sync.Mutex // guards what follows
	entries []*Entry
	open    map[string]*Entry
	decide  func(*call.Request) call.Verdict
	vouch   func(*call.Request, *identity.Credential, identity.ID) (string, error)
}

// NewGate allows everything.
func NewGate(tb testing.TB) *Gate { return &Gate{tb: tb, Keep: true, open: map[string]*Entry{}} }

// Decide makes f the answer of Check; it may set anything but the id.
func (g *Gate) Decide(f func(*call.Request) call.Verdict) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.decide = f
}

// Vouching makes f the answer of Vouch.
func (g *Gate) Vouching(f func(*call.Request, *identity.Credential, identity.ID) (string, error)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.vouch = f
}

// Vouch implements route.Gate.
func (g *Gate) Vouch(r *call.Request, own *identity.Credential, to identity.ID) (string, error) {
	g.mu.Lock()
	vouch := g.vouch
	g.mu.Unlock()
	if vouch == nil {
		return "", nil
	}
	return vouch(r, own, to)
}

// Check implements route.Gate.
func (g *Gate) Check(r *call.Request) call.Verdict {
	v := call.Verdict{Allow: true}
	g.mu.Lock()
	decide := g.decide
	g.mu.Unlock()
	if decide != nil {
		v = decide(r)
	}
	if !g.Keep {
		v.ID = "01JD8Z4M7QK2"
		r.Verdict = v
		return v
	}
	v.ID = fmt.Sprintf("ID%06d", g.next.Add(1))
	r.Verdict = v
	g.mu.Lock()
	defer g.mu.Unlock()
	e := &Entry{Request: *r}
	g.entries, g.open[v.ID] = append(g.entries, e), e
	return v
}

// Done implements route.Gate.
func (g *Gate) Done(r *call.Request, o call.Outcome) {
	if !g.Keep {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.open[r.Verdict.ID]
	if e == nil {
		g.tb.Errorf("Done without Check, or twice: %s %s %+v", r.Verdict.ID, r.Listener, o)
		return
	}
	delete(g.open, r.Verdict.ID)
	e.Request, e.Outcome, e.Done = *r, o, true
}

// Refuse implements route.Gate.
func (g *Gate) Refuse(r *call.Request, code string, err error) call.Verdict {
	r.Verdict = call.Verdict{ID: fmt.Sprintf("ID%06d", g.next.Add(1)), Status: 403, Code: code}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.entries = append(g.entries, &Entry{Request: *r, Code: code, Err: err, Done: true})
	return r.Verdict
}

// Entries are those kept so far, in order of their Check or Refuse.
func (g *Gate) Entries() []Entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]Entry, len(g.entries))
	for i, e := range g.entries {
		all[i] = *e
	}
	return all
}

// Finished waits until there are n entries and all of them are done.
func (g *Gate) Finished(n int) []Entry {
	g.tb.Helper()
	for range 4000 {
		g.mu.Lock()
		ok := len(g.entries) >= n && len(g.open) == 0
		g.mu.Unlock()
		if ok {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	all := g.Entries()
	if len(all) != n {
		for i, e := range all {
			if i < len(all)-5 && e.Code == "" && e.Outcome.Error == "" {
				continue
			}
			g.tb.Logf("%s %s %s: %s %v %+v", e.Request.Listener, e.Request.Method, e.Request.Path, e.Code, e.Err, e.Outcome)
		}
		g.tb.Fatalf("the gate has %d entries, want %d", len(all), n)
	}
	for _, e := range all {
		if !e.Done {
			g.tb.Fatalf("a call was not reported: %+v", e.Request)
		}
	}
	return all
}

// Reset forgets what is done.
func (g *Gate) Reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.entries = nil
	for _, e := range g.open {
		g.entries = append(g.entries, e)
	}
}
