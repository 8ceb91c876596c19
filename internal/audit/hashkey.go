package audit

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"hash"
	"sync"
)

// A HashKey makes keyed hashes: of what must be found again by those who know it,
// and neither be read nor guessed by others. It is safe for concurrent use.
type HashKey struct{ macs sync.Pool }

// DeriveKey is a key of secret for one purpose, from which neither secret nor the
// key for another purpose follows.
func DeriveKey(secret []byte, purpose string) []byte {
	// The one error is a length that SHA-256 cannot make.
	key, _ := hkdf.Expand(sha256.New, secret, "parley audit "+purpose, sha256.Size)
	return key
}

// NewHashKey is the one of key, which has 32 bytes.
func NewHashKey(key []byte) *HashKey {
	key = bytes.Clone(key)
	k := &HashKey{}
	k.macs.New = func() any { return hmac.New(sha256.New, key) }
	return k
}

// Hash is the keyed hash of text.
func (k *HashKey) Hash(text string) (h KeyedHash) {
	mac := k.macs.Get().(hash.Hash)
	defer k.macs.Put(mac)
	var buf [512]byte
	var sum [sha256.Size]byte
	mac.Reset()
	mac.Write(append(buf[:0], text...))
	copy(h[:], mac.Sum(sum[:0]))
	return h
}

// A KeyedHash is an HMAC-SHA-256 cut to 128 bits. Its text names the key that it
// was made with: "k1:" and base64url without padding.
type KeyedHash [16]byte

// keyName is the name of the one key that there is.
const keyName = "k1:"

// String is the hash as text, "" of the zero one.
func (h KeyedHash) String() string {
	if h == (KeyedHash{}) {
		return ""
	}
	text, _ := h.MarshalText()
	return string(text)
}

// MarshalText implements encoding.TextMarshaler.
func (h KeyedHash) MarshalText() ([]byte, error) {
	return binary.AppendEncode([]byte(keyName), h[:]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *KeyedHash) UnmarshalText(text []byte) error {
	text, ok := bytes.CutPrefix(text, []byte(keyName))
	if !ok {
		return errKeyName
	}
	return decodeBinary(h[:], text)
}

var errKeyName = errors.New("not a hash of key " + keyName[:len(keyName)-1])
