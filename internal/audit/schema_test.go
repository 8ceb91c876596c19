package audit_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/xtest"
	"github.com/parleymesh/parley/internal/identity"
)

type object = map[string]any

// TestSchema generates the schema from the types and compares it with what the
// package embeds and the manual has.
func TestSchema(t *testing.T) {
	g := &generator{docs: comments(t), defs: object{}}
	root := g.object(reflect.TypeFor[audit.Event]())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Parley audit event, schema 1"
	root["description"] = "Fields are only added within a schema: a reader passes over those that it does not know."
	root["$defs"] = g.defs
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"schema.json", "../../docs/audit-event.v1.schema.json"} {
		if *update {
			if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if have, err := os.ReadFile(file); err != nil || !bytes.Equal(have, b.Bytes()) {
			t.Errorf("%s is not what the types say (%v): go generate ./internal/audit", file, err)
		}
	}
	if !*update && !bytes.Equal(audit.JSONSchema(), b.Bytes()) {
		t.Error("JSONSchema is not what is embedded")
	}
}

// comments are those of the types' fields, by "Type.Field".
func comments(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, file := range []string{"event.go", "private.go"} {
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
						out[spec.Name.Name+"."+name.Name] = strings.Join(strings.Fields(field.Doc.Text()+field.Comment.Text()), " ")
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
	defs object
}

func (g *generator) object(t reflect.Type) object {
	properties := object{}
	var required []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		p := g.schema(f.Type, t.Name()+"."+f.Name)
		p["description"] = g.docs[t.Name()+"."+f.Name]
		properties[name] = p
		if rest == "" {
			required = append(required, name)
		}
	}
	o := object{"type": "object", "properties": properties, "additionalProperties": false}
	if required != nil {
		o["required"] = required
	}
	return o
}

// words are the fields of type string that have few values.
var words = map[string][]string{
	"CallFacts.End": {"inbound", "outbound", "edge"}, "CallFacts.Protocol": {"http", "tcp"}, "Event.Reporter": {"agent", "server"},
}

func (g *generator) schema(t reflect.Type, field string) object {
	switch t {
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[identity.ID]():
		return object{"type": "string", "maxLength": 2048, "pattern": "^spiffe://"}
	case reflect.TypeFor[audit.Action]():
		return object{"enum": audit.Actions()}
	case reflect.TypeFor[audit.Class]():
		return object{"enum": []audit.Class{audit.Access, audit.Security}}
	case reflect.TypeFor[audit.Outcome]():
		return object{"enum": []audit.Outcome{audit.Allowed, audit.Denied, audit.Success, audit.Failure}}
	case reflect.TypeFor[audit.Salt]():
		return object{"type": "string", "pattern": "^[A-Za-z0-9_-]{22}$"}
	case reflect.TypeFor[audit.Commitment]():
		return object{"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return g.schema(t.Elem(), field)
	case reflect.Struct:
		if _, ok := g.defs[t.Name()]; !ok {
			g.defs[t.Name()] = g.object(t)
		}
		return object{"$ref": "#/$defs/" + t.Name()}
	case reflect.Bool:
		return object{"const": true}
	case reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Int, reflect.Int64:
		if field == "Event.Schema" {
			return object{"const": audit.Schema}
		}
		return object{"type": "integer"}
	}
	if words[field] != nil {
		return object{"enum": words[field]}
	}
	if field == "CallFacts.Host" || field == "CallFacts.Path" {
		return object{"type": "string", "maxLength": 2048}
	}
	return object{"type": "string", "maxLength": 512}
}

func TestSchemaDescribesEveryField(t *testing.T) {
	t.Parallel()
	for name, text := range comments(t) {
		if text == "" {
			t.Errorf("%s has no description", name)
		}
	}
}

// What Encode makes is valid, and what Decode refuses for its keys and types is not.
func TestSchemaAgreesWithEncode(t *testing.T) {
	t.Parallel()
	for _, text := range texts {
		e := full(t, always(text))
		e.Class, e.Outcome, e.Reporter, e.Call.End, e.Call.Protocol = audit.Access, audit.Allowed, "agent", "edge", "http"
		for _, e.Action = range audit.Actions() {
			body, err := audit.Encode(nil, e)
			if err != nil {
				t.Fatal(err)
			}
			if err := xtest.Valid(body); err != nil {
				t.Errorf("%v:\n%s", err, body)
			}
			if err := xtest.Valid(audit.Committed(body)); err != nil {
				t.Error(err)
			}
		}
	}
	replace := func(old, new string) string { return strings.Replace(minimal, old, new, 1) }
	for name, body := range map[string]string{
		"array": "[]", "later schema": replace(`"schema":1`, `"schema":2`), "no id": replace(`"id":"x",`, ""), "unknown key": replace(`"id"`, `"ident":"y","id"`),
		"wrong type": replace(`"x"`, `7`), "action": replace(`"call"`, `"called"`), "class": replace(`"access"`, `"secure"`), "outcome": replace(`"allowed"`, `"done"`),
		"too long": replace(`"x"`, `"`+strings.Repeat("x", 513)+`"`), "time": replace("07Z", ""), "person": replace(`"allowed"`, `"allowed","caller":{"person":"x"}`),
		"salt": replace(`"allowed"`, `"allowed","private":{"salt":"x"}`), "end": replace(`"allowed"`, `"allowed","call":{"end":"x","protocol":"http","listener":""}`),
		"id": replace(`"allowed"`, `"allowed","caller":{"id":"x"}`), "false": replace(`"allowed"`, `"allowed","tls":{"version":"","resumed":false}`),
		"negative": replace(`"allowed"`, `"allowed","gap":{"from":-1,"to":0,"count":0}`),
	} {
		if xtest.Valid([]byte(body)) == nil {
			t.Errorf("%s: the schema accepts %s", name, body)
		}
	}
}
