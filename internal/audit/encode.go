package audit

import (
	"errors"
	"sync"
)

// Errors of Encode and Decode.
var (
	ErrSalt      = errors.New("what is said of a person has no salt")
	ErrTime      = errors.New("the year of a time is not between 0 and 9999")
	ErrTooLong   = errors.New("an event is at most 65535 bytes")
	ErrCanonical = errors.New("an event is not in its canonical encoding")
	ErrSchema    = errors.New("an event is of another schema")
)

// Bounds of strings in bytes. An event whose strings reach the first bounds, and
// whose escapes then exceed MaxEvent, is encoded by the second ones, with which
// none can.
var (
	wide   = bounds{long: 2048, other: 512}
	narrow = bounds{long: 512, other: 128}
)

// bounds cut strings: long holds for a call's host and path, other for the rest.
type bounds struct{ long, other int }

// Encode appends the canonical encoding of e to dst: the bytes that encoding/json
// makes of it without HTML escaping, once Schema is set, times are in UTC and
// strings are valid UTF-8 within their bounds (2048 bytes for a call's host and
// path, 512 for all others, a cut marked by a final "…"). It does not change e,
// uses no reflection and allocates nothing where dst is large enough and nothing
// has to be cut. The result is at most MaxEvent longer than dst.
//
// Where e.Private is there, the caller's Person is the commitment to it as it is
// encoded, whatever e.Caller.Person says.
//
// The errors are ErrTime and ErrSalt, and dst is then returned as it was.
func Encode(dst []byte, e *Event) ([]byte, error) {
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	packed, err := Pack((*buf)[:0], e)
	if err != nil {
		return dst, err
	}
	*buf = packed
	return Render(dst, packed)
}

// scratch is room for packed events.
var scratch = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}
