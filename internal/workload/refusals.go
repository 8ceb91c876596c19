package workload

import (
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/call"
)

const (
	refusalPeriod = 10 * time.Second
	maxRefused    = 1024 // programs that are told apart
)

// refusals bounds how often a refused program is recorded: one that connects
// again and again could fill the log, which keeps everybody else's events too.
// The zero value is ready.
type refusals struct {
	mu    sync.Mutex // guards known
	known map[refused]refusal
}

// refused is a program of a user, and why it got nothing.
type refused struct {
	uid         int
	exe, reason string
}

type refusal struct {
	recorded time.Time
	more     int // since recorded
}

// count says whether a refusal is to be recorded now, and how many of the same
// kind were not since the last that was. A clock that was set back records early.
func (c *refusals) count(p call.Process, reason string, now time.Time) (more int, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := refused{p.UID, p.Exe, reason}
	if _, seen := c.known[key]; !seen {
		key = c.room(key, now)
	}
	last, seen := c.known[key]
	if since := now.Sub(last.recorded); seen && since >= 0 && since < refusalPeriod {
		last.more++
		c.known[key] = last
		return 0, false
	}
	c.known[key] = refusal{recorded: now}
	return last.more, true
}

// room is key where there is room for it. Where a user has more programs than
// are told apart, those that come late count as one.
func (c *refusals) room(key refused, now time.Time) refused {
	if c.known == nil {
		c.known = map[refused]refusal{}
	}
	if len(c.known) < maxRefused {
		return key
	}
	for k, r := range c.known {
		if r.more == 0 && now.Sub(r.recorded) >= refusalPeriod {
			delete(c.known, k)
		}
	}
	if len(c.known) < maxRefused {
		return key
	}
	key.exe = ""
	if len(c.known) >= 2*maxRefused { // as many users: begin again
		clear(c.known)
	}
	return key
}
