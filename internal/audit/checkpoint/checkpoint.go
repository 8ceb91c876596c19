// Package checkpoint is the signed statement of a log: so many entries, and this
// root. It is a C2SP tlog-checkpoint in a C2SP signed-note with an Ed25519
// signature of the log's own key, to which witnesses add cosignatures of
// C2SP tlog-cosignature (cosignature/v1). Data and pure functions.
//
// It refuses to say whether a tree is consistent with an older one; audit/tiles does.
package checkpoint

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/audit"
)

// Bounds of what is read.
const (
	// MaxNote is the longest note: room for 16 signatures, post-quantum ones too.
	MaxNote = 64 << 10
	// MaxSize is the largest tree: beyond it the arithmetic of trees overflows.
	MaxSize = 1 << 60

	maxName = 255 // of an origin or key, in bytes, as C2SP tlog-cosignature bounds it
)

// Errors of reading keys and notes.
var (
	ErrMalformed = errors.New("not a signed checkpoint")
	ErrTooLong   = fmt.Errorf("a signed checkpoint is at most %d bytes", MaxNote)
	ErrName      = errors.New("the name of a log or witness is 1 to 255 bytes without spaces, plus and control characters")
	ErrKey       = errors.New("not a key of checkpoints")
	// ErrUnsigned: no key that is known has signed it.
	ErrUnsigned = errors.New("the checkpoint has no signature of a known key of its log")
	// ErrSignature: a known key is said to have signed it, and has not.
	ErrSignature = errors.New("the signature of the checkpoint is wrong")
	// ErrOrigin: the key of another log has signed it.
	ErrOrigin = errors.New("the checkpoint is signed by the key of another log")
)

// A Checkpoint is a log at one moment.
type Checkpoint struct {
	// Origin names the log, and its key: see Origin.
	Origin string
	// Size is the number of entries.
	Size uint64
	// Root is the RFC 6962 hash of the tree of them.
	Root audit.Hash
}

// Origin is the name under which log signs in a trust domain.
func Origin(trustDomain, log string) string { return trustDomain + "/" + log }

// AppendText appends the text that is signed: origin, size and root, a line each.
func (c Checkpoint) AppendText(dst []byte) []byte {
	dst = append(dst, c.Origin...)
	dst = append(dst, '\n')
	dst = strconv.AppendUint(dst, c.Size, 10)
	dst = append(dst, '\n')
	dst = base64.StdEncoding.AppendEncode(dst, c.Root[:])
	return append(dst, '\n')
}

// parseText reads what AppendText wrote and nothing else. Extension lines, which
// the format allows and advises against, no log of Parley has.
func parseText(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, fmt.Errorf("%w: its text has %d lines, not 3", ErrMalformed, len(lines)-1)
	}
	c := Checkpoint{Origin: lines[0]}
	if !validName(c.Origin) {
		return Checkpoint{}, fmt.Errorf("%w: line 1: the origin: %w", ErrMalformed, ErrName)
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || size > MaxSize || strconv.FormatUint(size, 10) != lines[1] {
		return Checkpoint{}, fmt.Errorf("%w: line 2: %q is not a size", ErrMalformed, lines[1])
	}
	c.Size = size
	root, err := decodeBase64(lines[2])
	if err != nil || len(root) != sha256.Size {
		return Checkpoint{}, fmt.Errorf("%w: line 3: %q is not a root hash in base64", ErrMalformed, lines[2])
	}
	c.Root = audit.Hash(root)
	return c, nil
}

// decodeBase64 takes the one encoding of some bytes: the decoder of the standard
// library leaves out line breaks, and without Strict some bits at the end.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, base64.CorruptInputError(0)
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}

// validName holds for origins and for the names of keys.
func validName(name string) bool {
	return name != "" && len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool {
		return r == '+' || unicode.IsSpace(r) || unicode.IsControl(r)
	})
}
