package audit

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

// MaxLogName is the longest name of a log, in bytes.
const MaxLogName = 128

// NewLogName mints the name of a log: prefix, commonly the host's name, with
// whatever is not of A-Z a-z 0-9 . _ - as a hyphen and cut where it is too long,
// and then eight random digits, so that no two directories share a log.
func NewLogName(prefix string) string {
	clean := strings.Map(func(r rune) rune {
		if nameByte(r) {
			return r
		}
		return '-'
	}, prefix)
	var tail [4]byte
	rand.Read(tail[:]) // never returns an error (crypto/rand)
	return clean[:min(len(clean), MaxLogName-9)] + "-" + hex.EncodeToString(tail[:])
}

// ValidLogName says whether name is 1 to MaxLogName characters of A-Z a-z 0-9 . _ -.
func ValidLogName(name string) bool {
	return name != "" && len(name) <= MaxLogName && !strings.ContainsFunc(name, func(r rune) bool { return !nameByte(r) })
}

func nameByte(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
}
