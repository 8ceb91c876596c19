// Package offline verifies what a log hands out, far from it: exports and proof
// files, against the log's public key and against checkpoints that somebody kept.
// It needs neither database nor network, and trusts nothing that the machine wrote
// which wrote the log: what it says follows from the key and the bytes.
//
// It refuses to print and to read flags; cmd/parley-audit-verify does.
package offline

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
)

// Errors of what was asked: nothing is said about the log then.
var (
	ErrNoKey = errors.New("no public key of the log was given: without it anybody could have signed")
	// ErrPin says that a pin cannot be compared with what was given.
	ErrPin = errors.New("the pin is of no use here")
	// ErrKeys says that a text is not a list of public keys.
	ErrKeys = errors.New("not a list of public keys")
)

const maxKeys = 64 << 10 // bytes of a file of keys

// ParseKeys reads public keys, one a line; empty lines and those that begin with #
// are left out.
func ParseKeys(text []byte) ([]*checkpoint.Verifier, error) {
	if len(text) > maxKeys {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d", ErrKeys, len(text), maxKeys)
	}
	var keys []*checkpoint.Verifier
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		key, err := checkpoint.ParseVerifier(line)
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrKeys, number, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: there is none in it", ErrKeys)
	}
	return keys, nil
}

// Given is what a log is held against.
type Given struct {
	// Keys are the public keys of the log, of which one must have signed, and of
	// witnesses, of which all must have.
	Keys []*checkpoint.Verifier
	// Pins are checkpoints of the same log that somebody kept.
	Pins []Pin
}

// A Pin is a signed checkpoint as it was kept, with its name for the report.
type Pin struct {
	Name string
	Note []byte
}

func (g Given) check() error {
	if !slices.ContainsFunc(g.Keys, func(k *checkpoint.Verifier) bool { return !k.Witness() }) {
		return ErrNoKey
	}
	return nil
}

// checkpoint opens the signed checkpoint of what is verified. The report gets what
// is wrong with it; one that cannot even be read is an error.
func (g Given) checkpoint(signed []byte, file string, r *Report) (checkpoint.Checkpoint, error) {
	c, err := checkpoint.Unverified(signed)
	if err != nil {
		return c, err
	}
	r.Origin, r.Size, r.Root = c.Origin, c.Size, fmt.Sprintf("%x", c.Root)
	n, err := checkpoint.Open(signed, g.Keys...)
	if err != nil {
		r.find(Finding{Kind: "signature", File: file, What: err.Error()})
		return c, nil
	}
	r.Signed = true
	r.Cosignatures = cosignatures(n)
	logs := slices.DeleteFunc(slices.Clone(g.Keys), (*checkpoint.Verifier).Witness)
	for _, key := range g.Keys {
		if !key.Witness() {
			continue
		}
		// Each key by itself: several may have the same name.
		if n, err := checkpoint.Open(signed, append(logs[:len(logs):len(logs)], key)...); err != nil || len(n.Cosignatures) == 0 {
			r.find(Finding{Kind: "witness", File: file, What: fmt.Sprintf("the witness %s has not cosigned it with the key %s", key.Name(), key)})
		}
	}
	return c, nil
}

func cosignatures(n *checkpoint.Note) []Cosignature {
	var all []Cosignature
	for _, c := range n.Cosignatures {
		all = append(all, Cosignature{Witness: c.Witness, Time: c.Time})
	}
	return all
}

// pins opens the pins. One that is not of this log, or that no known key has
// signed, is no use for anything, and ErrPin; one whose signature is wrong is
// something to report.
func (g Given) pins(origin string, r *Report) ([]*pinned, error) {
	var all []*pinned
	for _, p := range g.Pins {
		n, err := checkpoint.Open(p.Note, g.Keys...)
		switch {
		case errors.Is(err, checkpoint.ErrSignature):
			r.find(Finding{Kind: "pin", File: p.Name, What: err.Error()})
			r.Pins = append(r.Pins, PinResult{Name: p.Name, State: "its signature is wrong"})
		case err != nil:
			return nil, fmt.Errorf("%s: %w: %w", p.Name, ErrPin, err)
		case n.Origin != origin:
			return nil, fmt.Errorf("%s: %w: it is of %s, not of %s", p.Name, ErrPin, n.Origin, origin)
		default:
			all = append(all, &pinned{name: p.Name, Note: n})
		}
	}
	slices.SortStableFunc(all, func(a, b *pinned) int { return cmp.Compare(a.Size, b.Size) })
	return all, nil
}

// A pinned is a pin whose signature holds.
type pinned struct {
	name string
	*checkpoint.Note
}

// result is what comes of it.
func (p *pinned) result(state string) PinResult {
	return PinResult{Name: p.name, Size: p.Size, Cosignatures: cosignatures(p.Note), State: state}
}
