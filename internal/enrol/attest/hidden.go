package attest

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// ownTables are the threads of a process whose descriptors are not the process's
// (unshare(2) with CLONE_FILES, or a first thread that has ended): /proc/PID/fd
// shows only those of the first thread.
func ownTables(proc, pid int, buf []byte) (tids []int) {
	dir, err := unix.Openat(proc, fmt.Sprintf("%d/task", pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(dir)
	_ = entries(dir, buf, func(name []byte) bool {
		if tid, ok := decimal(name); ok && tid != pid && !sharesFiles(pid, tid) {
			tids = append(tids, tid)
		}
		return true
	})
	return tids
}

// sharesFiles is false where the kernel does not say: then both are looked at.
func sharesFiles(a, b int) bool {
	const kcmpFiles = 2 // KCMP_FILES of linux/kcmp.h
	differ, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpFiles, 0, 0, 0)
	return errno == 0 && differ == 0
}

// inFlight says whether descriptors wait in the queue of a Unix socket, where they
// are in nobody's table (unix(7), SCM_RIGHTS). The kernel shows their number since
// version 5.6, for a listener's connections that were not accepted yet too.
func inFlight(proc, task, fd int, buf []byte) bool {
	f, err := unix.Openat(proc, fmt.Sprintf("%d/fdinfo/%d", task, fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(f)
	n, err := unix.Read(f, buf)
	if err != nil {
		return false
	}
	count, ok := field(buf[:n], "scm_fds:")
	return ok && strings.Trim(count, "0") != ""
}
