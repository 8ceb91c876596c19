package agent

import (
	"math"
	"syscall"
)

// few is the smallest limit that is shared out; below it something will fail.
const few = 512

// workloadShare is how many connections the Workload API may have of the descriptors
// that the process may open: each needs one more, which pins its process, so that is
// an eighth of them. Half are for the listeners and what is behind them (package
// proxy), and the rest is for the log, the database and the other doors.
func workloadShare(limit uint64) int { return int(max(few, min(limit, math.MaxInt32))) / 16 }

// limitOfDescriptors is what this process may open; the Go runtime has raised it as
// far as it may.
func limitOfDescriptors() uint64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return few
	}
	return limit.Cur
}
