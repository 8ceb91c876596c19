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
		calls map[string]aside // guarded by Mutex
	}
}

// An aside is what the event of a call says beside the request and its verdict.
type aside struct {
	// keyID, keyName and token are of a credential that was genuine and did not
	// count.
	keyID, keyName string
	token          *identity.Token
	// message is a sentence, with outside bytes quoted in it only.
	message string
}

// add keeps id with what the event should say beside the request.
func (o *openCalls) add(id string, said aside) {
	s := &o.shards[id[len(id)-1]%shards]
	s.Lock()
	defer s.Unlock()
	if s.calls == nil {
		s.calls = map[string]aside{}
	}
	s.calls[id] = said
}

// take removes id and says whether it was there.
func (o *openCalls) take(id string) (said aside, ok bool) {
	if id == "" {
		return aside{}, false
	}
	s := &o.shards[id[len(id)-1]%shards]
	s.Lock()
	defer s.Unlock()
	said, ok = s.calls[id]
	delete(s.calls, id)
	return said, ok
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
