package balance_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/proxy/balance"
)

type (
	endpoints = balance.Set[string]
	attempt   = balance.Try[string]
)

var errDown = errors.New("down")

// set keeps of each endpoint its address.
func set(mode balance.Mode, addresses ...string) *endpoints {
	s := balance.New(clock.System{}, func(e *balance.Endpoint[string]) string { return e.Address }, func(string) {})
	s.Update(mode, addresses)
	return s
}

// shares is how often each endpoint is chosen in n calls that end at once.
func shares(s *endpoints, n int) map[string]int {
	got := map[string]int{}
	for range n {
		try := s.Begin()
		got[try.Address]++
		try.Done()
	}
	return got
}

// tried are the endpoints that a call tries which finds those of down unreachable.
func tried(ctx context.Context, s *endpoints, down ...string) (order []string, err error) {
	try := s.Begin()
	for try.Endpoint != nil {
		order = append(order, try.Address)
		if !slices.Contains(down, try.Address) {
			try.Reached()
			try.Done()
			return order, nil
		}
		try.Failed(ctx, fmt.Errorf("%s: %w", try.Address, errDown), false)
	}
	return order, try.Err
}

// breakDown makes calls until one found address unreachable.
func breakDown(t *testing.T, s *endpoints, address string) {
	t.Helper()
	for range 1000 {
		if order, _ := tried(t.Context(), s, address); slices.Contains(order, address) {
			return
		}
	}
	t.Fatalf("%s was never tried", address)
}

var modes = []balance.Mode{balance.LeastRequests, balance.RoundRobin}

func TestNoEndpoint(t *testing.T) {
	t.Parallel()
	if order, err := tried(t.Context(), set(balance.RoundRobin)); err == nil || len(order) > 0 || !strings.Contains(err.Error(), "no endpoint") {
		t.Errorf("tried %v of none: %v", order, err)
	}
}

func TestRoundRobinIsEven(t *testing.T) {
	t.Parallel()
	got := shares(set(balance.RoundRobin, "a", "b", "c"), 300)
	for _, a := range []string{"a", "b", "c"} {
		if got[a] != 100 {
			t.Errorf("%s got %d of 300: %v", a, got[a], got)
		}
	}
}

func TestLeastRequestsAvoidsTheBusy(t *testing.T) {
	t.Parallel()
	for _, mode := range []balance.Mode{balance.LeastRequests, ""} {
		s := set(mode, "a", "b", "c", "d")
		slow := s.Begin() // a call that does not end
		for slow.Address != "a" {
			slow.Done()
			slow = s.Begin()
		}
		if got := shares(s, 400); got["a"] > 0 {
			t.Errorf("%q: the busy one of four got %d of 400: %v", mode, got["a"], got)
		}
		slow.Done()
		if got := shares(s, 4000); got["a"] < 500 {
			t.Errorf("%q: once idle it got %d of 4000", mode, got["a"])
		}
	}
}

func TestUnreachableIsLeftOutForAWhile(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		synctest.Test(t, func(t *testing.T) {
			s, failures := set(mode, "a", "b"), 0
			s.Watch(func() { failures++ })
			breakDown(t, s, "a")
			if got := shares(s, 100); got["a"] > 0 || s.Avoided() != 1 || failures != 1 {
				t.Errorf("%s: %v, %d avoided after %d failures", mode, got, s.Avoided(), failures)
			}
			time.Sleep(1600 * time.Millisecond) // a second, and up to half of it by lot
			if got := shares(s, 100); got["a"] == 0 {
				t.Errorf("%s: never tried again: %v", mode, got)
			}
			breakDown(t, s, "a") // the second time for longer
			time.Sleep(1600 * time.Millisecond)
			if got := shares(s, 100); got["a"] > 0 {
				t.Errorf("%s: back too soon: %v", mode, got)
			}
			time.Sleep(1500 * time.Millisecond)
			for range 20 { // until one was drawn that reaches it
				_, _ = tried(t.Context(), s)
			}
			breakDown(t, s, "a") // after a success as if for the first time
			time.Sleep(1600 * time.Millisecond)
			if got := shares(s, 100); got["a"] == 0 {
				t.Errorf("%s: not back: %v", mode, got)
			}
			for range 20 {
				breakDown(t, s, "a")
				time.Sleep(50 * time.Second)
			}
			breakDown(t, s, "a")
			time.Sleep(46 * time.Second) // the longest there is
			if got := shares(s, 100); got["a"] == 0 {
				t.Errorf("%s: out for ever: %v", mode, got)
			}
		})
	}
}

// Where all are left out, all are tried all the same.
func TestAllUnreachableAreTried(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		s := set(mode, "a", "b", "c")
		for range 3 {
			order, err := tried(t.Context(), s, "a", "b", "c")
			if !errors.Is(err, errDown) || !strings.HasPrefix(err.Error(), order[0]) {
				t.Errorf("%s: the error is %v, after %v", mode, err, order)
			}
			if slices.Sort(order); !slices.Equal(order, []string{"a", "b", "c"}) {
				t.Errorf("%s: tried %v", mode, order)
			}
		}
		if order, err := tried(t.Context(), s, "a", "b"); err != nil || order[len(order)-1] != "c" {
			t.Errorf("%s: the one that came back was not found: %v, %v", mode, order, err)
		}
	}
}

func TestTheGoodAreTriedFirst(t *testing.T) {
	t.Parallel()
	s := set(balance.RoundRobin, "a", "b", "c", "d")
	breakDown(t, s, "b")
	order, _ := tried(t.Context(), s, "a", "b", "c", "d")
	if len(order) != 4 || order[3] != "b" {
		t.Errorf("tried %v", order)
	}
}

// What was sent to an endpoint is sent to no other, and a caller that gave up says
// nothing of the endpoint, unless that was silent for long.
func TestFailuresThatAreNotTheEndpoints(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := set(balance.RoundRobin, "a", "b")
		try := s.Begin()
		try.Failed(t.Context(), errDown, true)
		if try.Endpoint != nil || !errors.Is(try.Err, errDown) || s.Avoided() > 0 {
			t.Errorf("after it was sent: %+v, %d avoided", try.Endpoint, s.Avoided())
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		try = s.Begin()
		try.Failed(gone, gone.Err(), false)
		if try.Endpoint != nil || s.Avoided() > 0 {
			t.Errorf("after the caller went: %+v, %d avoided", try.Endpoint, s.Avoided())
		}
		try = s.Begin()
		time.Sleep(time.Second)
		try.Failed(gone, gone.Err(), false)
		if try.Endpoint != nil || s.Avoided() != 1 {
			t.Errorf("after the caller waited in vain: %+v, %d avoided", try.Endpoint, s.Avoided())
		}
	})
}

// A caller does not wait for all of many that are silent.
func TestTriesEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, n := set(balance.RoundRobin, "a", "b", "c", "d", "e"), 0
		for try := s.Begin(); try.Endpoint != nil; n++ {
			time.Sleep(s.DialTime())
			try.Failed(t.Context(), errDown, false)
		}
		if n != 2 {
			t.Errorf("%d were tried", n)
		}
		if d := set("", "a").DialTime(); d != 0 {
			t.Errorf("the only one has %s", d)
		}
	})
}

func TestUpdateKeepsWhatStays(t *testing.T) {
	t.Parallel()
	var made, dropped []string
	s := balance.New(clock.System{},
		func(e *balance.Endpoint[string]) string { made = append(made, e.Address); return e.Address },
		func(k string) { dropped = append(dropped, k) })
	s.Update("", []string{"a", "b"})
	breakDown(t, s, "a")
	held := s.Begin() // of b
	s.Update("", []string{"c", "b", "a"})
	if s.Avoided() != 1 || len(dropped) > 0 || s.Addresses() != "c,b,a" {
		t.Errorf("%d avoided, dropped %v, at %s", s.Avoided(), dropped, s.Addresses())
	}
	if got := shares(s, 100); got["b"] > 0 || got["c"] != 100 {
		t.Errorf("with a call of b's under way: %v", got)
	}
	s.Update("", []string{"c"})
	held.Done() // of one that is gone
	s.Update("", nil)
	slices.Sort(dropped)
	if !slices.Equal(made, []string{"a", "b", "c"}) || !slices.Equal(dropped, made) || s.Len() != 0 {
		t.Errorf("made %v, dropped %v", made, dropped)
	}
}

func TestRaced(t *testing.T) {
	t.Parallel()
	s := set(balance.LeastRequests, "a", "b", "c")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 500 {
				down := []string{}
				if k%7 == i {
					down = []string{"a"}
				}
				_, _ = tried(t.Context(), s, down...)
				if k%50 == i {
					s.Update(balance.LeastRequests, []string{"a", "b", "c", fmt.Sprint(i)})
				}
			}
		})
	}
	wg.Wait()
	// None is counted as under way for ever: then it would get no call any more.
	s.Update(balance.LeastRequests, []string{"b", "c"})
	if got := shares(s, 1000); got["b"] < 100 || got["c"] < 100 {
		t.Errorf("afterwards: %v", got)
	}
}

func TestBeginAllocatesNothing(t *testing.T) {
	for _, mode := range modes {
		s := set(mode, "a", "b", "c")
		var try attempt
		if n := testing.AllocsPerRun(1000, func() {
			try = s.Begin()
			try.Reached()
			try.Done()
		}); n > 0 {
			t.Errorf("%s: %v allocations", mode, n)
		}
	}
}

func BenchmarkBegin(b *testing.B) {
	for _, mode := range modes {
		b.Run(string(mode), func(b *testing.B) {
			s := set(mode, "a", "b", "c", "d", "e")
			b.ReportAllocs()
			for b.Loop() {
				try := s.Begin()
				try.Done()
			}
		})
	}
}
