package attest

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A pidfd names one process for good; a number may be given to another.
type pidfd struct {
	file *os.File
	once sync.Once
	done chan struct{}
}

// newPidfd owns fd from here on.
func newPidfd(fd int) (*pidfd, error) {
	// Without O_NONBLOCK the runtime would not poll the descriptor.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &pidfd{file: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}, nil
}

// gone starts the one goroutine that waits for the end; close stops it.
func (p *pidfd) gone() <-chan struct{} {
	p.once.Do(func() {
		raw, err := p.file.SyscallConn()
		if err != nil { // closed
			return
		}
		go func() {
			if raw.Read(func(fd uintptr) bool { return !alive(int(fd)) }) == nil {
				close(p.done)
			}
		}()
	})
	return p.done
}

// alive says whether the process still runs.
func (p *pidfd) alive() bool {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return false
	}
	var yes bool
	return raw.Control(func(fd uintptr) { yes = alive(int(fd)) }) == nil && yes
}

func (p *pidfd) close() { _ = p.file.Close() }

// alive asks without waiting; a pidfd is readable once its process has ended
// (pidfd_open(2)).
func alive(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 0
		}
	}
}

func openPidfd(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		err = errGone
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", pid, err)
	}
	return fd, nil
}

// checkPidfd requires that fd's process is called pid in the /proc that we read;
// it is not where /proc belongs to another process namespace.
func checkPidfd(fd, pid int) error {
	b, err := readFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return err
	}
	text, ok := field(b, "Pid:")
	n, isNumber := number(text)
	switch {
	case ok && text == "-1":
		return errGone
	case !ok || !isNumber || n != pid:
		return errors.New("/proc shows another process namespace")
	}
	return nil
}
