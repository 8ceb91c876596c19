package audit

import (
	"bytes"
	wire "encoding/binary"
)

// What is recorded is wiped where it stands: the private part of a body makes room for
// padding of the same length, and the leaf hash stays. Nothing but a checksum tells
// which of the bytes of a body were written when a process was killed meanwhile, or
// the machine: see Untear.

// AppendWiped appends body, packed or canonical, without its private part, but as long
// as it was. at is where that part began, in body: what comes before it differs by
// the commitment alone. ok is false where body has none, and dst is returned as it was.
func AppendWiped(dst, body []byte) (wiped []byte, at int, ok bool) {
	if len(body) > 0 && body[0] == '{' {
		end, private := committedEnd(body)
		if !private {
			return dst, 0, false
		}
		return wipeCanonical(append(dst, body...), len(dst)+end), end, true
	}
	person, at, state := parts(body)
	if state != partWhole {
		return dst, 0, false
	}
	text, err := Render(nil, body)
	if err != nil {
		return dst, 0, false
	}
	end, private := committedEnd(text)
	if !private {
		return dst, 0, false
	}
	commitment := commit(text[end+len(privateKey)-1 : len(text)-1])
	for _, pad := range []field{padWide, padNarrow} {
		wiped = append(dst, body...)
		packed := wiped[len(dst):]
		copy(packed[person:], commitment[:])
		fill(packed[at:], byte(pad))
		// What was cut to make the event fit stays cut.
		if again, err := Render(nil, packed); err == nil && bytes.Equal(again, Committed(text)) {
			return wiped, at, true
		}
	}
	return dst, 0, false
}

// Untear is the body of which some bytes are as before AppendWiped and some as after it,
// whole again: as before if the commitment was being written, as after if the padding
// was. whole knows a whole one. It is a copy, or nil where neither is whole.
func Untear(body []byte, whole func([]byte) bool) []byte {
	if len(body) > 0 && body[0] == '{' {
		return untearCanonical(body, whole)
	}
	person, at, state := parts(body)
	if state == partNone || person == 0 {
		return nil
	}
	try := bytes.Clone(body)
	for _, pad := range []field{padWide, padNarrow} {
		fill(try[at:], byte(pad))
		if whole(try) {
			return try
		}
	}
	copy(try, body)
	fill(try[person:person+len(Commitment{})], 0)
	if whole(try) {
		return try
	}
	return nil
}

// maxPrivate is longer than any private member: two strings of 512 bytes, of which each
// may be escaped with six, the salt and the names.
const maxPrivate = 8 << 10

// untearCanonical tries every place where the private member can have begun.
func untearCanonical(body []byte, whole func([]byte) bool) []byte {
	try := bytes.Clone(body)
	for i := len(body) - 1; i > max(0, len(body)-maxPrivate); i-- {
		if c := body[i]; c == ',' || c == '}' {
			try[i] = '}'
			if whole(try) {
				return try
			}
		}
		try[i] = ' '
	}
	return nil
}

// The states of the private part of a packed event.
const (
	partNone  = iota
	partWhole // it begins as Pack has it
	partWiped // it begins as AppendWiped has it
)

// parts says where a packed event has the bytes of the commitment, 0 for nowhere, and
// where its private part begins, which is its last.
func parts(packed []byte) (person, at, state int) {
	if len(packed) == 0 || packed[0] != packVersion {
		return 0, 0, partNone
	}
	for in := packed[1:]; len(in) > 0; {
		f, here := field(in[0]), len(packed)-len(in)
		switch {
		case f == fieldPrivate:
			return person, here, partWhole
		case f == padWide || f == padNarrow:
			return person, here, partWiped
		case int(f) >= len(fields):
			return 0, 0, partNone
		}
		n, ok := valueSize(in[1:], fields[f].form)
		if !ok {
			return 0, 0, partNone
		}
		if f == partyPerson && n == 1+len(Commitment{}) {
			person = here + 2
		}
		in = in[1+n:]
	}
	return person, 0, partNone
}

// valueSize is how many bytes the value is that in begins with.
func valueSize(in []byte, f form) (int, bool) {
	switch f {
	case asBegin, asEnd, asTrue:
		return 0, true
	case asText, asLong, asBare, asBytes:
		n, size := wire.Uvarint(in)
		if size <= 0 || n > uint64(len(in)-size) {
			return 0, false
		}
		return size + int(n), true
	case asNumber, asNatural:
		_, size := wire.Uvarint(in)
		return size, size > 0
	case asTime:
		_, seconds := wire.Uvarint(in)
		if seconds <= 0 {
			return 0, false
		}
		_, rest := wire.Uvarint(in[seconds:])
		return seconds + rest, rest > 0
	}
	return 0, false
}

func fill(b []byte, with byte) {
	for i := range b {
		b[i] = with
	}
}
