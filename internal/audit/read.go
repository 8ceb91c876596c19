package audit

import (
	"encoding"
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
)

// read fills e from body as encoding/json would, where body is what Encode makes,
// in a fraction of the time: members in the order of the struct, without white
// space, and strings as parts of one copy of the body. All else is errUnread, even
// where it is JSON: encoding/json has to say then what body is. Decode compares what
// was read with body, so nothing that was read wrongly goes unseen.
func read(body []byte, e *Event) error {
	r := reader{rest: string(body)}
	r.object(planOf(), reflect.ValueOf(e).Elem())
	if r.failed || r.rest != "" {
		return errUnread
	}
	return nil
}

var errUnread = errors.New("not as Encode writes it")

// A plan is how to read a struct: its members, in their order.
type plan struct{ members []member }

type member struct {
	key   string // with quotes and colon
	index int    // of the field
	kind  kind
	inner *plan // of a struct
}

// A kind is how a value stands in JSON.
type kind int

const (
	unknown kind = iota // for encoding/json
	str
	signed
	unsigned
	boolean
	moment
	textual // an encoding.TextUnmarshaler
	pointer // to a number
	object  // a pointer to a struct
)

// planOf is the plan of an Event.
var planOf = sync.OnceValue(func() *plan { return makePlan(reflect.TypeFor[Event]()) })

func makePlan(t reflect.Type) *plan {
	p := &plan{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		m := member{key: strconv.Quote(name) + ":", index: i}
		switch k := f.Type.Kind(); {
		case f.Type == reflect.TypeFor[time.Time]():
			m.kind = moment
		case reflect.PointerTo(f.Type).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
			m.kind = textual
		case k == reflect.String:
			m.kind = str
		case k == reflect.Bool:
			m.kind = boolean
		case k == reflect.Int, k == reflect.Int64:
			m.kind = signed
		case k == reflect.Uint64:
			m.kind = unsigned
		case k == reflect.Pointer && f.Type.Elem().Kind() == reflect.Int:
			m.kind = pointer
		case k == reflect.Pointer && f.Type.Elem().Kind() == reflect.Struct:
			m.kind, m.inner = object, makePlan(f.Type.Elem())
		}
		p.members = append(p.members, m)
	}
	return p
}

// A reader goes through a body once.
type reader struct {
	rest   string
	failed bool
}

// take says whether s comes next, and goes over it.
func (r *reader) take(s string) bool {
	rest, ok := strings.CutPrefix(r.rest, s)
	if ok {
		r.rest = rest
	}
	return ok
}

func (r *reader) object(p *plan, v reflect.Value) {
	r.must(r.take("{"))
	for i, n := 0, 0; !r.take("}"); n++ {
		if n > 0 {
			r.must(r.take(","))
		}
		for i < len(p.members) && !r.take(p.members[i].key) {
			i++
		}
		if r.must(i < len(p.members)); r.failed {
			return
		}
		r.value(&p.members[i], v.Field(p.members[i].index))
		i++
	}
}

func (r *reader) must(ok bool) { r.failed = r.failed || !ok }

func (r *reader) value(m *member, v reflect.Value) {
	switch m.kind {
	case str:
		v.SetString(r.string())
	case signed:
		v.SetInt(r.int())
	case unsigned:
		n, err := strconv.ParseUint(r.number(), 10, 64)
		r.must(err == nil)
		v.SetUint(n)
	case boolean:
		v.SetBool(true) // the zero value is left out
		r.must(r.take("true"))
	case moment:
		at, err := time.Parse(time.RFC3339Nano, r.string())
		r.must(err == nil)
		*v.Addr().Interface().(*time.Time) = at
	case textual:
		r.must(v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(r.string())) == nil)
	case pointer:
		v.Set(reflect.New(v.Type().Elem()))
		v.Elem().SetInt(r.int())
	case object:
		v.Set(reflect.New(v.Type().Elem()))
		r.object(m.inner, v.Elem())
	default:
		r.failed = true
	}
}

// string is the one that comes next: as it stands, but for one with an escape.
func (r *reader) string() string {
	if !r.take(`"`) {
		r.failed = true
		return ""
	}
	end := strings.IndexByte(r.rest, '"')
	if end < 0 {
		r.failed = true
		return ""
	}
	if s := r.rest[:end]; strings.IndexByte(s, '\\') < 0 {
		r.rest = r.rest[end+1:]
		return s
	}
	var s string
	dec := json.NewDecoder(strings.NewReader(`"` + r.rest))
	if err := dec.Decode(&s); err != nil {
		r.failed = true
		return ""
	}
	r.rest = r.rest[dec.InputOffset()-1:]
	return s
}

func (r *reader) int() int64 {
	n, err := strconv.ParseInt(r.number(), 10, 64)
	r.must(err == nil)
	return n
}

func (r *reader) number() string {
	end := strings.IndexAny(r.rest, ",}")
	if end < 0 {
		r.failed = true
		return ""
	}
	n := r.rest[:end]
	r.rest = r.rest[end:]
	return n
}
