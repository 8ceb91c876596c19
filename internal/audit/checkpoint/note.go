package checkpoint

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// A Note is a checkpoint whose signature was verified.
type Note struct {
	Checkpoint
	// Cosignatures are those of the witnesses that were known, all verified.
	Cosignatures []Cosignature
	note         note.Note
}

// A Cosignature says that a witness saw a checkpoint.
type Cosignature struct {
	Witness string
	Time    time.Time
}

// Open reads a signed checkpoint. The key of the log, which has the name that is
// the checkpoint's origin, must be among known and must have signed it; who else of
// known has signed it must have done so rightly, and signatures of others are left
// out of account. White space, leading zeros, extension lines and whatever else
// makes a second form of the same statement are ErrMalformed.
func Open(data []byte, known ...*Verifier) (*Note, error) {
	n, c, err := open(data, known)
	if err != nil {
		return nil, err
	}
	opened := &Note{Checkpoint: c, note: *n}
	signed, other := false, ""
	for _, sig := range n.Sigs {
		raw, err := decodeBase64(sig.Base64)
		if err != nil {
			return nil, fmt.Errorf("%w: the signature of %q is not in base64", ErrMalformed, sig.Name)
		}
		switch v := find(known, sig.Name, sig.Hash); {
		case v.Witness():
			at, _ := cosignedAt(raw[4:])
			opened.Cosignatures = append(opened.Cosignatures, Cosignature{Witness: v.name, Time: time.Unix(at, 0).UTC()})
		case v.name == c.Origin:
			signed = true
		default:
			other = v.name
		}
	}
	switch {
	case signed:
		return opened, nil
	case other != "":
		return nil, fmt.Errorf("%w: that of %s is by %s", ErrOrigin, c.Origin, other)
	}
	return nil, unsigned(c, n)
}

// Unverified reads a checkpoint without looking at its signatures: to learn which
// log's key to open it with.
func Unverified(data []byte) (Checkpoint, error) {
	_, c, err := open(data, nil)
	if errors.Is(err, ErrUnsigned) {
		err = nil
	}
	return c, err
}

// open parses, and verifies the signatures of known keys.
func open(data []byte, known []*Verifier) (*note.Note, Checkpoint, error) {
	if len(data) > MaxNote {
		return nil, Checkpoint{}, ErrTooLong
	}
	n, err := note.Open(data, verifiers(known))
	var none *note.UnverifiedNoteError
	var wrong *note.InvalidSignatureError
	switch {
	case errors.As(err, &wrong):
		return nil, Checkpoint{}, fmt.Errorf("%w: that of %s, key %08x", ErrSignature, wrong.Name, wrong.Hash)
	case errors.As(err, &none):
		n = none.Note
	case err != nil:
		return nil, Checkpoint{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	c, err := parseText(n.Text)
	if err == nil && none != nil {
		err = unsigned(c, n)
	}
	return n, c, err
}

func unsigned(c Checkpoint, n *note.Note) error {
	var by []string
	for _, sig := range n.UnverifiedSigs {
		by = append(by, fmt.Sprintf("%q, key %08x", sig.Name, sig.Hash))
	}
	return fmt.Errorf("%w: that of %s is signed by %s", ErrUnsigned, c.Origin, strings.Join(by, "; "))
}

// verifiers implements note.Verifiers.
type verifiers []*Verifier

// Verifier implements note.Verifiers.
func (vs verifiers) Verifier(name string, hash uint32) (note.Verifier, error) {
	if v := find(vs, name, hash); v != nil {
		return v, nil
	}
	return nil, &note.UnknownVerifierError{Name: name, KeyHash: hash}
}

func find(known []*Verifier, name string, hash uint32) *Verifier {
	for _, v := range known {
		if v.name == name && v.hash == hash {
			return v
		}
	}
	return nil
}
