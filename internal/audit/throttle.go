package audit

import (
	"sync"
	"time"
)

// The bounds of a Throttle: how often one kind is recorded, and how many kinds are
// told apart.
const (
	throttlePeriod = 10 * time.Second
	maxThrottled   = 1024
)

// A Throttle bounds how often something that a stranger can repeat at will is
// recorded: the first of a kind at once, and then one in ten seconds, with how many
// were left out. Where there are more kinds than it tells apart, those that come
// late begin anew. The zero value is ready; it is safe for concurrent use.
type Throttle[K comparable] struct {
	mu    sync.Mutex // guards known
	known map[K]throttled
}

type throttled struct {
	recorded time.Time
	more     int // since recorded
}

// Count says whether one of kind is to be recorded at now, and how many of the same
// kind were not since the last that was. A clock that was set back records early.
func (t *Throttle[K]) Count(kind K, now time.Time) (more int, due bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	last, seen := t.known[kind]
	if since := now.Sub(last.recorded); seen && since >= 0 && since < throttlePeriod {
		last.more++
		t.known[kind] = last
		return 0, false
	}
	if !seen && len(t.known) >= maxThrottled {
		t.forget(now)
	}
	if t.known == nil {
		t.known = map[K]throttled{}
	}
	t.known[kind] = throttled{recorded: now}
	return last.more, true
}

// forget makes room: of what has nothing left to tell, or else of everything.
func (t *Throttle[K]) forget(now time.Time) {
	for k, v := range t.known {
		if v.more == 0 && now.Sub(v.recorded) >= throttlePeriod {
			delete(t.known, k)
		}
	}
	if len(t.known) >= maxThrottled {
		clear(t.known)
	}
}
