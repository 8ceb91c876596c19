package workload_test

import (
	"testing"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/workload"
)

// One user does not take the room of the others, and all of them not more than
// there are descriptors for.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	c := workload.NewConns(400)
	enter := func(uid int) (n int) {
		for c.Enter(call.Process{PID: 1000*uid + n/20 + 1, UID: uid}) {
			n++
		}
		return n
	}
	for uid, want := range []int{100, 100, 100, 100, 0} {
		if n := enter(uid + 1); n != want {
			t.Errorf("user %d has %d connections, want %d", uid+1, n, want)
		}
	}
	c.Leave(call.Process{PID: 1001, UID: 1})
	if !c.Enter(call.Process{PID: 9001, UID: 9}) || c.Enter(call.Process{PID: 9001, UID: 9}) {
		t.Error("a connection that ended makes room for one")
	}
	one := workload.NewConns(1 << 20)
	n := 0
	for one.Enter(call.Process{PID: 1, UID: 1}) {
		n++
	}
	if n != 32 {
		t.Errorf("a process has %d connections", n)
	}
}
