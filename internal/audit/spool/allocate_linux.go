package spool

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate reserves size bytes of zeros on the disk, so that no later store into
// the mapping can meet a full disk: that would be a SIGBUS, not an error.
func allocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			return writeZeros(f, size)
		}
		return err
	}
}
