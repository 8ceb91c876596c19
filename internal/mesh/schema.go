package mesh

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

// Schema is the JSON Schema (draft 2020-12) of the mesh file, for editors. It
// says what the types say; what Parse checks beyond them, such as names that
// must exist, it does not know.
func Schema() []byte { return bytes.Clone(schema) }
