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
