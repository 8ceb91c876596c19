package link

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxMessage is the longest message of the stream, in bytes.
const MaxMessage = 40 << 20

// ErrMessage says that a message is not one that this program knows whole.
var ErrMessage = errors.New("the message is not understood whole, so none of it is taken")

// decodeStrict reads one JSON document into v. A field that v does not have could
// be a restriction that nobody would enforce: the whole is refused.
func decodeStrict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows it", ErrMessage)
	}
	return nil
}

// Codec writes messages for gRPC as JSON, and reads them strictly. Protocol
// buffers would keep an unknown field and go on.
type Codec struct{}

// Name implements encoding.Codec.
func (Codec) Name() string { return "parley-json" }

// Marshal implements encoding.Codec.
func (Codec) Marshal(v any) ([]byte, error) { return json.Marshal(v) }

// Unmarshal implements encoding.Codec.
func (Codec) Unmarshal(data []byte, v any) error { return decodeStrict(data, v) }
