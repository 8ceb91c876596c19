package agent

import (
	"os"
	"runtime"
	"syscall"
)

// nobody is the user that no service should run as, by the number that every Linux
// has for it (user_namespaces(7), overflowuid).
const nobody = 65534

// asStranger runs f, which opens one socket, as nobody where this process is root, and
// otherwise as it is: became says which. The kernel asks for the file system user of
// the thread that makes a socket (socket owner of nft, meta skuid).
func asStranger(f func()) (became bool) {
	if os.Geteuid() != 0 {
		f()
		return false
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, _, _ = syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0)
	defer syscall.RawSyscall(syscall.SYS_SETFSUID, 0, 0, 0)
	// It reports no error, as without CAP_SETUID: what it is can only be asked, by trying
	// to set what nobody has (setfsuid(2)).
	now, _, _ := syscall.RawSyscall(syscall.SYS_SETFSUID, ^uintptr(0), 0, 0)
	f()
	return now == nobody
}
