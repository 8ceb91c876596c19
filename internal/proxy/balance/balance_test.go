package balance_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/proxy/balance"
)

func set(mode balance.Mode, addresses ...string) *balance.Set {
	s := balance.New(clock.System{})
	s.Update(mode, addresses)
	return s
}

// shares is how often each endpoint is picked in n calls that end at once.
func shares(s *balance.Set, n int) map[string]int {
	got := map[string]int{}
	for range n {
		e := s.Pick()
		got[e.Address]++
		e.Done()
	}
	return got
}

func TestNoEndpoint(t *testing.T) {
	t.Parallel()
	if e := set(balance.RoundRobin).Pick(); e != nil {
		t.Errorf("picked %s of none", e.Address)
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
		var slow []*balance.Endpoint
		for len(slow) == 0 { // a call to a that does not end
			if e := s.Pick(); e.Address == "a" {
				slow = append(slow, e)
			} else {
				e.Done()
			}
		}
		if got := shares(s, 400); got["a"] > 0 {
			t.Errorf("%q: the busy one of four got %d of 400: %v", mode, got["a"], got)
		}
		for _, e := range slow {
			e.Done()
		}
		if got := shares(s, 4000); got["a"] < 500 {
			t.Errorf("%q: once idle it got %d of 4000", mode, got["a"])
		}
	}
}

func TestUnreachableIsLeftOutForAWhile(t *testing.T) {
	t.Parallel()
	for _, mode := range []balance.Mode{balance.LeastRequests, balance.RoundRobin} {
		synctest.Test(t, func(t *testing.T) {
			s := set(mode, "a", "b")
			bad := find(s, "a")
			bad.Unreachable()
			if got := shares(s, 100); got["a"] > 0 {
				t.Errorf("%s: %v", mode, got)
			}
			time.Sleep(1100 * time.Millisecond)
			if got := shares(s, 100); got["a"] == 0 {
				t.Errorf("%s: never tried again: %v", mode, got)
			}
			bad.Unreachable() // the second time for longer
			time.Sleep(1100 * time.Millisecond)
			if got := shares(s, 100); got["a"] > 0 {
				t.Errorf("%s: back too soon: %v", mode, got)
			}
			bad.Reached()
			if got := shares(s, 100); got["a"] == 0 {
				t.Errorf("%s: not back: %v", mode, got)
			}
			// Where all are out, they are tried all the same.
			for range 20 {
				bad.Unreachable()
				find(s, "b").Unreachable()
			}
			if e := s.Pick(); e == nil {
				t.Errorf("%s: no choice", mode)
			} else {
				e.Done()
			}
			time.Sleep(31 * time.Second) // the longest there is
			if got := shares(s, 100); got["a"] == 0 || got["b"] == 0 {
				t.Errorf("%s: out for ever: %v", mode, got)
			}
		})
	}
}

func find(s *balance.Set, address string) *balance.Endpoint {
	for range 10_000 {
		e := s.Pick()
		e.Done()
		if e.Address == address {
			return e
		}
		for _, o := range s.Others(e) {
			if o.Address == address {
				return o
			}
		}
	}
	panic(fmt.Sprintf("%s is not there", address))
}

func TestUpdateKeepsCounts(t *testing.T) {
	t.Parallel()
	s := set(balance.RoundRobin, "a")
	e := s.Pick()
	s.Update(balance.RoundRobin, []string{"b", "a"})
	if again := find(s, "a"); again != e || again.Underway() != 1 {
		t.Errorf("%d under way", again.Underway())
	}
	e.Done()
	s.Update(balance.RoundRobin, nil)
	if s.Pick() != nil || len(s.Addresses()) != 0 {
		t.Error("still there")
	}
}

func TestOthersAreInTurnAndTheGoodFirst(t *testing.T) {
	t.Parallel()
	s := set(balance.RoundRobin, "a", "b", "c", "d")
	find(s, "b").Unreachable()
	var got []string
	for _, e := range s.Others(find(s, "a")) {
		got = append(got, e.Address)
	}
	if !slices.Equal(got, []string{"c", "d", "b"}) {
		t.Errorf("got %v", got)
	}
}

func TestRaced(t *testing.T) {
	t.Parallel()
	s := set(balance.LeastRequests, "a", "b", "c")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 500 {
				e := s.Pick()
				if k%7 == i {
					e.Unreachable()
				} else {
					e.Reached()
				}
				if k%50 == i {
					s.Update(balance.LeastRequests, []string{"a", "b", "c", fmt.Sprint(i)})
				}
				e.Done()
			}
		})
	}
	wg.Wait()
	for _, a := range []string{"a", "b", "c"} {
		if n := find(s, a).Underway(); n != 0 {
			t.Errorf("%s: %d under way", a, n)
		}
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	for _, mode := range []balance.Mode{balance.LeastRequests, balance.RoundRobin} {
		s := set(mode, "a", "b", "c")
		if n := testing.AllocsPerRun(1000, func() { s.Pick().Done() }); n > 0 {
			t.Errorf("%s: %v allocations", mode, n)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, mode := range []balance.Mode{balance.LeastRequests, balance.RoundRobin} {
		b.Run(string(mode), func(b *testing.B) {
			s := set(mode, "a", "b", "c", "d", "e")
			b.ReportAllocs()
			for b.Loop() {
				s.Pick().Done()
			}
		})
	}
}
