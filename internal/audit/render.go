package audit

import (
	wire "encoding/binary"
	"strconv"
	"time"
	"unsafe"
)

// Render appends the canonical encoding of a packed event to dst. It allocates
// nothing where dst is large enough and nothing has to be cut. The result is at most
// MaxEvent longer than dst.
//
// Its errors are ErrPacked, and ErrTooLong for what Pack did not write. dst is then
// returned as it was.
func Render(dst, packed []byte) ([]byte, error) {
	if len(packed) == 0 || packed[0] != packVersion {
		return dst, ErrPacked
	}
	fits := []bounds{wide, narrow}
	if packed[len(packed)-1] == byte(padNarrow) {
		if _, at, state := parts(packed); state == partWiped && packed[at] == byte(padNarrow) {
			fits = fits[1:]
		}
	}
	for _, b := range fits {
		buf, ok := b.render(append(append(dst, `{"schema":`...), '0'+Schema), packed[1:])
		if !ok {
			return dst, ErrPacked
		}
		if len(buf)-len(dst) <= MaxEvent {
			return buf, nil
		}
	}
	return dst, ErrTooLong
}

// render reads the fields of in, and says whether they were whole.
func (b *bounds) render(buf, in []byte) (_ []byte, ok bool) {
	object, comma := field(0), 0 // the one that we are in, and how much of the next key is left out
	person, private := 0, 0      // where the commitment goes, and what it is of
	for len(in) > 0 {
		at := field(in[0])
		if int(at) >= len(fields) {
			return buf, false
		}
		f := &fields[at]
		in = in[1:]
		switch {
		case f.form == asBegin && object == 0:
			buf = append(buf, f.key...)
			object, comma, private = at, 1, len(buf)-1
			continue
		case f.form == asEnd && object != 0:
			buf = append(buf, '}')
			if object == fieldPrivate {
				if person == 0 {
					return buf, false
				}
				c := commit(buf[private:])
				binary.Encode(buf[person:], c[:])
			}
			object, comma = 0, 0
			continue
		case f.form == asPad && object == 0:
			continue
		}
		buf = append(buf, f.key[min(comma, len(f.key)):]...)
		comma = 0
		if at == partyPerson {
			person = len(buf) + 1
		}
		if buf, in, ok = b.value(buf, in, f.form); !ok || at == partyPerson && len(buf) != person+binary.EncodedLen(len(Commitment{}))+1 {
			return buf, false
		}
	}
	return append(buf, '}'), object == 0
}

// value renders what in begins with, and returns the rest of it.
func (b *bounds) value(buf, in []byte, f form) (_, rest []byte, ok bool) {
	switch f {
	case asText, asLong, asBare, asBytes:
		n, size := wire.Uvarint(in)
		if size <= 0 || n > uint64(len(in)-size) {
			return buf, nil, false
		}
		in = in[size:]
		if f == asBytes {
			buf = append(binary.AppendEncode(append(buf, '"'), in[:n]), '"')
		} else {
			// The string is gone before in can change.
			buf = b.text(buf, unsafe.String(unsafe.SliceData(in), int(n)), f)
		}
		return buf, in[n:], true
	case asNumber:
		n, size := wire.Varint(in)
		if size <= 0 {
			return buf, nil, false
		}
		return strconv.AppendInt(buf, n, 10), in[size:], true
	case asNatural:
		n, size := wire.Uvarint(in)
		if size <= 0 {
			return buf, nil, false
		}
		return strconv.AppendUint(buf, n, 10), in[size:], true
	case asTrue:
		return append(buf, "true"...), in, true
	case asTime:
		return renderTime(buf, in)
	}
	return buf, nil, false
}

// text appends s as JSON.
func (b *bounds) text(buf []byte, s string, f form) []byte {
	limit := b.other
	switch f {
	case asLong:
		limit = b.long
	case asBare:
		limit = len(s)
	}
	if len(s) <= limit && plain(s) {
		buf = append(buf, '"')
		buf = append(buf, s...)
		return append(buf, '"')
	}
	return appendString(buf, cut(s, limit))
}

// renderTime is RFC 3339 with nanoseconds, as time.Time.MarshalJSON has it.
func renderTime(buf, in []byte) (_, rest []byte, ok bool) {
	s, size := wire.Varint(in)
	if size <= 0 || s < firstSecond || s > lastSecond {
		return buf, nil, false
	}
	in = in[size:]
	n, size := wire.Uvarint(in)
	if size <= 0 || n >= uint64(time.Second) {
		return buf, nil, false
	}
	buf = append(buf, '"')
	buf = time.Unix(s, int64(n)).UTC().AppendFormat(buf, time.RFC3339Nano)
	return append(buf, '"'), in[size:], true
}
