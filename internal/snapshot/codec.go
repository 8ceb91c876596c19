package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/parleymesh/parley/internal/identity"
)

// MaxSize is the longest serialised snapshot, in bytes.
const MaxSize = 32 << 20

// Errors of Decode.
var (
	// ErrTooLarge says that a serialised snapshot is longer than MaxSize.
	ErrTooLarge = errors.New("the snapshot is too large")
	// ErrVersion says that another version of the form is needed to read it.
	ErrVersion = errors.New("the snapshot is of another version")
)

// Encode serialises s.
func Encode(s *Snapshot) ([]byte, error) {
	data, err := json.Marshal(s)
	if err == nil && len(data) > MaxSize {
		err = ErrTooLarge
	}
	return data, err
}

// Decode reads what Encode wrote. It is strict: a field that this program does
// not know could be a restriction that it would not enforce, so the whole is
// refused.
func Decode(data []byte) (*Snapshot, error) {
	if len(data) > MaxSize {
		return nil, ErrTooLarge
	}
	// The version alone first: another one may mean other fields.
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("read a snapshot: %w", err)
	}
	if head.Version != Version {
		return nil, fmt.Errorf("%w: %d, and this program reads %d", ErrVersion, head.Version, Version)
	}
	s := new(Snapshot)
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("read a snapshot: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("read a snapshot: something follows it")
	}
	var err error
	if s.TrustDomain, err = identity.ParseTrustDomain(s.Domain); err != nil {
		return nil, fmt.Errorf("read a snapshot: %w", err)
	}
	return s, nil
}
