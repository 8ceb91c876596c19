package agent

import (
	"os"
	"runtime"
	"syscall"
	"testing"
	"unsafe"
)

// Root becomes nobody for as long as it tries; one that may not, as in a container
// without CAP_SETUID, does not say that it has.
func TestAsStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it needs root")
	}
	fsuid := func() uintptr {
		id, _, _ := syscall.RawSyscall(syscall.SYS_SETFSUID, ^uintptr(0), 0, 0)
		return id
	}
	try := func(capSetuid bool) (became bool, during, after uintptr) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the thread ends with what it lost
			if !capSetuid && !dropSetuid() {
				t.Error("CAP_SETUID cannot be dropped")
				return
			}
			became = asStranger(func() { during = fsuid() })
			after = fsuid()
		}()
		<-done
		return became, during, after
	}
	if became, during, after := try(true); !became || during != nobody || after != 0 {
		t.Errorf("root: %v, as %d, and %d afterwards", became, during, after)
	}
	if became, during, after := try(false); became || during != 0 || after != 0 {
		t.Errorf("without CAP_SETUID: %v, as %d, and %d afterwards", became, during, after)
	}
}

// dropSetuid takes CAP_SETUID from this thread (capget(2)).
func dropSetuid() bool {
	const version3, capSetuid = 0x20080522, 1 << 7
	head := struct {
		version uint32
		pid     int32
	}{version: version3}
	var sets [2]struct{ effective, permitted, inheritable uint32 }
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&sets)), 0); errno != 0 {
		return false
	}
	sets[0].effective &^= capSetuid
	_, _, errno := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&sets)), 0)
	return errno == 0
}
