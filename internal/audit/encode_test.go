package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/identity"
)

// fill sets every field that v reaches, strings by text, so that a field that
// Encode forgets shows as a difference.
func fill(t testing.TB, v reflect.Value, text func(field string) string) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Date(2026, 11, 23, 19, 5, 7, 123456000, time.FixedZone("", 7200))
		return
	case *identity.ID:
		id, err := identity.ParseID("spiffe://shop.example/orders")
		if err != nil {
			t.Fatal(err)
		}
		*x = id
		return
	case *audit.Salt:
		*x = audit.Salt([]byte("sixteen bytes :)"))
		return
	case *audit.Commitment:
		return // Encode's to make
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), text)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), func(string) string { return text(v.Type().Name() + "." + v.Type().Field(i).Name) })
		}
	case reflect.String:
		v.SetString(text(""))
	case reflect.Int, reflect.Int64:
		v.SetInt(-42)
	case reflect.Uint64:
		v.SetUint(1<<64 - 1)
	case reflect.Bool:
		v.SetBool(true)
	default:
		t.Fatalf("no filling for %s", v.Type())
	}
}

// cutAll is the reference for Encode's bounds.
func cutAll(v reflect.Value, field string, long, other int) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			cutAll(v.Elem(), field, long, other)
		}
	case reflect.Struct:
		if v.Type().PkgPath() == "time" || v.Type().Name() == "ID" {
			return
		}
		for i := range v.NumField() {
			cutAll(v.Field(i), v.Type().Name()+"."+v.Type().Field(i).Name, long, other)
		}
	case reflect.String:
		limit := other
		if field == "CallFacts.Host" || field == "CallFacts.Path" {
			limit = long
		}
		s := strings.ToValidUTF8(v.String(), "\ufffd")
		if len(s) > limit {
			keep := ""
			for _, r := range s {
				if len(keep)+utf8.RuneLen(r) > limit-len("…") {
					break
				}
				keep += string(r)
			}
			s = keep + "…"
		}
		v.SetString(s)
	}
}

// reference is what Encode has to equal.
func reference(t testing.TB, e *audit.Event, long, other int) []byte {
	t.Helper()
	c := *e
	for _, p := range []any{&c.Call, &c.Caller, &c.Callee, &c.Actor, &c.Object, &c.Decision, &c.TLS, &c.UpstreamTLS, &c.Trace, &c.Gap, &c.Repeated, &c.Log, &c.Private} {
		if v := reflect.ValueOf(p).Elem(); !v.IsNil() {
			n := reflect.New(v.Type().Elem())
			n.Elem().Set(v.Elem())
			v.Set(n)
		}
	}
	c.Schema, c.Time = audit.Schema, c.Time.UTC()
	if c.Object != nil {
		c.Object.NotAfter = c.Object.NotAfter.UTC()
	}
	if c.Repeated != nil {
		c.Repeated.First, c.Repeated.Last = c.Repeated.First.UTC(), c.Repeated.Last.UTC()
	}
	cutAll(reflect.ValueOf(&c), "", long, other)
	if c.Private != nil {
		if c.Caller == nil {
			c.Caller = &audit.Party{}
		}
		c.Caller.Person = sha256.Sum256(append([]byte("parley audit private v1\x00"), marshal(t, c.Private)...))
	}
	return marshal(t, &c)
}

// marshal is encoding/json without HTML escaping.
func marshal(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func full(t testing.TB, text func(field string) string) *audit.Event {
	t.Helper()
	e := new(audit.Event)
	fill(t, reflect.ValueOf(e).Elem(), text)
	return e
}

func always(s string) func(string) string { return func(string) string { return s } }

var texts = map[string]string{
	"empty":        "",
	"name":         "value",
	"controls":     "\x00\x01\b\f\n\r\t\x1f\x7f",
	"quotes":       `a"b\c/d`,
	"html":         "<script>&amp;</script>",
	"separators":   "a\u2028b\u2029c\u2027d\u202a",
	"beyond ascii": "Zürich 東京 🚂",
	"invalid":      "a\xff\xfeb\xe2\x80",
	"long":         strings.Repeat("x", 5000),
	"exact":        strings.Repeat("y", 512),
	"one more":     strings.Repeat("y", 513),
	"long runes":   strings.Repeat("é", 3000),
	"odd runes":    "x" + strings.Repeat("東", 3000),
	"at the cut":   strings.Repeat("z", 508) + "🚂🚂🚂",
}

func TestEncodeIsWhatJSONMarshalMakes(t *testing.T) {
	t.Parallel()
	for name, text := range texts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check(t, full(t, always(text)), 2048, 512)
		})
	}
	t.Run("zero", func(t *testing.T) { t.Parallel(); check(t, &audit.Event{}, 2048, 512) })
	t.Run("empty parts", func(t *testing.T) {
		t.Parallel()
		check(t, &audit.Event{
			Call: &audit.CallFacts{}, Caller: &audit.Party{}, Callee: &audit.Party{}, Actor: &audit.Actor{}, Object: &audit.Object{},
			Decision: &audit.Decision{}, TLS: &audit.TLS{}, UpstreamTLS: &audit.TLS{}, Trace: &audit.Trace{}, Gap: &audit.Range{}, Repeated: &audit.Repeated{}, Log: &audit.LogFacts{},
		}, 2048, 512)
	})
}

// Any one field alone: the comma before a first key is the place to go wrong.
func TestEncodeOneFieldAtATime(t *testing.T) {
	t.Parallel()
	var fields []string
	full(t, func(f string) string { fields = append(fields, f); return "" })
	for _, only := range fields {
		check(t, full(t, func(f string) string {
			if f == only {
				return "value"
			}
			return ""
		}), 2048, 512)
	}
}

func TestEncodeRandomEvents(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	var all []string
	for _, s := range texts {
		all = append(all, s)
	}
	for range 300 {
		e := full(t, func(string) string { return all[rng.IntN(len(all))] })
		v := reflect.ValueOf(e).Elem()
		for i := range v.NumField() {
			if v.Field(i).Kind() == reflect.Pointer && rng.IntN(3) == 0 {
				v.Field(i).SetZero()
			}
		}
		e.Time = time.Unix(rng.Int64N(1<<35), rng.Int64N(1e9))
		check(t, e, 2048, 512)
	}
}

func TestEncodeNeverExceedsMaxEvent(t *testing.T) {
	t.Parallel()
	e := full(t, always(strings.Repeat("\x01", 5000)))
	long, err := identity.ParseID("spiffe://shop.example/" + strings.Repeat("a", 2048-len("spiffe://shop.example/")))
	if err != nil {
		t.Fatal(err)
	}
	e.Caller.ID, e.Callee.ID = long, long
	check(t, e, 512, 128)
}

func check(t *testing.T, e *audit.Event, long, other int) {
	t.Helper()
	before := fmt.Sprintf("%+v", *e)
	prefix := []byte("prefix")
	got, err := audit.Encode(prefix, e)
	if err != nil {
		t.Fatal(err)
	}
	body, ok := bytes.CutPrefix(got, prefix)
	if !ok {
		t.Fatalf("Encode did not append: %q", got)
	}
	if diff := cmp.Diff(string(reference(t, e, long, other)), string(body)); diff != "" {
		t.Fatalf("-encoding/json +Encode\n%s", diff)
	}
	if len(body) > audit.MaxEvent {
		t.Fatalf("%d bytes", len(body))
	}
	if after := fmt.Sprintf("%+v", *e); after != before {
		t.Errorf("Encode changed the event:\n%s\n%s", before, after)
	}
	d, err := audit.Decode(body)
	if err != nil {
		t.Fatalf("Decode: %v\n%s", err, body)
	}
	again, err := audit.Encode(nil, d)
	if err != nil || !bytes.Equal(again, body) {
		t.Fatalf("no fixed point (%v):\n%s\n%s", err, body, again)
	}
}

func TestEncodeRefusesATimeThatJSONRefuses(t *testing.T) {
	t.Parallel()
	for _, e := range []*audit.Event{
		{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
		{Time: time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)},
		{Object: &audit.Object{NotAfter: time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -7200))}},
	} {
		got, err := audit.Encode([]byte("x"), e)
		if !errors.Is(err, audit.ErrTime) || string(got) != "x" {
			t.Errorf("Encode = %q, %v", got, err)
		}
	}
}

// typical is an access event as a sidecar writes it.
func typical(t testing.TB) *audit.Event {
	t.Helper()
	e := full(t, always("an-ordinary-value"))
	e.ID, e.Actor, e.Object, e.Gap, e.Log = audit.NewID(e.Time), nil, nil, nil, nil
	e.Call.Path = "/orders/0b9e2f3a-17/items"
	return e
}

func TestEncodeAllocatesNothing(t *testing.T) {
	e, buf := typical(t), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := audit.Encode(buf, e); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkEncode(b *testing.B) {
	e, buf := typical(b), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		out, err := audit.Encode(buf, e)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(out)))
	}
}
