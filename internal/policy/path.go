package policy

import (
	"errors"
	"fmt"
	"strings"
)

// ErrPattern is what every error of ValidPattern wraps.
var ErrPattern = errors.New("not a path pattern")

// maxPattern bounds a pattern, in bytes: no canonical path is longer than a
// request line may be.
const maxPattern = 4096

// MatchPath says whether the canonical path is one of those that pattern stands
// for. Both are compared byte by byte; nothing is decoded or cleaned, and no
// pattern is a regular expression. A * stands for exactly one segment that is not
// empty, a last ** for any number of segments, none included. A path that does
// not start with a slash ("", the asterisk form of OPTIONS) is matched by
// nothing, and a * that ValidPattern refuses matches nothing either.
func MatchPath(pattern, path string) bool {
	if pattern == "" || pattern[0] != '/' || path == "" {
		return false
	}
	i, j := 0, 0
	for i < len(pattern) {
		switch {
		case pattern[i] == '*':
			start := j
			for j < len(path) && path[j] != '/' {
				j++
			}
			switch {
			case pattern[i-1] != '/':
				return false
			case strings.HasPrefix(pattern[i:], "**"):
				return i+2 == len(pattern)
			case j == start:
				return false
			}
			i++
		case j == len(path):
			return pattern[i:] == "/**"
		case pattern[i] != path[j]:
			return false
		default:
			i, j = i+1, j+1
		}
	}
	return j == len(path)
}

// stem is the longest literal text that every path begins with which one of
// patterns matches, empty where there are no patterns.
func stem(patterns []string) string {
	var common string
	for i, p := range patterns {
		s, _, _ := strings.Cut(strings.TrimSuffix(p, "/**"), "*")
		if i == 0 {
			common = s
		}
		for !strings.HasPrefix(s, common) {
			common = common[:len(common)-1]
		}
	}
	return common
}

// ValidPattern says what is wrong with pattern, if anything. Refused is, beside
// what is malformed, what no canonical path can hold and therefore nobody can
// have meant: queries, dot segments, empty segments but the last, and percent
// encodings that are not in the normal form of RFC 3986 section 6.2.2.
func ValidPattern(pattern string) error {
	switch {
	case len(pattern) > maxPattern:
		return fmt.Errorf("%w: longer than %d bytes", ErrPattern, maxPattern)
	case !strings.HasPrefix(pattern, "/"):
		return fmt.Errorf("%q: %w: it starts with a slash", pattern, ErrPattern)
	}
	for rest := pattern; rest != ""; {
		s := rest[1:]
		if i := strings.IndexByte(s, '/'); i >= 0 {
			s = s[:i]
		}
		rest = rest[1+len(s):]
		if err := validSegment(s, rest == ""); err != nil {
			return fmt.Errorf("%q: %w: %w", pattern, ErrPattern, err)
		}
	}
	return nil
}

func validSegment(s string, last bool) error {
	switch {
	case s == "*", last && (s == "" || s == "**"):
		return nil
	case s == "**":
		return errors.New("** is the last segment or none")
	case s == "":
		return errors.New("a segment is empty")
	case s == ".", s == "..":
		return errors.New("a canonical path has no . or .. segment")
	case strings.Contains(s, "*"):
		return errors.New("a * stands for a whole segment (write %2A for the character)")
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c <= ' ' || c >= 0x7f:
			return errors.New("characters beyond visible ASCII are percent-encoded")
		case c == '?' || c == '#':
			return errors.New("a pattern is over the path alone, without query and fragment")
		case c == '\\':
			return errors.New("a canonical path has no backslash")
		case c == '%' && !normalEscape(s[i:]):
			return errors.New("percent encodings are two upper-case hexadecimal digits and never stand for a letter, digit, hyphen, dot, underscore or tilde")
		}
	}
	return nil
}

// normalEscape says whether s starts with a percent encoding in normal form.
func normalEscape(s string) bool {
	if len(s) < 3 {
		return false
	}
	hi, lo := strings.IndexByte(upperHex, s[1]), strings.IndexByte(upperHex, s[2])
	return hi >= 0 && lo >= 0 && !unreserved(byte(hi<<4|lo))
}

const upperHex = "0123456789ABCDEF"

// unreserved is RFC 3986 section 2.3.
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}
