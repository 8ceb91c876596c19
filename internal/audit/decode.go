package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Decode reads what Encode wrote and nothing else: an unknown, repeated or
// misspelt key, a time that is not in UTC, a string beyond its bound, white space
// and trailing bytes are all ErrCanonical, so that a body has one reading, and so
// is a private member that the caller's person does not commit to. A body without
// it is as good: it was erased, or left out of an export. A body of a later schema
// is ErrSchema. It never panics.
func Decode(body []byte) (*Event, error) {
	if len(body) > MaxEvent {
		return nil, ErrTooLong
	}
	e := new(Event)
	if read(body, e) != nil || e.Schema != Schema {
		*e = Event{}
		if err := readJSON(body, e); err != nil {
			return nil, err
		}
	}
	again, err := Encode(make([]byte, 0, len(body)), e)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCanonical, err)
	}
	if !bytes.Equal(again, body) {
		return nil, fmt.Errorf("%w: it encodes to %d bytes and has %d", ErrCanonical, len(again), len(body))
	}
	return e, nil
}

// readJSON reads any JSON, and says what is wrong with it.
func readJSON(body []byte, e *Event) error {
	var version struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(body, &version); err != nil {
		return fmt.Errorf("%w: %w", ErrCanonical, err)
	}
	if version.Schema != Schema {
		return fmt.Errorf("schema %d, this program reads %d: %w", version.Schema, Schema, ErrSchema)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(e); err != nil {
		return fmt.Errorf("%w: %w", ErrCanonical, err)
	}
	return nil
}
