// Package attest says which local process is at the other end of a connection,
// from what the kernel knows: who connected to a Unix socket, who holds the
// client's end of a TCP connection on this machine. It is the first stage of the
// way of an identity; what a process may be is the mesh file's to say, and
// [Workload.Match] only compares. It works on Linux.
//
// It refuses to believe what a process says about itself, to assume what it may
// not read, and to answer for a process that has ended. It does not refuse a
// program of the service's own user that plays tricks well enough: see
// docs/threat-model.md on exe and sha256.
package attest

import (
	"net"
	"os"
	"strings"
	"sync"

	"github.com/parleymesh/parley/internal/clock"
)

// Config is what an Attestor needs.
type Config struct {
	// Clock bounds how long a look for a connection's processes may take.
	Clock clock.Clock
}

// An Attestor attests processes of this machine. It is safe for concurrent use.
type Attestor struct {
	clk     clock.Clock
	digests digests
	scans   scanners
	// overflow is the uid that the kernel shows for users that this user
	// namespace does not map, or -1 where every user is mapped.
	overflow int
}

// New is an Attestor.
func New(c Config) *Attestor {
	a := &Attestor{clk: c.Clock, overflow: -1}
	a.scans.init(c.Clock)
	a.digests.init()
	if !allUsersMapped() {
		a.overflow = overflowUID()
	}
	return a
}

// A Workload is one process as it was when it was attested. Everything but
// SHA256 is fixed then. Close it when it is of no more use.
type Workload struct {
	// PID is 0 where only the owner of the connection could be found: TCP, the
	// process another user's, and this agent without CAP_SYS_PTRACE.
	PID int
	// UID and GID are the effective ones, -1 where they could not be read.
	UID, GID int
	// Groups are the supplementary groups. They satisfy no selector.
	Groups []int
	// User and Group are the names of UID and GID in /etc/passwd and
	// /etc/group, empty where they have none.
	User, Group string
	// Exe is the absolute path of the executable. It is set only where that
	// path is the running file in this agent's own view of the file system.
	Exe string
	// SHA256 is the executable's digest in lower-case hexadecimal. It is
	// computed when a selector first asks for it and empty before.
	SHA256 string
	// Unit is the systemd system unit ("orders.service"), empty for none.
	Unit string
	// Unreadable says why a selector (user, group, systemd, exe, sha256) could
	// not be read, by its name.
	Unreadable map[string]string

	mu    sync.Mutex // guards SHA256 and Unreadable once the Workload is made
	a     *Attestor
	fd    *pidfd
	image image         // what Exe was when it was attested
	conn  *net.UnixConn // by which it was attested; nil for TCP
}

// Gone is closed when the process has ended. It never is for a Workload without
// a PID, nor once the Workload is closed.
func (w *Workload) Gone() <-chan struct{} {
	if w.fd == nil {
		return nil
	}
	return w.fd.gone()
}

// Close releases the process.
func (w *Workload) Close() {
	if w.fd != nil {
		w.fd.close()
	}
}

func (w *Workload) blind(selector, why string) {
	if w.Unreadable == nil {
		w.Unreadable = map[string]string{}
	}
	w.Unreadable[selector] = why
}

// allUsersMapped says whether this process sees every user by their own number;
// in another user namespace strangers all look like one.
func allUsersMapped() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

func overflowUID() int {
	b, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if n, ok := number(strings.TrimSpace(string(b))); err == nil && ok {
		return n
	}
	return 65534
}
