// Package xtest holds what tests record to what is published of events.
//
// It refuses to make events: those are of the rooms that are tested.
package xtest

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
)

type object = map[string]any

// Check holds the body of an event to the schema, its class to its action's, and its
// reason to those that are explained.
func Check(body []byte) error {
	e, err := audit.Decode(body)
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, body)
	}
	err = Valid(body)
	if want := e.Action.Class(); err == nil && e.Class != want {
		err = fmt.Errorf("%s is of class %s, not %s", e.Action, want, e.Class)
	}
	if _, known := fault.Page(e.Reason); err == nil && e.Reason != "" && !known {
		err = fmt.Errorf("the reason %s has no page: parley explain does not know it", e.Reason)
	}
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, body)
	}
	return nil
}

// valid is as much of JSON Schema as the schema uses.
func valid(root, schema object, doc any, path string) error {
	if ref, ok := schema["$ref"].(string); ok {
		return valid(root, root["$defs"].(object)[strings.TrimPrefix(ref, "#/$defs/")].(object), doc, path)
	}
	if want, ok := schema["const"]; ok && want != doc {
		return fmt.Errorf("%s is %v, not %v", path, doc, want)
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, doc) {
		return fmt.Errorf("%s is %v, none of %v", path, doc, enum)
	}
	switch schema["type"] {
	case "string":
		s, ok := doc.(string)
		if limit, bounded := schema["maxLength"].(float64); !ok || bounded && len(s) > int(limit) {
			return fmt.Errorf("%s is no string of at most %v", path, limit)
		}
		if p, ok := schema["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(s) {
			return fmt.Errorf("%s is %q, not %s", path, s, p)
		}
		if schema["format"] == "date-time" {
			if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	case "integer":
		n, ok := doc.(float64)
		if least, bounded := schema["minimum"].(float64); !ok || bounded && n < least {
			return fmt.Errorf("%s is %v, no integer from %v on", path, doc, schema["minimum"])
		}
	case "object":
		o, ok := doc.(object)
		if !ok {
			return fmt.Errorf("%s is no object", path)
		}
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, ok := o[name.(string)]; !ok {
				return fmt.Errorf("%s has no %s", path, name)
			}
		}
		for name, v := range o {
			p, ok := schema["properties"].(object)[name].(object)
			if !ok {
				return fmt.Errorf("%s has %s", path, name)
			}
			if err := valid(root, p, v, path+"."+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Valid holds a body to the schema that is published.
func Valid(body []byte) error {
	var root object
	if err := json.Unmarshal(audit.JSONSchema(), &root); err != nil {
		return err
	}
	var doc any
	if err := json.Unmarshal(body, &doc); err != nil {
		return err
	}
	return valid(root, root, doc, "event")
}
