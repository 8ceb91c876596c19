package policy

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// ErrPattern is what every error of ValidPattern wraps.
var ErrPattern = errors.New("not a path pattern")

// ErrPath is what every error of ValidPath wraps.
var ErrPath = errors.New("not a canonical path")

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

// Plain says whether c stands for itself in a canonical path and is never
// percent-encoded there: the characters of a segment (pchar of RFC 3986 section
// 3.3) without three. A semicolon is in no canonical path, encoded or not. A star
// is always encoded, because in a pattern it stands for more than itself; and so
// is a plus, because some applications read a plain one as a space.
func Plain(c byte) bool {
	return unreserved(c) || strings.IndexByte("!$&'(),=:@", c) >= 0
}

// ValidPath says what keeps path from being one that a decision is taken on, if
// anything: a canonical path is a pattern without a star.
func ValidPath(path string) error {
	if err := validForm(path); err != nil {
		return fmt.Errorf("%q: %w: %w", path, ErrPath, err)
	}
	if strings.Contains(path, "*") {
		return fmt.Errorf("%q: %w: a star is written %%2A", path, ErrPath)
	}
	return nil
}

// ValidPattern says what is wrong with pattern, if anything. Refused is, beside
// what is malformed, what no canonical path can hold and therefore nobody can
// have meant: queries, dot segments, empty segments but the last, and characters
// in another spelling than the canonical one; see Plain.
func ValidPattern(pattern string) error {
	if len(pattern) > maxPattern {
		return fmt.Errorf("%w: longer than %d bytes", ErrPattern, maxPattern)
	}
	if err := validForm(pattern); err != nil {
		return fmt.Errorf("%q: %w: %w", pattern, ErrPattern, err)
	}
	return nil
}

func validForm(pattern string) error {
	if !strings.HasPrefix(pattern, "/") {
		return errors.New("it starts with a slash")
	}
	for rest := pattern; rest != ""; {
		s := rest[1:]
		if i := strings.IndexByte(s, '/'); i >= 0 {
			s = s[:i]
		}
		rest = rest[1+len(s):]
		if err := validSegment(s, rest == ""); err != nil {
			return err
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
		if s[i] == '%' {
			if err := validEscape(s[i:]); err != nil {
				return err
			}
			i += 2
		} else if err := validByte(s[i]); err != nil {
			return err
		}
	}
	// Well formed by now.
	if decoded, err := url.PathUnescape(s); err != nil || !utf8.ValidString(decoded) {
		return errors.New("percent encodings are of UTF-8")
	}
	return nil
}

// validByte is for one that is not encoded.
func validByte(c byte) error {
	switch {
	case Plain(c):
		return nil
	case c == '?' || c == '#':
		return errors.New("a pattern is over the path alone, without query and fragment")
	case c == '\\' || c == ';' || c < ' ' || c == 0x7f:
		return errors.New("a canonical path has no backslash, semicolon or control character")
	case c == '+':
		return errors.New("a plus is written %2B, because some applications read a plain one as a space")
	case c >= 0x80:
		return errors.New("characters beyond ASCII are percent-encoded")
	}
	return fmt.Errorf("%q is written %%%X", c, c)
}

// validEscape is for a percent encoding at the start of s.
func validEscape(s string) error {
	if len(s) < 3 || strings.IndexByte(upperHex, s[1]) < 0 || strings.IndexByte(upperHex, s[2]) < 0 {
		return errors.New("a percent sign is followed by two upper-case hexadecimal digits")
	}
	switch c := byte(strings.IndexByte(upperHex, s[1])<<4 | strings.IndexByte(upperHex, s[2])); {
	case Plain(c):
		return fmt.Errorf("%s is written %q, without percent encoding", s[:3], c)
	case c < ' ' || c == 0x7f || strings.IndexByte("/\\;%?#", c) >= 0:
		return fmt.Errorf("a canonical path never holds %s", s[:3])
	}
	return nil
}

const upperHex = "0123456789ABCDEF"

// unreserved is RFC 3986 section 2.3.
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}
