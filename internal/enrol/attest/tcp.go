package attest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// TCP attests every process that holds the client's end of a TCP connection of
// this machine and network namespace, of those of the user who made it: client is
// the accepted connection's remote address, server its local one. A socket may be
// shared, by fork or by passing it on; all of the processes must be what the
// listener wants. A process of another user can have it only from one of these.
// How closely is looked depends on want, which the processes are matched with then.
//
// An agent without CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH does not see which
// process of another user holds a socket, only that it is that user's: the
// answer is then one Workload without a PID. A socket that nobody holds, or that
// nobody of the user who made it holds any more, is an error. Close what is
// returned.
//
// A look through /proc costs some 2 microseconds a process of the machine and one a
// descriptor of the user's; connections that come together share one.
func (a *Attestor) TCP(client, server netip.AddrPort, want snapshot.RunsAs) ([]*Workload, error) {
	s, err := lookup(client, server)
	switch {
	case err != nil:
	case s.src != plain(client) || s.dst != plain(server) || s.state == stateListen:
		err = errNoSocket
	case s.inode == 0:
		err = errors.New("the client has closed it")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.NotAttested, "", "the client's end of the connection from %s cannot be attested", client)
	}
	ws, hidden, err := a.holdersOf(s.uid, s.inode, byProgram(want))
	switch {
	case err != nil:
	case len(ws) == 0 && seesEverybody():
		err = fmt.Errorf("no process of user %d holds it, who made it", s.uid)
	case len(ws) == 0:
		return []*Workload{a.ownerOnly(s.uid)}, nil
	case !slices.ContainsFunc(ws, func(w *Workload) bool { return w.UID == s.uid }):
		// Whoever made it may have written into it before handing it on.
		err = fmt.Errorf("user %d made it, and no process of that user holds it", s.uid)
	}
	if err != nil {
		for _, w := range ws {
			w.Close()
		}
		return nil, fault.Wrap(err, fault.NotAttested, "", "the processes that hold the connection from %s cannot be attested", client)
	}
	for _, w := range ws {
		if hidden != "" {
			w.blind("exe", hidden)
			w.blind("sha256", hidden)
		}
	}
	return ws, nil
}

// byProgram says that processes of one user are told apart by what they run. Then
// it matters which of them have the connection, and it is looked for copies of the
// socket that are in no process's table.
func byProgram(want snapshot.RunsAs) bool { return want.Exe != "" || want.SHA256 != "" }

// holdersOf attests the processes of uid that hold inode; where err is not nil, the
// caller closes ws all the same. hidden says why there may be others that cannot be
// seen.
func (a *Attestor) holdersOf(uid int, inode uint32, deep bool) (ws []*Workload, hidden string, err error) {
	found, hidden, err := a.look(uid, inode, deep)
	if err != nil {
		return nil, "", err
	}
	seen := map[int]bool{}
	for _, h := range found {
		if seen[h.pid] {
			continue
		}
		w, err := a.readHolder(h, inode)
		if err != nil {
			return ws, "", err
		}
		if w != nil {
			seen[h.pid] = true
			ws = append(ws, w)
		}
	}
	return ws, hidden, nil
}

// look finds the holders. Descriptors are in flight for a moment only where an
// honest program passes them on, so a deep look is taken again before it says so.
func (a *Attestor) look(uid int, inode uint32, deep bool) (found []holder, hidden string, err error) {
	if !deep {
		found, _, err = a.scans.holders(uid, inode, false)
		return found, "it was not looked for descriptors in flight", err
	}
	const looks, pause = 8, 20 * time.Millisecond
	for n := 1; ; n++ {
		found, flight, err := a.scans.holders(uid, inode, true)
		if err != nil || flight == 0 {
			return found, "", err
		}
		if n == looks {
			return found, fmt.Sprintf("process %d of the same user has descriptors in flight, so that who holds the connection cannot be seen", flight), nil
		}
		if err := a.scans.clk.Sleep(context.Background(), pause); err != nil {
			return nil, "", err
		}
	}
}

// readHolder attests one process; it returns nil where the process has let go of
// the socket or ended since it was found.
func (a *Attestor) readHolder(h holder, inode uint32) (*Workload, error) {
	fd, err := openPidfd(h.pid)
	if errors.Is(err, errGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// The descriptor pins the process; only now is its number sure to be its own.
	s, err := readStatus(h.pid)
	if err != nil || !h.holds(inode) || !alive(fd) {
		_ = unix.Close(fd)
		return nil, nil //nolint:nilerr // it ended: nobody to attest
	}
	w, err := a.read(h.pid, s.uid, s.gid, fd)
	if err == nil && programOf(h.pid) != h.runs {
		// Between its being found and being read it may have handed the socket
		// to a process that was not there to be found.
		w.Close()
		err = errors.New("the process began another program while it was attested")
	}
	if err != nil && !h.holds(inode) {
		return nil, nil //nolint:nilerr // a child on its way to a program of its own, or at its end
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

// ownerOnly is what sock_diag alone says.
func (a *Attestor) ownerOnly(uid int) *Workload {
	w := &Workload{UID: uid, GID: -1, a: a}
	w.readNames()
	for _, selector := range []string{"group", "systemd", "exe", "sha256"} {
		w.blind(selector, needsBoth)
	}
	return w
}

const needsBoth = "it is another user's process and this agent has not both CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"

// seesEverybody says whether this process may list and follow every other's
// descriptors, by its effective capabilities.
func seesEverybody() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&h, &data[0]) != nil {
		return false
	}
	has := func(c uint) bool { return data[0].Effective&(1<<c) != 0 }
	return has(unix.CAP_SYS_PTRACE) && (has(unix.CAP_DAC_READ_SEARCH) || has(unix.CAP_DAC_OVERRIDE))
}

// PortOwner is the user whose socket would take a connection to addr, by the
// kernel's own choice among listeners on that address and on all addresses.
func PortOwner(addr netip.AddrPort) (uid int, found bool, err error) {
	none := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	if plain(addr).Addr().Is4() {
		none = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	s, err := lookup(addr, none)
	if errors.Is(err, errNoSocket) || err == nil && s.state != stateListen {
		return 0, false, nil
	}
	return s.uid, err == nil, err
}
