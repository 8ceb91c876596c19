package audit

import (
	"strings"
	"unicode/utf8"
)

// mark ends a string that was cut.
const mark = "…"

// cut makes s valid UTF-8 of at most limit bytes, mark included. What is that
// already comes back as it is.
func cut(s string, limit int) string {
	if len(s) <= limit && utf8.ValidString(s) {
		return s
	}
	// Nothing behind limit+UTFMax can be kept; do not look at it.
	n, whole := limit+utf8.UTFMax, true
	if len(s) > n {
		s, whole = s[:n], false
	}
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if whole && len(s) <= limit {
		return s
	}
	n = min(limit-len(mark), len(s))
	for n < len(s) && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}

// plain says that s is printable ASCII without a quote or a backslash: valid
// UTF-8 and its own JSON encoding, as nearly every string of an event is. It
// looks at eight bytes at a time: a byte's high bit is set in x if it is not
// ASCII, in the differences if it is below a space, a quote or a backslash.
func plain(s string) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	for ; len(s) >= 8; s = s[8:] {
		x := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		if (x|(x-ones*' ')|((x^ones*'"')-ones)|((x^ones*'\\')-ones))&high != 0 {
			return false
		}
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// appendString appends s as a JSON string exactly as encoding/json does without
// HTML escaping: U+2028 and U+2029 are escaped, DEL is not. s is valid UTF-8.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c != 0xe2 {
			continue
		}
		if c == 0xe2 { // U+2028 and U+2029 are e2 80 a8 and e2 80 a9
			if s[i+1] == 0x80 && s[i+2]&^1 == 0xa8 {
				dst = append(dst, s[start:i]...)
				dst = append(dst, `\u202`...)
				dst = append(dst, hex[s[i+2]&15])
				start = i + 3
			}
			i += 2
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, `\b`...)
		case '\f':
			dst = append(dst, `\f`...)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
