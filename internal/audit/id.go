package audit

import (
	"crypto/rand"
	"time"
)

// NewID is a fresh ULID for something that happened at t: 48 bits of Unix
// milliseconds and 80 random bits, 26 characters of Crockford's base 32, so that
// ids sort by time. Times outside the years 1970 to 10889 are taken modulo 2^48.
// It is safe for concurrent use; ids of one millisecond have no order.
func NewID(t time.Time) string {
	const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var raw [16]byte
	ms := uint64(t.UnixMilli())
	for i := range 6 {
		raw[i] = byte(ms >> (40 - 8*i))
	}
	rand.Read(raw[6:]) // never returns an error (crypto/rand)
	hi, lo := be64(raw[:8]), be64(raw[8:])
	var id [26]byte
	for i := len(id) - 1; i >= 0; i-- {
		id[i] = alphabet[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(id[:])
}

func be64(b []byte) (v uint64) {
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}
