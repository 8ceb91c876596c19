package audit

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
)

// A Private is what an event says of a person: the one part of a body that its
// leaf hash does not cover, so that it can be erased while the log still
// verifies. The committed part has a salted commitment to it, Party.Person, which
// says nothing once the salt is gone.
type Private struct {
	// 128 random bits of this event alone, without which whoever guesses the subject
	// could tell from the commitment that the guess is right
	Salt    Salt   `json:"salt"`
	Subject string `json:"subject,omitempty"` // whom a verified token names, never one that only claims it
	Address string `json:"address,omitempty"` // where that person's client connected from, at the gateway
}

// Hold is p of that subject and address, with a fresh salt.
func (p *Private) Hold(subject, address string) {
	rand.Read(p.Salt[:]) // never returns an error (crypto/rand)
	p.Subject, p.Address = subject, address
}

// Subject is the person that the event is of, "" where it is of none or was erased.
func (e *Event) Subject() string {
	if e.Private == nil {
		return ""
	}
	return e.Private.Subject
}

// Erased says that the event is of a person, and that who it was is not there.
func (e *Event) Erased() bool {
	return e.Private == nil && e.Caller != nil && e.Caller.Person != Commitment{}
}

// A Salt is 128 random bits.
type Salt [16]byte

// MarshalText implements encoding.TextMarshaler: base64url without padding.
func (s Salt) MarshalText() ([]byte, error) { return binary.AppendEncode(nil, s[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Salt) UnmarshalText(text []byte) error { return decodeBinary(s[:], text) }

// A Commitment is the SHA-256 over a domain and the canonical encoding of a
// Private: the object as it stands in the body, braces included.
type Commitment [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler: base64url without padding.
func (c Commitment) MarshalText() ([]byte, error) { return binary.AppendEncode(nil, c[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Commitment) UnmarshalText(text []byte) error { return decodeBinary(c[:], text) }

// commitDomain keeps a commitment from being the hash of anything else.
const commitDomain = "parley audit private v1\x00"

// commit is the commitment to a private member's value.
func commit(private []byte) (c Commitment) {
	h := sha256.New()
	h.Write([]byte(commitDomain))
	h.Write(private)
	h.Sum(c[:0])
	return c
}

var binary = base64.RawURLEncoding.Strict()

var errBinary = errors.New("not base64url of the right length")

func decodeBinary(dst, text []byte) error {
	// The decoder skips line breaks, which have no place here.
	if len(text) != binary.EncodedLen(len(dst)) || bytes.ContainsAny(text, "\r\n") {
		return errBinary
	}
	if n, err := binary.Decode(dst, text); err != nil || n != len(dst) {
		return errBinary
	}
	return nil
}

// privateKey begins the private member, the last of a body. In canonical JSON
// these bytes are nowhere else: within a string the quotes would be escaped, and
// no other object has a member of that name.
var privateKey = []byte(`,"private":{`)

// committedEnd is how much of body comes before its private member, and whether
// it has one. Without one it is the whole body, but for what wipeCanonical left.
func committedEnd(body []byte) (end int, private bool) {
	if bytes.HasSuffix(body, []byte("}}")) {
		if i := bytes.Index(body, privateKey); i >= 0 {
			return i, true
		}
	}
	return len(bytes.TrimRight(body, " ")), false
}

// Committed is what the leaf hash of a body covers: the body without its private
// member. It is canonical, and Decode reads it. It is body itself where there is
// none, and a copy where there is.
func Committed(body []byte) []byte {
	end, private := committedEnd(body)
	if !private {
		return body[:end]
	}
	return append(body[:end:end], '}')
}

// wipeCanonical overwrites the private member of a body that has one, and begins at
// end, in place. What follows the committed bytes is spaces, so that a record whose
// length cannot change still has the leaf hash that it had: Committed, and LeafHash,
// leave out the spaces at a body's end.
func wipeCanonical(body []byte, end int) []byte {
	body[end] = '}'
	fill(body[end+1:], ' ')
	return body
}
