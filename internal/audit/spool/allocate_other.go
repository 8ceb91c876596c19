//go:build !linux

package spool

import "os"

// allocate reserves size bytes of zeros on the disk, so that no later store into
// the mapping can meet a full disk.
func allocate(f *os.File, size int64) error { return writeZeros(f, size) }
