package spool

import (
	"errors"
	"runtime"
	"runtime/debug"
)

// errFault says that a page of a mapping is not there any more: its file was cut
// short, or the disk has no block for it.
var errFault = errors.New("the file was cut short, or the disk does not answer for a part of it")

// errChanged says that what stands in a mapping is not what was recorded.
var errChanged = errors.New("the file was changed by another program")

// guard runs f, and makes an error of a fault in a mapping, which would otherwise
// end the process.
func guard(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = faulted(p)
		}
	}()
	f()
	return nil
}

// faulted is the error of a fault; any other panic goes on.
func faulted(p any) error {
	if e, ok := p.(runtime.Error); ok {
		if _, ok := e.(interface{ Addr() uintptr }); ok {
			return errFault
		}
	}
	panic(p)
}
