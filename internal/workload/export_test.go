package workload

import (
	"time"

	"github.com/parleymesh/parley/internal/call"
)

// Refusals are the server's own.
type Refusals struct{ refusals }

// Count is count.
func (r *Refusals) Count(p call.Process, reason string, now time.Time) (more int, due bool) {
	return r.count(p, reason, now)
}

// Len is how many programs are remembered.
func (r *Refusals) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.known)
}

// Conns are the server's own.
type Conns struct{ *conns }

// NewConns has room for so many.
func NewConns(most int) Conns { return Conns{newConns(most)} }

// Enter is enter.
func (c Conns) Enter(p call.Process) bool { return c.enter(p) }

// Leave is leave.
func (c Conns) Leave(p call.Process) { c.leave(p) }
