package attest

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// errGone says that the process ended before it could be attested.
var errGone = errors.New("the process has ended")

// Unix attests the process that connected to a Unix socket. Who else holds the
// connection is looked at by each Match that goes by the program, as long as conn
// is open.
func (a *Attestor) Unix(conn *net.UnixConn) (*Workload, error) {
	began, err := uptime()
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	cred, fd, err := peer(conn)
	if err != nil {
		return nil, refused(err)
	}
	pid := int(cred.Pid)
	if fd >= 0 {
		err = checkPidfd(fd, pid)
	} else {
		fd, err = openOlder(pid, int(cred.Uid), began)
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, refused(err)
	}
	w, err := a.read(pid, int(cred.Uid), int(cred.Gid), fd)
	if err == nil {
		w.conn = conn
	}
	return w, err
}

// shared requires of every process of the user that holds the connection, w's own
// among them, that it is what is wanted: a program that connected, or that made the
// socket, may have become the service by exec(2) and left a copy with another.
func (w *Workload) shared(want snapshot.RunsAs) error {
	inode, err := farEnd(w.conn)
	if err != nil {
		return refused(err)
	}
	all, hidden, err := w.a.holdersOf(w.UID, inode, true)
	defer func() {
		for _, o := range all {
			o.Close()
		}
	}()
	switch {
	case err != nil:
		return refused(err)
	case hidden != "":
		return fault.New(fault.SelectorBlind, "", "%s: %s", w, hidden)
	case !slices.ContainsFunc(all, func(o *Workload) bool { return o.PID == w.PID }):
		return fault.New(fault.NotAttested, "", "%s does not hold the connection that it made any more", w)
	}
	for _, o := range all {
		if err := o.Match(want); err != nil {
			return fault.Wrap(err, codeOf(err), "", "process %d shares its connection", w.PID)
		}
	}
	return nil
}

func codeOf(err error) fault.Code {
	var f *fault.Fault
	if errors.As(err, &f) {
		return f.Code
	}
	return fault.NotAttested
}

// peer is what the kernel noted of the process that connected. The descriptor
// is -1 on kernels before 6.5, which have no SO_PEERPIDFD.
func peer(conn *net.UnixConn) (cred *unix.Ucred, fd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, -1, err
	}
	fd = -1
	var inner error
	err = raw.Control(func(s uintptr) {
		if cred, inner = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED); inner != nil {
			return
		}
		fd, inner = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		switch {
		case inner == nil:
		case errors.Is(inner, unix.ENOPROTOOPT):
			fd, inner = -1, nil
		default: // ESRCH, ENODATA, EINVAL, by the kernel's version
			fd, inner = -1, fmt.Errorf("%w: %w", errGone, inner)
		}
	})
	if err == nil {
		err = inner
	}
	if err == nil && cred.Pid <= 0 {
		err = errors.New("the process is in another process namespace")
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, -1, err
	}
	return cred, fd, nil
}

// openOlder is the way of old kernels: by number. The number may have been given
// to another process since the connection was made, so a process that began
// after this attestation, or that is another user's, is refused.
func openOlder(pid, uid int, began ticks) (fd int, err error) {
	if fd, err = openPidfd(pid); err != nil {
		return -1, err
	}
	born, err := startTime(pid)
	if err == nil && born > began {
		err = errGone
	}
	if err == nil {
		var s status
		if s, err = readStatus(pid); err == nil && s.uid != uid {
			err = errGone
		}
	}
	return fd, err
}

// Listener is the user whose process listens at the other end of a Unix socket
// that this process connected: its effective uid when it called listen(2).
func Listener(conn *net.UnixConn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(s uintptr) { cred, inner = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, inner); err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}

func refused(err error) error {
	return fault.Wrap(err, fault.NotAttested, "", "the connecting process cannot be attested")
}
