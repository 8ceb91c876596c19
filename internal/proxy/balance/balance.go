// Package balance chooses, for each call, which endpoint of a service it goes to:
// in turn, or the less busy one of two. An endpoint that could not be reached is
// left out for a while.
//
// It refuses to connect, and to send a call anywhere but to the addresses that it
// was given: of no endpoint there is no choice.
package balance

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/clock"
)

// A Mode is how an endpoint is chosen.
type Mode string

// The modes. The zero Mode is LeastRequests.
const (
	// LeastRequests takes the one with fewer calls under way of two that are drawn
	// by lot: nearly as even as to ask all, and no herd runs to the one that was
	// idle a moment ago.
	LeastRequests Mode = "least_requests"
	// RoundRobin takes one after the other.
	RoundRobin Mode = "round_robin"
)

// How long an endpoint is left out that could not be reached: the time doubles
// with each failure in a row.
const (
	minOut = time.Second
	maxOut = 30 * time.Second
)

// A Set is the endpoints of one service. It is safe for concurrent use.
type Set struct {
	clk   clock.Clock
	state atomic.Pointer[state]
	turn  atomic.Uint32
	mu    sync.Mutex // held to replace state
}

// A state is immutable but for the counts of its endpoints.
type state struct {
	mode Mode
	all  []*Endpoint
}

// An Endpoint is one place where a service is called.
type Endpoint struct {
	// Address is host:port.
	Address string

	set      *Set
	underway atomic.Int64
	failures atomic.Int32
	out      atomic.Int64 // until when it is left out, Unix nanoseconds
}

// New is a set without endpoints.
func New(clk clock.Clock) *Set {
	s := &Set{clk: clk}
	s.state.Store(&state{})
	return s
}

// Update makes addresses the endpoints. Those that stay keep their counts.
func (s *Set) Update(mode Mode, addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.state.Load()
	next := &state{mode: mode}
	for _, a := range addresses {
		i := slices.IndexFunc(old.all, func(e *Endpoint) bool { return e.Address == a })
		if i >= 0 {
			next.all = append(next.all, old.all[i])
		} else {
			next.all = append(next.all, &Endpoint{Address: a, set: s})
		}
	}
	s.state.Store(next)
}

// Addresses are those of all endpoints, in their order.
func (s *Set) Addresses() []string {
	st := s.state.Load()
	out := make([]string, len(st.all))
	for i, e := range st.all {
		out[i] = e.Address
	}
	return out
}

// Pick chooses an endpoint for one call and counts it; nil where there is none.
// Each is owed a Done. Where every one is left out, the choice is among all: a
// guess is better than a refusal.
func (s *Set) Pick() *Endpoint {
	st := s.state.Load()
	n := len(st.all)
	if n == 0 {
		return nil
	}
	e := st.all[0]
	switch {
	case n == 1:
	case st.mode == RoundRobin:
		e = st.from(int(s.turn.Add(1))%n, s.clk)
	default:
		i := rand.IntN(n)
		j := (i + 1 + rand.IntN(n-1)) % n
		a, b := st.from(i, s.clk), st.from(j, s.clk)
		if e = a; b.underway.Load() < a.underway.Load() {
			e = b
		}
	}
	e.underway.Add(1)
	return e
}

// from is the first endpoint at or behind i that is not left out, or the one at i.
func (st *state) from(i int, clk clock.Clock) *Endpoint {
	e := st.all[i]
	if e.out.Load() == 0 { // nearly always, and without a look at the clock
		return e
	}
	now := clk.Now().UnixNano()
	for k := range st.all {
		if x := st.all[(i+k)%len(st.all)]; x.out.Load() <= now {
			return x
		}
	}
	return e
}

// Others are the endpoints to try, in turn, where e cannot be reached: those that
// are not left out first. Nothing is counted.
func (s *Set) Others(e *Endpoint) []*Endpoint {
	st, now := s.state.Load(), s.clk.Now().UnixNano()
	at := slices.Index(st.all, e)
	var good, rest []*Endpoint
	for k := 1; k <= len(st.all); k++ {
		x := st.all[(at+k+len(st.all))%len(st.all)]
		switch {
		case x == e:
		case x.out.Load() <= now:
			good = append(good, x)
		default:
			rest = append(rest, x)
		}
	}
	return append(good, rest...)
}

// Done ends the call that Pick counted.
func (e *Endpoint) Done() { e.underway.Add(-1) }

// Underway is how many calls are under way.
func (e *Endpoint) Underway() int { return int(e.underway.Load()) }

// Unreachable leaves the endpoint out for a while: no connection to it could be
// made.
func (e *Endpoint) Unreachable() {
	n := e.failures.Add(1)
	d := maxOut
	if n < 6 {
		d = min(maxOut, minOut<<(n-1))
	}
	e.out.Store(e.set.clk.Now().Add(d).UnixNano())
}

// Reached takes the endpoint in again.
func (e *Endpoint) Reached() {
	if e.failures.Load() != 0 || e.out.Load() != 0 {
		e.failures.Store(0)
		e.out.Store(0)
	}
}
