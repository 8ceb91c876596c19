package mesh

import (
	"reflect"
	"slices"
	"strings"
	"time"
)

// A key is one key of a mapping, as the tags of its field say.
type key struct {
	name     string
	index    int // of the field
	required bool
	nonempty bool
	some     bool
	numeric  bool
	enum     []string
	def      string // the default, as it would be written
	pattern  string
	hint     string // what to do where it is missing
}

// keysOf are the keys of a struct type of the mesh file, in order of its fields.
// Parser and schema both read them, so neither knows a key that the other does
// not.
func keysOf(t reflect.Type) []key {
	var keys []key
	for i := range t.NumField() {
		field := t.Field(i)
		name := field.Tag.Get("yaml")
		if name == "" || name == "-" {
			continue
		}
		k := key{name: name, index: i, hint: field.Tag.Get("hint")}
		rest := field.Tag.Get("schema")
		for rest != "" {
			if p, ok := strings.CutPrefix(rest, "pattern="); ok {
				k.pattern = p
				break
			}
			var item string
			item, rest, _ = strings.Cut(rest, ",")
			switch what, value, _ := strings.Cut(item, "="); what {
			case "required":
				k.required = true
			case "nonempty":
				k.nonempty = true
			case "some":
				k.some = true
			case "numeric":
				k.numeric = true
			case "enum":
				k.enum = strings.Split(value, "|")
			case "default":
				k.def = value
			}
		}
		keys = append(keys, k)
	}
	return keys
}

func names(keys []key) []string {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = k.name
	}
	return list
}

// The types that the decoder and the schema treat apart.
func isDuration(t reflect.Type) bool { return t == reflect.TypeFor[time.Duration]() }
func isRequire(t reflect.Type) bool  { return t == reflect.TypeFor[Require]() }

// shortForm is the field that a type is written by where it is written as text.
func shortForm(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Call]():
		return "To"
	case reflect.TypeFor[Redirect]():
		return "Listen"
	}
	return ""
}

// maxNearest bounds how many names are compared for a suggestion.
const maxNearest = 10_000

// nearest is the candidate that name most likely was meant to be: one that
// differs in case only, or else the one with the smallest edit distance up to a
// third of the name's length. It is empty where nothing is near.
func nearest(name string, candidates []string) string {
	limit := max(len(name), 3) / 3
	best, found := limit+1, ""
	if len(candidates) > maxNearest || len(name) > 100 {
		return ""
	}
	if len(name) == 1 {
		limit, best = 0, 1 // any other letter would be as near
	}
	for _, c := range candidates {
		if strings.EqualFold(c, name) {
			return c
		}
		if d := distance(name, c, best); d < best {
			best, found = d, c
		}
	}
	return found
}

// distance is how many bytes must be inserted, removed, replaced or swapped with
// their neighbour to make b of a (optimal string alignment), or something not
// below limit where it is not below limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		if slices.Min(row) >= limit {
			return limit
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
