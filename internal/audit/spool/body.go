package spool

import (
	"bytes"

	"github.com/parleymesh/parley/internal/audit"
)

// A body is an event as audit.Pack has it, or where that would have the first byte of
// a mark in it, in its canonical encoding, which never has: whoever searches for a
// record behind a damaged place must not find one that a stranger wrote into a string.

// pack appends the body of e to dst.
func pack(dst []byte, e *audit.Event) ([]byte, error) {
	body, err := audit.Pack(dst, e)
	if err == nil && bytes.IndexByte(body[len(dst):], published>>8) >= 0 {
		return audit.Encode(dst, e)
	}
	return body, err
}

// canonical appends the canonical encoding of a body to dst.
func canonical(dst, body []byte) ([]byte, error) {
	if len(body) > 0 && body[0] == '{' {
		return append(dst, body...), nil
	}
	return audit.Render(dst, body)
}
