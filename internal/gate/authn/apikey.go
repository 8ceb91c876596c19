// Package authn is who asks, at an edge: it takes API keys and tokens out of a
// request's header and says whom they stand for, or what is wrong with them.
//
// It refuses to decide what a caller may do, to fetch anything by itself, to keep
// a credential, and to tell a client why its own was not good: the errors are for
// the record.
package authn

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"strings"
)

// The form of an API key: a prefix that people and scanners recognise, an id
// that names it, 256 random bits, and a checksum over everything before it, all
// digits in base 62. The checksum finds typing errors and lets a scanner tell a
// key from text without asking anybody; it is no secret.
//
//	parley_key_ 4fG7hJ9kLmN0 _ <43 digits> <6 digits>
const (
	keyPrefix      = "parley_key_"
	idDigits       = 12
	secretDigits   = 43 // 62^43 > 2^256
	checksumDigits = 6  // 62^6 > 2^32
	secretAt       = len(keyPrefix) + idDigits + 1
	checksumAt     = secretAt + secretDigits
	keyLength      = checksumAt + checksumDigits
)

// KeyPattern is a regular expression (RE2 and PCRE) for leak scanners. What it
// finds is a key if ParseKey accepts it.
const KeyPattern = `parley_key_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}`

const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// Errors of API keys. All of them are one and the same to a client.
var (
	ErrKeyMalformed = errors.New("not an API key")
	ErrKeyUnknown   = errors.New("no such API key")
	ErrKeyExpired   = errors.New("the API key has ended")
	ErrSeveral      = errors.New("more than one credential")
)

// KeyParts is what is kept of a new key: enough to recognise it, nothing to make
// it from.
type KeyParts struct {
	ID     string
	Digest [sha256.Size]byte // of the whole key
}

// NewKey makes an API key from random, which is crypto/rand.Reader but in tests.
// The key is to be shown once and kept nowhere.
func NewKey(random io.Reader) (key string, rec KeyParts, err error) {
	id, err := randomDigits(random, idDigits)
	if err != nil {
		return "", KeyParts{}, fmt.Errorf("make an API key: %w", err)
	}
	var secret [32]byte
	if _, err := io.ReadFull(random, secret[:]); err != nil {
		return "", KeyParts{}, fmt.Errorf("make an API key: %w", err)
	}
	b := make([]byte, 0, keyLength)
	b = append(append(append(b, keyPrefix...), id...), '_')
	b = appendBase62(b, secret[:], secretDigits)
	b = appendChecksum(b, string(b))
	return string(b), KeyParts{ID: string(id), Digest: sha256.Sum256(b)}, nil
}

// ParseKey says which key this claims to be. It checks length, prefix, digits
// and checksum, before anything is looked up; that it is genuine only Keys.Lookup
// says.
func ParseKey(key string) (id string, err error) {
	if len(key) != keyLength || !strings.HasPrefix(key, keyPrefix) || key[secretAt-1] != '_' {
		return "", ErrKeyMalformed
	}
	id = key[len(keyPrefix) : secretAt-1]
	if !allDigits(id) || !allDigits(key[secretAt:]) {
		return "", ErrKeyMalformed
	}
	var sum [checksumDigits]byte
	if string(appendChecksum(sum[:0], key[:checksumAt])) != key[checksumAt:] {
		return "", ErrKeyMalformed
	}
	return id, nil
}

// appendChecksum appends the checksum of text: its CRC-32 (IEEE).
func appendChecksum(dst []byte, text string) []byte {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], crc32.ChecksumIEEE([]byte(text)))
	return appendBase62(dst, b[:], checksumDigits)
}

// appendBase62 appends the big-endian number n in exactly width digits, at most
// 32 bytes of it.
func appendBase62(dst, n []byte, width int) []byte {
	var words [8]uint32
	for i, c := range n {
		at := len(n) - 1 - i // from the least significant byte
		words[at/4] |= uint32(c) << (at % 4 * 8)
	}
	start := len(dst)
	for range width {
		dst = append(dst, '0')
	}
	for at := len(dst) - 1; at >= start; at-- {
		var rem uint32
		for i := len(words) - 1; i >= 0; i-- {
			words[i], rem = bits.Div32(rem, words[i], uint32(len(digits)))
		}
		dst[at] = digits[rem]
	}
	return dst
}

// randomDigits reads n digits, each equally likely: bytes that would favour some
// are left out.
func randomDigits(random io.Reader, n int) ([]byte, error) {
	const fair = 256 - 256%len(digits)
	out := make([]byte, 0, n)
	for b := make([]byte, 1); len(out) < n; {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, err
		}
		if int(b[0]) < fair {
			out = append(out, digits[int(b[0])%len(digits)])
		}
	}
	return out, nil
}

func allDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
