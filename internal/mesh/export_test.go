package mesh

import "reflect"

// For the tests of package mesh_test.
var (
	Nearest       = nearest
	Distance      = distance
	CoversPattern = coversPattern
	Scalar        = scalar
)

// A Key is a key as the parser knows it.
type Key struct {
	Name, Default, Pattern            string
	Required, NonEmpty, Some, Numeric bool
	Enum                              []string
	Field                             reflect.StructField
}

// KeysOf are the keys that the parser accepts for a type.
func KeysOf(t reflect.Type) []Key {
	var out []Key
	for _, k := range keysOf(t) {
		out = append(out, Key{k.name, k.def, k.pattern, k.required, k.nonempty, k.some, k.numeric, k.enum, t.Field(k.index)})
	}
	return out
}
