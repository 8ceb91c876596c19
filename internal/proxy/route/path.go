package route

import (
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/policy"
)

// maxTarget bounds a request target, in bytes (RFC 9110 section 4.1 asks for at
// least 8000).
const maxTarget = 16 << 10

// Target splits a request target in origin form (RFC 9112 section 3.2.1) into
// its canonical path and its query with the question mark, both as they will be
// forwarded.
//
// The absolute form is refused although a server should know it: net/http then
// hides the Host field, and nobody can see whether the two agree.
func Target(raw string) (path, query string, err error) {
	if len(raw) > maxTarget {
		return "", "", &Refusal{PathRefused, http.StatusBadRequest, "the request target is too long"}
	}
	path, query = raw, ""
	if i := strings.IndexByte(raw, '?'); i >= 0 {
		path, query = raw[:i], raw[i:]
	}
	for i := 0; i < len(query); i++ {
		// The query is nobody's to decide on, so it stays as it is, as long as it
		// cannot end the line or the target.
		if c := query[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return "", "", badPath("the query has a character that must be percent-encoded")
		}
	}
	path, err = CanonicalPath(path)
	return path, query, err
}

// CanonicalPath is the one form of a path that is decided on and forwarded: two
// paths that an application decodes to the same text have the same one. Each
// character has one spelling, plain where policy.Plain says so and otherwise
// percent-encoded in upper case. RFC 3986 section 2.2 would keep an encoded
// delimiter apart from a plain one; applications do not, so a rule for
// /keys:rotate would not hold for /keys%3Arotate.
//
// Whatever servers are known to read differently is refused: encoded slash,
// backslash, NUL, control, semicolon, percent, question mark or hash; dot
// segments, plain or encoded; empty segments; a plain backslash or semicolon; and
// what is not UTF-8 when decoded.
func CanonicalPath(raw string) (string, error) {
	if raw == "" || raw[0] != '/' {
		return "", badPath("the path does not start with a slash")
	}
	if isCanonical(raw) {
		return raw, nil
	}
	var canonical, decoded strings.Builder
	canonical.Grow(len(raw) + 16)
	decoded.Grow(len(raw))
	for i := 0; i < len(raw); i++ {
		c, encoded := raw[i], false
		if c == '%' {
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return "", badPath("a percent sign is not followed by two hexadecimal digits")
			}
			c, encoded = unhex(raw[i+1])<<4|unhex(raw[i+2]), true
			i += 2
		}
		if reason := badByte(c, encoded); reason != "" {
			return "", badPath(reason)
		}
		decoded.WriteByte(c)
		if plain(c) {
			canonical.WriteByte(c)
		} else {
			canonical.Write([]byte{'%', upperHex[c>>4], upperHex[c&15]})
		}
	}
	if !utf8.ValidString(decoded.String()) {
		return "", badPath("the path is not UTF-8")
	}
	path := canonical.String()
	return path, checkSegments(path)
}

// isCanonical recognises at a glance what nearly every request has: plain
// characters, and no segment that is empty or begins with a dot.
func isCanonical(path string) bool {
	last := byte(0)
	for i := 0; i < len(path); i++ {
		c := path[i]
		if !plain(c) || last == '/' && (c == '/' || c == '.') {
			return false
		}
		last = c
	}
	return true
}

func badByte(c byte, encoded bool) string {
	switch {
	case c < ' ' || c == 0x7f:
		return "the path has a control character"
	case c == '\\':
		return "the path has a backslash"
	case c == ';':
		return "the path has a semicolon, which some servers cut a segment at"
	case encoded && (c == '/' || c == '%' || c == '?' || c == '#'):
		return "the path has an encoded slash, percent, question mark or hash"
	case !encoded && (c == '#' || c == '?'):
		return "the path has a fragment or a query"
	case !encoded && (c == ' ' || c >= 0x80):
		return "the path has a character that must be percent-encoded"
	}
	return ""
}

func checkSegments(path string) error {
	for rest := path[1:]; ; {
		segment, more, found := strings.Cut(rest, "/")
		if segment == "." || segment == ".." {
			return badPath("the path has a dot segment")
		}
		if !found {
			return nil // an empty last segment is a trailing slash
		}
		if segment == "" {
			return badPath("the path has an empty segment")
		}
		rest = more
	}
}

func badPath(reason string) error {
	return &Refusal{Code: PathRefused, Status: http.StatusBadRequest, Reason: reason}
}

const upperHex = "0123456789ABCDEF"

// plain is what may stand in a canonical path as it is.
func plain(c byte) bool { return c == '/' || policy.Plain(c) }

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}
