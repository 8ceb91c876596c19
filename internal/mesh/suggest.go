package mesh

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/policy"
)

// Suggest is the smallest change of f with which policy would allow q, as YAML
// after a comment that says where it belongs:
//
//	# parley.yaml:10, under allow of orders
//	      - from: [web]
//	        methods: [POST]
//	        paths: [/charge]
//
// Nothing but q becomes allowed by it. An existing rule is extended only where it
// is the caller's alone and of this one path, or of this one method: otherwise
// others, or other calls, would be let in too. It is empty where q is allowed
// already, and where no rule is what is missing: an unknown service or caller, a
// service without inbound, or a gateway's route, which wants a credential.
func Suggest(f *File, q policy.Query) string {
	s := f.Services[q.Target]
	caller, ok := f.caller(q)
	if !ok || s == nil || s.Inbound == nil || caller == q.Target {
		return ""
	}
	isTCP := s.Inbound.Protocol == tcp
	if isTCP && (q.Method != "" || q.Path != "") || q.Path != "" && policy.ValidPath(q.Path) != nil {
		return ""
	}
	if allowed, err := f.decide(q); err != nil || allowed {
		return ""
	}
	entry := &Allow{From: []string{caller}}
	if q.Method != "" {
		entry.Methods = []string{q.Method}
	}
	if q.Path != "" {
		entry.Paths = []string{q.Path}
	}
	for i, a := range s.Allow {
		if len(a.From) != 1 || a.From[0] != caller {
			continue
		}
		at := fmt.Sprintf("services.%s.allow[%d]", q.Target, i)
		switch {
		case len(a.Methods) > 0 && q.Path != "" && slices.Equal(a.Paths, []string{q.Path}):
			return f.extend(at, "methods", append(slices.Clone(a.Methods), q.Method))
		case len(a.Paths) > 0 && q.Method != "" && slices.Equal(a.Methods, []string{q.Method}):
			return f.extend(at, "paths", append(slices.Clone(a.Paths), q.Path))
		}
	}
	return f.entry(q.Target, entry)
}

// caller is q's workload as an allow entry names it.
func (f *File) caller(q policy.Query) (string, bool) {
	id := q.Caller.Workload
	if id.TrustDomain().String() != f.TrustDomain {
		return "", false
	}
	name := id.Name()
	if gateway, ok := strings.CutPrefix(name, "gateway/"); ok {
		return name, f.Gateways[gateway] != nil
	}
	return name, f.Services[name] != nil
}

// decide asks policy itself.
func (f *File) decide(q policy.Query) (bool, error) {
	ports, err := AssignPorts(f, nil)
	if err != nil {
		return false, err
	}
	snap, err := Compile(f, 0, ports, nil)
	if err != nil {
		return false, err
	}
	rules := slices.DeleteFunc(snap.Rules, func(r policy.Rule) bool { return r.Target != q.Target })
	set, err := policy.Compile(0, []string{q.Target}, rules)
	if err != nil {
		return false, err
	}
	return set.Decide(q).Allow, nil
}

// extend is a rule's key with one value more.
func (f *File) extend(rule, key string, values []string) string {
	at := f.places[rule+"."+key].key
	text := key + ": " + flowList(values)
	if f.flow(rule) {
		return fmt.Sprintf("# %s, in %s write\n%s\n", f.src.where(at.line), rule, text)
	}
	return fmt.Sprintf("# %s, in %s write\n%s%s\n", f.src.where(at.line), rule, strings.Repeat(" ", at.col-1), text)
}

// flow says that the value at path is written as {...} or [...], itself or with
// what is around it.
func (f *File) flow(path string) bool {
	for {
		if f.places[path].flow {
			return true
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return f.places[""].flow
		}
		path = path[:i]
	}
}

// entry is a new allow entry of a service, in the style that its place asks for.
func (f *File) entry(service string, a *Allow) string {
	path := "services." + service
	line := "{from: " + flowList(a.From)
	for _, k := range []struct {
		key    string
		values []string
	}{{"methods", a.Methods}, {"paths", a.Paths}} {
		if len(k.values) > 0 {
			line += ", " + k.key + ": " + flowList(k.values)
		}
	}
	line += "}"
	list, written := f.places[path+".allow"]
	switch {
	case written && f.flow(path+".allow"):
		return fmt.Sprintf("# %s, in the list allow of %s\n%s\n", f.src.where(list.key.line), service, line)
	case f.flow(path):
		return fmt.Sprintf("# %s, in %s\nallow: [%s]\n", f.src.where(f.Line(path)), service, line)
	case written:
		return fmt.Sprintf("# %s, under allow of %s\n%s", f.src.where(list.key.line), service, block(f.dash(path+".allow[0]"), a))
	default:
		indent := f.places[path+".runs_as"].key.col - 1
		return fmt.Sprintf("# %s, under %s\n%sallow:\n%s", f.src.where(f.Line(path)), service, strings.Repeat(" ", indent), block(indent+2, a))
	}
}

// dash is how far the dash of a block's list entry is indented.
func (f *File) dash(path string) int {
	at := f.places[path].value
	return max(0, strings.LastIndexByte(f.src.line(at.line)[:at.col-1], '-'))
}

// block is an entry of a block's list.
func block(indent int, a *Allow) string {
	pad := strings.Repeat(" ", indent)
	text := pad + "- from: " + flowList(a.From) + "\n"
	if len(a.Methods) > 0 {
		text += pad + "  methods: " + flowList(a.Methods) + "\n"
	}
	if len(a.Paths) > 0 {
		text += pad + "  paths: " + flowList(a.Paths) + "\n"
	}
	return text
}

// flowList is values as a YAML list on one line.
func flowList(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = scalar(v)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// scalar is s as YAML text in any context, quoted where it must be: a JSON
// string is a YAML one.
func scalar(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./*~%"
	if s == "" || strings.Trim(s, plain) == "" && !strings.Contains("-*~%.0123456789", s[:1]) {
		switch strings.ToLower(s) {
		case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
		default:
			return s
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		return s
	}
	return string(text)
}
