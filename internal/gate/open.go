package gate

import (
	"sync"

	"github.com/parleymesh/parley/internal/identity"
)

// shards is how many locks openCalls spreads over: one a digit of an id's end.
const shards = 32

// openCalls are the checks that no event was recorded for yet, by decision id:
// what makes one event of each, however often and from wherever Done is called.
type openCalls struct {
	shards [shards]struct {
		sync.Mutex
		calls map[string]identity.Caller // guarded by Mutex
	}
}

// add keeps id with what the event should name beside the request.
func (o *openCalls) add(id string, named identity.Caller) {
	s := &o.shards[id[len(id)-1]%shards]
	s.Lock()
	defer s.Unlock()
	if s.calls == nil {
		s.calls = map[string]identity.Caller{}
	}
	s.calls[id] = named
}

// take removes id and says whether it was there.
func (o *openCalls) take(id string) (named identity.Caller, ok bool) {
	if id == "" {
		return identity.Caller{}, false
	}
	s := &o.shards[id[len(id)-1]%shards]
	s.Lock()
	defer s.Unlock()
	named, ok = s.calls[id]
	delete(s.calls, id)
	return named, ok
}

func (o *openCalls) len() (n int) {
	for i := range o.shards {
		s := &o.shards[i]
		s.Lock()
		n += len(s.calls)
		s.Unlock()
	}
	return n
}
