package mesh_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/parleymesh/parley/internal/mesh"
)

// TestSchema generates the schema from the types and compares it with what the
// package embeds.
func TestSchema(t *testing.T) {
	g := &generator{docs: docs(t), defs: map[string]any{}}
	root := g.object(reflect.TypeFor[mesh.File]())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Parley mesh file"
	root["$defs"] = g.defs
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		t.Fatal(err)
	}
	golden(t, "schema.json", b.String())
	if !*update && !bytes.Equal(mesh.Schema(), b.Bytes()) {
		t.Error("Schema is not what is embedded")
	}
}

// docs are the comments of the types' fields, by "Type.Field".
func docs(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, file := range []string{"mesh.go", "edge.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, field := range s.Fields.List {
					for _, name := range field.Names {
						out[spec.Name.Name+"."+name.Name] = strings.Join(strings.Fields(field.Doc.Text()), " ")
					}
				}
			}
			return true
		})
	}
	return out
}

type generator struct {
	docs map[string]string
	defs map[string]any
}

type object = map[string]any

func (g *generator) object(t reflect.Type) object {
	properties := object{}
	var required []string
	for _, k := range mesh.KeysOf(t) {
		p := g.schema(k.Field.Type, k)
		p["description"] = g.docs[t.Name()+"."+k.Field.Name]
		properties[k.Name] = p
		if k.Required {
			required = append(required, k.Name)
		}
	}
	o := object{"type": "object", "properties": properties, "additionalProperties": false}
	if required != nil {
		o["required"] = required
	}
	return o
}

func (g *generator) schema(t reflect.Type, k mesh.Key) object {
	switch {
	case t.Kind() == reflect.Pointer:
		return g.schema(t.Elem(), k)
	case t == reflect.TypeFor[time.Duration]():
		o := object{"type": "string", "pattern": `^([0-9]{1,5}d|([0-9]+(\.[0-9]+)?(ms|s|m|h))+)$`}
		if k.Default != "" {
			o["default"] = k.Default
		}
		return o
	case t.Kind() == reflect.Struct:
		return g.reference(t, k)
	case t.Kind() == reflect.Map:
		return object{
			"type": "object", "propertyNames": object{"pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
			"additionalProperties": g.schema(t.Elem(), mesh.Key{}),
		}
	case t.Kind() == reflect.Slice:
		o := object{"type": "array", "items": g.schema(t.Elem(), mesh.Key{})}
		if k.NonEmpty {
			o["minItems"] = 1
		}
		if t.Elem().Kind() == reflect.String {
			o["uniqueItems"] = true
		}
		return o
	case t.Kind() == reflect.Int:
		o := object{"type": "integer"}
		if n, err := strconv.Atoi(k.Default); err == nil {
			o["default"] = n
		}
		return o
	case t.Kind() == reflect.Bool:
		return object{"type": "boolean"}
	}
	o := object{"type": "string", "minLength": 1}
	if k.Numeric {
		o["type"] = []string{"string", "number"}
	}
	if k.Pattern != "" {
		o["pattern"] = k.Pattern
	}
	if k.Enum != nil {
		o["enum"] = k.Enum
	}
	if k.Default != "" {
		o["default"] = k.Default
	}
	return o
}

func (g *generator) reference(t reflect.Type, k mesh.Key) object {
	if _, ok := g.defs[t.Name()]; !ok {
		g.defs[t.Name()] = nil // against endless recursion
		g.defs[t.Name()] = g.object(t)
	}
	ref := object{"$ref": "#/$defs/" + t.Name()}
	switch t {
	case reflect.TypeFor[mesh.Call](), reflect.TypeFor[mesh.Redirect]():
		return object{"oneOf": []any{object{"type": "string"}, ref}}
	case reflect.TypeFor[mesh.Require]():
		return object{"oneOf": []any{object{"const": "public"}, ref}}
	}
	if k.Some {
		ref["minProperties"] = 1
	}
	return ref
}

func TestSchemaDescribesEveryKey(t *testing.T) {
	t.Parallel()
	var root any
	if err := json.Unmarshal(mesh.Schema(), &root); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case object:
			if properties, ok := v["properties"].(object); ok && v["additionalProperties"] == false {
				for name, p := range properties {
					if p.(object)["description"] == "" {
						t.Errorf("%s.%s has no description", path, name)
					}
				}
			}
			for k, child := range v {
				walk(path+"."+k, child)
			}
		case []any:
			for i, child := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), child)
			}
		}
	}
	walk("", root)
}

// TestSchemaAgreesWithParse holds the documents that Parse accepts to be valid,
// and those whose errors are of keys, types and forms not to be.
func TestSchemaAgreesWithParse(t *testing.T) {
	t.Parallel()
	var root object
	if err := json.Unmarshal(mesh.Schema(), &root); err != nil {
		t.Fatal(err)
	}
	check := func(text []byte) error {
		var doc any
		if err := yaml.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		return valid(root, root, doc, "")
	}
	for _, file := range files(t, "testdata/good/*.yaml") {
		if err := check(read(t, file)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	head := "trust_domain: a\nservices:\n  a:\n    runs_as: "
	for _, text := range []string{
		"{}", "trust_domain: A", "trust_domain: a\nservice: {}", "trust_domain: a\nleaf_ttl: 3600",
		head + "{}", head + "{users: x}", head + "{exe: bin/x}", "trust_domain: a\nservices: {A: {runs_as: {user: x}}}",
		head + "{user: x}\n    allow: [{from: []}]", head + "{user: x}\n    calls: [{listen: x}]",
		head + "{user: x}\n    inbound: {listen: a, app: b, protocol: udp}",
		"trust_domain: a\ngateway: {e: {listen: a, tls: {}, routes: [{to: a, require: private}]}}",
		"trust_domain: a\ngateway: {e: {listen: a, tls: {}, routes: [{to: a}]}}",
	} {
		if check([]byte(text)) == nil {
			t.Errorf("the schema accepts %q", text)
		}
	}
}

// valid is as much of JSON Schema as the schema uses.
func valid(root, schema object, doc any, path string) error {
	if day, ok := doc.(time.Time); ok { // what only YAML 1.1 makes of it: editors take it for text
		doc = day.Format(time.DateOnly)
	}
	if ref, ok := schema["$ref"].(string); ok {
		def := root["$defs"].(object)[strings.TrimPrefix(ref, "#/$defs/")].(object)
		if err := valid(root, def, doc, path); err != nil {
			return err
		}
	}
	if c, ok := schema["const"]; ok && c != doc {
		return fmt.Errorf("%s is not %v", path, c)
	}
	if alternatives, ok := schema["oneOf"].([]any); ok {
		n := 0
		for _, a := range alternatives {
			if valid(root, a.(object), doc, path) == nil {
				n++
			}
		}
		if n != 1 {
			return fmt.Errorf("%s fits %d alternatives", path, n)
		}
	}
	if want := schema["type"]; want != nil && !isType(want, doc) {
		return fmt.Errorf("%s is a %T, not %v", path, doc, want)
	}
	switch doc := doc.(type) {
	case string:
		if p, ok := schema["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(doc) {
			return fmt.Errorf("%s: %q does not match %s", path, doc, p)
		}
		if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, any(doc)) {
			return fmt.Errorf("%s: %q is none of %v", path, doc, enum)
		}
	case []any:
		if n, ok := schema["minItems"].(float64); ok && len(doc) < int(n) {
			return fmt.Errorf("%s is too short", path)
		}
		for i, item := range doc {
			if items, ok := schema["items"].(object); ok {
				if err := valid(root, items, item, fmt.Sprintf("%s[%d]", path, i)); err != nil {
					return err
				}
			}
		}
	case object:
		return validObject(root, schema, doc, path)
	}
	return nil
}

func validObject(root, schema, doc object, path string) error {
	if n, ok := schema["minProperties"].(float64); ok && len(doc) < int(n) {
		return fmt.Errorf("%s is empty", path)
	}
	if required, ok := schema["required"].([]any); ok {
		for _, name := range required {
			if _, ok := doc[name.(string)]; !ok {
				return fmt.Errorf("%s has no %s", path, name)
			}
		}
	}
	for name, value := range doc {
		if names, ok := schema["propertyNames"].(object); ok {
			if err := valid(root, names, name, path); err != nil {
				return err
			}
		}
		properties, _ := schema["properties"].(object)
		p, ok := properties[name].(object)
		if !ok {
			switch other := schema["additionalProperties"].(type) {
			case object:
				p = other
			case bool:
				return fmt.Errorf("%s.%s is unknown", path, name)
			default:
				continue
			}
		}
		if err := valid(root, p, value, path+"."+name); err != nil {
			return err
		}
	}
	return nil
}

func isType(want, doc any) bool {
	if list, ok := want.([]any); ok {
		return slices.ContainsFunc(list, func(w any) bool { return isType(w, doc) })
	}
	switch doc.(type) {
	case string:
		return want == "string"
	case bool:
		return want == "boolean"
	case float64:
		return want == "number"
	case int:
		return want == "integer" || want == "number"
	case []any:
		return want == "array"
	case object:
		return want == "object"
	}
	return false
}
