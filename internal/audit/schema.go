package audit

import (
	"bytes"
	_ "embed" // for the schema
)

// schema is generated from the types and their comments by TestSchema, so that
// the program need not carry its own source.
//
//go:generate go test -run ^TestSchema$ . -update
//go:embed schema.json
var schema []byte

// JSONSchema is the JSON Schema (draft 2020-12) of an event.
func JSONSchema() []byte { return bytes.Clone(schema) }
