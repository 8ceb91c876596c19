// Package balance chooses, for each call, which endpoint of a service it goes to:
// in turn, or the less busy one of two. An endpoint that could not be reached is
// left out for a while.
//
// It refuses to connect, and to send a call anywhere but to the addresses that it
// was given: of no endpoint there is no choice.
package balance

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
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
// with each failure in a row, and is longer by up to half of it, by lot, so that
// callers do not come back at one moment.
const (
	minOut = time.Second
	maxOut = 30 * time.Second
)

const (
	// oneTry is how long a connection may take where there is another endpoint to
	// try, and allTries how long after the first the last one may begin.
	oneTry   = 3 * time.Second
	allTries = 5 * time.Second
	// patience is how long an endpoint may be silent before a caller that gives up
	// says something of the endpoint, and not of the caller alone.
	patience = 500 * time.Millisecond
)

// A Set is the endpoints of one service, each with what its user keeps for it:
// connections, or nothing. It is safe for concurrent use.
type Set[T any] struct {
	clk   clock.Clock
	keep  func(*Endpoint[T]) T
	drop  func(T)
	state atomic.Pointer[state[T]]
	turn  atomic.Uint32
	mu    sync.Mutex // held to replace state
	// failed is told of each try that found an endpoint unreachable.
	failed func()
}

// A state is immutable but for the counts of its endpoints.
type state[T any] struct {
	mode Mode
	all  []*Endpoint[T]
}

// An Endpoint is one place where a service is called.
type Endpoint[T any] struct {
	// Address is host:port.
	Address string
	// Kept is what the set's user keeps for it.
	Kept T

	set      *Set[T]
	underway atomic.Int64
	failures atomic.Int32
	out      atomic.Int64 // until when it is left out, Unix nanoseconds
}

// New is a set without endpoints. For each that comes keep says what is kept; for
// each that goes drop gets it back.
func New[T any](clk clock.Clock, keep func(*Endpoint[T]) T, drop func(T)) *Set[T] {
	s := &Set[T]{clk: clk, keep: keep, drop: drop, failed: func() {}}
	s.state.Store(&state[T]{})
	return s
}

// Endpoints is a Set, whatever is kept in it.
type Endpoints interface {
	Update(mode Mode, addresses []string)
	Len() int
	Avoided() int
	Watch(failed func())
}

// Update makes addresses the endpoints. Those that stay keep all that is known and
// kept of them.
func (s *Set[T]) Update(mode Mode, addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.state.Load()
	next := &state[T]{mode: mode}
	for _, a := range addresses {
		i := slices.IndexFunc(old.all, func(e *Endpoint[T]) bool { return e.Address == a })
		if i >= 0 {
			next.all = append(next.all, old.all[i])
			continue
		}
		e := &Endpoint[T]{Address: a, set: s}
		e.Kept = s.keep(e)
		next.all = append(next.all, e)
	}
	s.state.Store(next)
	for _, e := range old.all {
		if !slices.Contains(next.all, e) {
			s.drop(e.Kept)
		}
	}
}

// Len is how many endpoints there are.
func (s *Set[T]) Len() int { return len(s.state.Load().all) }

// DialTime is how long a connection to one of them may take; zero is no limit but
// the dialer's own, where there is no other to try.
func (s *Set[T]) DialTime() time.Duration {
	if s.Len() < 2 {
		return 0
	}
	return oneTry
}

// Avoided is how many of them are left out now.
func (s *Set[T]) Avoided() (n int) {
	now := s.clk.Now().UnixNano()
	for _, e := range s.state.Load().all {
		if e.out.Load() > now {
			n++
		}
	}
	return n
}

// Watch has failed told of each try that found an endpoint unreachable. It is for
// before the first use.
func (s *Set[T]) Watch(failed func()) { s.failed = failed }

// Addresses are those of all endpoints, for the record of a call that found none.
func (s *Set[T]) Addresses() string {
	var b strings.Builder
	for i, e := range s.state.Load().all {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(e.Address)
	}
	return b.String()
}

// A Try is the way of one call to an endpoint: the one that was chosen, and others
// in its place where that cannot be reached.
//
//	for try := set.Begin(); try.Endpoint != nil; try.Failed(ctx, err, reached) { ... }
type Try[T any] struct {
	// Endpoint is the one to call now, nil where none is left. The call is counted as
	// one of its own until Done or Failed.
	*Endpoint[T]
	// Err is how the first one failed: it was the choice, and the others stand in.
	Err error

	set    *Set[T]
	began  time.Time // the call
	last   time.Time // the try of Endpoint
	asked  bool
	others []*Endpoint[T]
}

// Begin begins a call.
func (s *Set[T]) Begin() Try[T] {
	t := Try[T]{Endpoint: s.pick(), set: s}
	if t.Endpoint == nil {
		t.Err = &net.DNSError{Err: "the service has no endpoint", IsNotFound: true}
		return t
	}
	t.began = s.clk.Now()
	t.last = t.began
	return t
}

// Failed says that the call to Endpoint failed with err, and goes on to another
// one where reached says that this one could not be reached, so that nothing of the
// call was sent to it.
func (t *Try[T]) Failed(ctx context.Context, err error, reached bool) {
	e, now := t.Endpoint, t.set.clk.Now()
	t.Endpoint = nil
	e.Done()
	t.Err = cmp.Or(t.Err, err)
	if reached {
		return
	}
	if ctx.Err() != nil {
		if now.Sub(t.last) >= patience {
			e.unreachable()
		}
		return // nobody waits any more
	}
	e.unreachable()
	if !t.asked {
		t.asked, t.others = true, t.set.others(e)
	}
	if len(t.others) > 0 && now.Sub(t.began) < allTries {
		t.Endpoint, t.others, t.last = t.others[0], t.others[1:], now
		t.underway.Add(1)
	}
}

// pick chooses an endpoint for one call and counts it; nil where there is none.
// Where every one is left out, the choice is among all: a guess is better than a
// refusal.
func (s *Set[T]) pick() *Endpoint[T] {
	st := s.state.Load()
	n := len(st.all)
	if n == 0 {
		return nil
	}
	e := st.all[0]
	switch {
	case n == 1:
	case st.mode == RoundRobin:
		e = st.from(int(s.turn.Add(1)%uint32(n)), s.clk)
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
func (st *state[T]) from(i int, clk clock.Clock) *Endpoint[T] {
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

// others are the endpoints to try, in turn, where e cannot be reached: those that
// are not left out first. Nothing is counted.
func (s *Set[T]) others(e *Endpoint[T]) []*Endpoint[T] {
	st, now := s.state.Load(), s.clk.Now().UnixNano()
	at := max(0, slices.Index(st.all, e))
	var good, rest []*Endpoint[T]
	for k := range st.all {
		x := st.all[(at+k)%len(st.all)]
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

// Done ends a call that was counted.
func (e *Endpoint[T]) Done() { e.underway.Add(-1) }

// Reached says that a connection to it was made: it is not left out any more.
func (e *Endpoint[T]) Reached() {
	if e.failures.Load() != 0 || e.out.Load() != 0 {
		e.failures.Store(0)
		e.out.Store(0)
	}
}

// unreachable leaves the endpoint out for a while.
func (e *Endpoint[T]) unreachable() {
	now := e.set.clk.Now()
	e.set.failed()
	if e.out.Load() > now.UnixNano() {
		return // of many that failed at once each would double the time
	}
	d := maxOut
	if n := e.failures.Add(1); n < 6 {
		d = min(maxOut, minOut<<(n-1))
	}
	e.out.Store(now.Add(d + rand.N(d/2)).UnixNano())
}
