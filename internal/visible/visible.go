// Package visible makes text from outside harmless to look at: what a terminal, a
// pager or an editor would act on or hide becomes an escape that a person can read.
// Line ends, escape sequences of seven and of eight bits, marks that change the
// direction of text, spaces without width and bytes that are no UTF-8 are such.
//
// It refuses to cut and to drop: nothing of what was there is lost.
package visible

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const hex = "0123456789abcdef"

// Text is s as one line of printable characters, with escapes as Go has them: \n,
// \x1b, \u202e, and \xff for a byte that is no UTF-8.
func Text(s string) string {
	if harmless(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b.WriteString(`\x`)
			b.WriteByte(hex[s[i]>>4])
			b.WriteByte(hex[s[i]&15])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
		i += n
	}
	return b.String()
}

// Lines is Text for text of several lines: line feeds and tabs stay.
func Lines(s string) string {
	if harmless(s) {
		return s
	}
	var b strings.Builder
	start := 0
	for i := range len(s) {
		if s[i] == '\n' || s[i] == '\t' {
			b.WriteString(Text(s[start:i]))
			b.WriteByte(s[i])
			start = i + 1
		}
	}
	b.WriteString(Text(s[start:]))
	return b.String()
}

// JSON is a JSON document with the same meaning, in which no string holds anything
// but printable characters as they are: the others become \uXXXX, which is where
// encoding/json leaves C1 controls and marks of direction alone. Line feeds and tabs
// between values stay. A byte that is no UTF-8, which no JSON has, becomes \ufffd.
func JSON(doc []byte) []byte {
	i := 0
	for i < len(doc) && (doc[i] >= ' ' && doc[i] < 0x7f || doc[i] == '\n' || doc[i] == '\t') {
		i++
	}
	if i == len(doc) {
		return doc
	}
	out := append(make([]byte, 0, len(doc)+64), doc[:i]...)
	for i < len(doc) {
		r, n := utf8.DecodeRune(doc[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			out = append(out, `\ufffd`...)
		case r == '\n' || r == '\t' || unicode.IsPrint(r):
			out = append(out, doc[i:i+n]...)
		case r > 0xffff:
			r -= 0x10000
			out = unit(unit(out, 0xd800+r>>10), 0xdc00+r&0x3ff)
		default:
			out = unit(out, r)
		}
		i += n
	}
	return out
}

// unit appends a unit of UTF-16 as an escape of JSON.
func unit(out []byte, u rune) []byte {
	return append(out, '\\', 'u', hex[u>>12&15], hex[u>>8&15], hex[u>>4&15], hex[u&15])
}

// harmless says that s is printable ASCII.
func harmless(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
