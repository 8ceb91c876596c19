package spool

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/sys/unix"
)

// lockDir takes the directory for this process; the kernel lets go of it when
// the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, unusable(err, dir)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.New(fault.LogBusy, "see who it is: fuser -v "+filepath.Join(dir, lockName)+"; stop it, or give this one a directory of its own", "another process writes the audit log in %s", dir)
		}
		return nil, fmt.Errorf("lock audit log %s: %w", dir, err)
	}
	return f, nil
}

// unlockDir lets go even where a program that is being started still holds a copy
// of the descriptor, between its fork and its exec.
func unlockDir(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

// syncDir makes names durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// bootID tells one start of the machine from another, so that a loss of power
// can be told from a killed process. It is zero where the system has none.
func bootID() (id [16]byte) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err == nil {
		copy(id[:], raw)
	}
	return id
}
