package mesh

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/parleymesh/parley/internal/fault"
)

// A decoder fills the types of the mesh file from nodes and notes where each
// value stands. What a value means is the validator's.
type decoder struct {
	*reporter
	places map[string]place
	// strange are the paths of mappings with an unknown key: what seems to be
	// missing there may be what was meant.
	strange map[string]bool
}

// file decodes the whole document. A part that does not fit its type is
// reported and left zero.
func (d *decoder) file(root *yaml.Node) *File {
	f := new(File)
	d.value(root, reflect.ValueOf(f).Elem(), "", key{})
	return f
}

// value decodes n into v. k is the key that it stands under.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, k key) {
	d.note(n, path)
	switch t := v.Type(); {
	case t.Kind() == reflect.Pointer:
		v.Set(reflect.New(t.Elem()))
		d.value(n, v.Elem(), path, k)
	case shortForm(t) != "" && n.Kind == yaml.ScalarNode:
		d.value(n, v.FieldByName(shortForm(t)), path, k)
	case isRequire(t) && n.Kind == yaml.ScalarNode:
		d.public(n, v, path)
	case isDuration(t):
		d.duration(n, v, path)
	case t.Kind() == reflect.Struct:
		d.mapping(n, v, path, k)
	case t.Kind() == reflect.Map:
		d.named(n, v, path)
	case t.Kind() == reflect.Slice:
		d.list(n, v, path, k)
	case t.Kind() == reflect.Int:
		d.number(n, v, path)
	case t.Kind() == reflect.Bool:
		d.truth(n, v, path)
	default:
		d.text(n, v, path, k)
	}
}

// note records n's place; a block's mark is its key's.
func (d *decoder) note(n *yaml.Node, path string) {
	p := d.places[path]
	p.flow = n.Style&yaml.FlowStyle != 0
	switch {
	case n.Kind == yaml.ScalarNode:
		p.value = d.src.scalar(n)
	case p.key.line == 0 || p.flow:
		p.value = d.src.start(n)
	}
	d.places[path] = p
}

// mark is the span to blame for the value at path.
func (d *decoder) mark(path string) span { return d.places[path].mark() }

// wrong reports a value of another type than its key wants.
func (d *decoder) wrong(n *yaml.Node, path, want, hint, replacement string) {
	f := flaw{code: fault.MeshType, hint: hint, replacement: replacement}
	found := kindName(n)
	f.message = fmt.Sprintf("`%s` must be %s, found %s", path, want, found)
	if path == "" {
		f.message = fmt.Sprintf("the mesh file must be %s, found %s", want, found)
	}
	f.label = "expected " + want
	if found == "empty" {
		f.message, f.label = fmt.Sprintf("`%s` has no value", path), "expected "+want+" here"
	}
	d.add(d.mark(path), f)
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!bool":
		return "a boolean"
	case "!!int", "!!float":
		return "a number"
	}
	return "text"
}

// mapping decodes a mapping with known keys.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string, k key) {
	if n.Kind != yaml.MappingNode {
		hint := k.hint
		if hint == "" && kindName(n) == "empty" {
			hint = "write {} for one without settings, or remove the key"
		}
		d.wrong(n, path, "a mapping", hint, "")
		return
	}
	keys := keysOf(v.Type())
	seen := map[string]bool{} // or meant
	d.pairs(n, path, func(name string, at span, value *yaml.Node) {
		i := slices.IndexFunc(keys, func(k key) bool { return k.name == name })
		if i < 0 {
			seen[d.unknown(name, at, path, names(keys))] = true
			return
		}
		seen[name] = true
		child := join(path, name)
		d.places[child] = place{key: at}
		d.value(value, v.Field(keys[i].index), child, keys[i])
	})
	for _, k := range keys {
		if !seen[k.name] {
			d.absent(v.Field(k.index), path, k)
		}
	}
}

// absent sets the default of a key that is not written, or misses it.
func (d *decoder) absent(v reflect.Value, path string, k key) {
	switch {
	case k.required:
		f := flaw{code: fault.MeshMissing, message: fmt.Sprintf("missing key `%s`", k.name), hint: k.hint}
		if path == "" {
			f.message, f.hint = "the mesh file has no `"+k.name+"`", "begin it with: "+k.name+": shop.example"
			d.add(span{}, f)
			return
		}
		f.label = fmt.Sprintf("`%s` needs it", path)
		d.add(d.mark(path), f)
	case k.def == "":
	case isDuration(v.Type()):
		if def, err := time.ParseDuration(k.def); err == nil {
			v.SetInt(int64(def))
		}
	case v.Kind() == reflect.Int:
		if def, err := strconv.ParseInt(k.def, 10, 64); err == nil {
			v.SetInt(def)
		}
	default:
		v.SetString(k.def)
	}
}

// unknown reports a key, and returns the one that was probably meant.
func (d *decoder) unknown(name string, at span, path string, known []string) string {
	d.strange[path] = true
	f := flaw{code: fault.MeshUnknownKey, message: fmt.Sprintf("unknown key `%s`", clip(name)), label: "not a key of the mesh file"}
	if path != "" {
		f.label = fmt.Sprintf("not a key of `%s`", path)
	}
	if f.hint = "the keys here are: " + strings.Join(known, ", "); len(known) == 0 {
		f.hint = "it has no keys: write {}"
	}
	near := nearest(name, known)
	if near != "" {
		f.hint, f.replacement = fmt.Sprintf("there is a key with a similar name: `%s`", near), near
	}
	d.add(at, f)
	return near
}

// named decodes a mapping from names to values.
func (d *decoder) named(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, "a mapping from names", "", "")
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(n, path, func(name string, at span, value *yaml.Node) {
		child := join(path, name)
		d.places[child] = place{key: at}
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(value, elem, child, key{})
		v.SetMapIndex(reflect.ValueOf(name), elem)
	})
}

// pairs calls do for every key of a mapping that is one, once each.
func (d *decoder) pairs(n *yaml.Node, path string, do func(name string, at span, value *yaml.Node)) {
	if d.tooMany(n, 2, path) {
		return
	}
	first := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content) && !d.full(); i += 2 {
		k := n.Content[i]
		at := d.src.start(k)
		if k.Kind != yaml.ScalarNode || kindName(k) == "empty" {
			d.add(at, flaw{code: fault.MeshType, message: "a key is " + kindName(k), label: "expected a name"})
			continue
		}
		if s := d.src.scalar(k); s.line > 0 {
			at = s
		}
		if k.ShortTag() == "!!merge" {
			d.add(at, flaw{code: fault.MeshUnknownKey, message: "a merge key in the mesh file", hint: "write the merged keys out"})
			continue
		}
		if line, again := first[k.Value]; again {
			d.add(at, flaw{
				code: fault.MeshDuplicate, message: fmt.Sprintf("duplicate key `%s`", clip(k.Value)), label: "written twice",
				hint: "the first is at " + d.src.where(line),
			})
			continue
		}
		first[k.Value] = k.Line
		do(k.Value, at, n.Content[i+1])
	}
}

// tooMany reports a list or mapping, whose entries take so many nodes each, that is
// longer than the limit, at the first entry beyond it.
func (d *decoder) tooMany(n *yaml.Node, nodes int, path string) bool {
	count := len(n.Content) / nodes
	if count <= maxEntries {
		return false
	}
	what := "the mesh file"
	if path != "" {
		what = "`" + path + "`"
	}
	d.add(d.src.start(n.Content[maxEntries*nodes]), flaw{
		code: fault.MeshTooLarge, message: fmt.Sprintf("%s has %d entries, the limit is %d", what, count, maxEntries),
		label: "the first too many", hint: "remove some from here on, or split them over several meshes",
	})
	return true
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string, k key) {
	if n.Kind != yaml.SequenceNode {
		hint, replacement := "", ""
		if n.Kind == yaml.ScalarNode && v.Type().Elem().Kind() == reflect.String && kindName(n) != "empty" {
			at := d.mark(path)
			replacement = "[" + d.src.line(at.line)[at.col-1:at.end-1] + "]"
			hint = fmt.Sprintf("write `%s: %s`", k.name, replacement)
		}
		d.wrong(n, path, "a list", hint, replacement)
		return
	}
	if k.nonempty && len(n.Content) == 0 {
		f := flaw{code: fault.MeshValue, message: fmt.Sprintf("`%s` is an empty list", path), label: "nothing would match"}
		if f.hint = cmp.Or(k.hint, "leave the key out where anything may match"); k.required {
			f.hint = k.hint
		}
		d.add(d.mark(path), f)
	}
	if d.tooMany(n, 1, path) {
		return
	}
	first := map[string]int{}
	for i, item := range n.Content {
		if d.full() {
			return
		}
		elem := reflect.New(v.Type().Elem()).Elem()
		child := fmt.Sprintf("%s[%d]", path, i)
		d.value(item, elem, child, key{name: k.name})
		v.Set(reflect.Append(v, elem))
		if elem.Kind() != reflect.String || elem.String() == "" {
			continue
		}
		if line, again := first[elem.String()]; again {
			d.add(d.mark(child), flaw{
				code: fault.MeshDuplicate, message: fmt.Sprintf("`%s` stands twice in `%s`", clip(elem.String()), path), label: "written twice",
				hint: "the first is at " + d.src.where(line),
			})
		}
		first[elem.String()] = item.Line
	}
}

// text decodes a string. Numbers are taken as they are written: a user may be
// one. Booleans are not: what looks like one was meant as one.
func (d *decoder) text(n *yaml.Node, v reflect.Value, path string, k key) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" || n.ShortTag() == "!!bool" {
		hint := ""
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!bool" {
			hint = "put it in quotes if it is a name"
		}
		d.wrong(n, path, "text", hint, "")
		return
	}
	switch {
	case n.Value == "":
		d.wrongValue(path, "it is empty", "")
		return
	case len(k.enum) > 0 && !slices.Contains(k.enum, n.Value):
		f := flaw{code: fault.MeshValue, message: fmt.Sprintf("`%s` is not a value of `%s`", clip(n.Value), path), hint: "the values are: " + strings.Join(k.enum, ", ")}
		if near := nearest(n.Value, k.enum); near != "" {
			f.hint, f.replacement = fmt.Sprintf("there is a value with a similar name: `%s`", near), near
		}
		f.label = "expected " + strings.Join(k.enum, " or ")
		d.add(d.mark(path), f)
		return
	}
	v.SetString(n.Value)
}

func (d *decoder) wrongValue(path, label, hint string) {
	d.add(d.mark(path), flaw{code: fault.MeshValue, message: fmt.Sprintf("malformed `%s`", path), label: label, hint: hint})
}

func (d *decoder) number(n *yaml.Node, v reflect.Value, path string) {
	i, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
		d.wrong(n, path, "a whole number", "", "")
		return
	}
	v.SetInt(int64(i))
}

func (d *decoder) truth(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
		d.wrong(n, path, "true or false", "", "")
		return
	}
	v.SetBool(strings.EqualFold(n.Value, "true"))
}

func (d *decoder) duration(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" || n.ShortTag() == "!!bool" {
		d.wrong(n, path, "a duration such as 1h", "", "")
		return
	}
	if strings.Trim(n.Value, "0123456789") == "" && n.Value != "" {
		f := flaw{code: fault.MeshDurationUnit, message: "a duration has no unit", label: "a number alone could mean seconds or minutes"}
		f.hint = "write it with its unit, such as `1h`, `30m` or `90s`"
		if secs, err := strconv.ParseInt(n.Value, 10, 32); err == nil && secs > 0 {
			f.hint = withUnit(secs)
		}
		d.add(d.mark(path), f)
		return
	}
	dur, err := parseDuration(n.Value)
	if err != nil {
		d.wrongValue(path, "not a duration", "write a number with its unit, such as `1h`, `30m`, `90s`, `1h30m` or `7d`")
		return
	}
	v.SetInt(int64(dur))
}

// parseDuration is what Go reads, or a whole number of days of 24 hours.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

// withUnit is the advice for a bare number, read as seconds.
func withUnit(secs int64) string {
	switch {
	case secs%3600 == 0:
		return fmt.Sprintf("write `%dh`, or `%ds`", secs/3600, secs)
	case secs%60 == 0:
		return fmt.Sprintf("write `%dm`, or `%ds`", secs/60, secs)
	}
	return fmt.Sprintf("write `%ds`", secs)
}

// public decodes a requirement that is one word.
func (d *decoder) public(n *yaml.Node, v reflect.Value, path string) {
	if n.Value != "public" || n.ShortTag() != "!!str" {
		d.wrong(n, path, "the word public or a mapping", keysOf(reflect.TypeFor[Route]())[2].hint, "")
		return
	}
	v.FieldByName("Public").SetBool(true)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// clip bounds what a message repeats of the document.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
