package web

import (
	"errors"
	"net"
	"syscall"
)

// hungUp says that an application has closed c, which is without a request: what
// is written to it now nobody reads. net/http notices too, but on a goroutine of
// its own, and a request may be faster. It says no of what is not an
// application's.
func hungUp(c net.Conn) bool {
	app, ok := c.(*patient)
	if !ok {
		return false
	}
	raw, ok := app.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := raw.SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	// Control and not Read: net/http waits in a Read for as long as c is idle.
	_ = rc.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		gone = !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR)
	})
	return gone
}
