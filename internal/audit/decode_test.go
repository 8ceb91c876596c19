package audit_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/identity"
)

func TestDecodeReturnsTheEvent(t *testing.T) {
	t.Parallel()
	e := typical(t)
	body, err := audit.Encode(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	got, err := audit.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	e.Schema, e.Time, e.Caller.Person = audit.Schema, e.Time.UTC(), got.Caller.Person
	if diff := cmp.Diff(e, got, cmp.AllowUnexported(identity.ID{})); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

const minimal = `{"schema":1,"id":"x","time":"2026-11-23T19:05:07Z","class":"access","action":"call","outcome":"allowed"}`

func TestDecodeIsStrict(t *testing.T) {
	t.Parallel()
	if _, err := audit.Decode([]byte(minimal)); err != nil {
		t.Fatalf("the minimal event: %v", err)
	}
	replace := func(old, new string) string { return strings.Replace(minimal, old, new, 1) }
	tests := map[string]struct {
		body string
		want error
	}{
		"empty":             {"", audit.ErrCanonical},
		"null":              {"null", audit.ErrSchema},
		"array":             {"[]", audit.ErrCanonical},
		"no schema":         {`{"id":"x"}`, audit.ErrSchema},
		"later schema":      {replace(`"schema":1`, `"schema":2`), audit.ErrSchema},
		"unknown key":       {replace(`"id"`, `"ident":"y","id"`), audit.ErrCanonical},
		"key twice":         {replace(`"id":"x"`, `"id":"y","id":"x"`), audit.ErrCanonical},
		"key in upper case": {replace(`"id"`, `"ID"`), audit.ErrCanonical},
		"other order":       {replace(`"schema":1,"id":"x"`, `"id":"x","schema":1`), audit.ErrCanonical},
		"white space":       {replace(`"id":`, `"id": `), audit.ErrCanonical},
		"trailing line":     {minimal + "\n", audit.ErrCanonical},
		"two values":        {minimal + minimal, audit.ErrCanonical},
		"cut short":         {minimal[:len(minimal)-1], audit.ErrCanonical},
		"local time":        {replace("07Z", "07+01:00"), audit.ErrCanonical},
		"needless escape":   {replace(`"x"`, `"\u0078"`), audit.ErrCanonical},
		"zero written out":  {replace(`"allowed"`, `"allowed","reason":""`), audit.ErrCanonical},
		"wrong type":        {replace(`"x"`, `7`), audit.ErrCanonical},
		"not a SPIFFE ID":   {replace(`"allowed"`, `"allowed","caller":{"id":"http://x"}`), audit.ErrCanonical},
		"string too long":   {replace(`"x"`, `"`+strings.Repeat("x", 513)+`"`), audit.ErrCanonical},
		"invalid UTF-8":     {replace(`"x"`, "\"\xff\""), audit.ErrCanonical},
		"too long":          {replace(`"x"`, `"`+strings.Repeat("x", audit.MaxEvent)+`"`), audit.ErrTooLong},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if e, err := audit.Decode([]byte(tt.body)); !errors.Is(err, tt.want) || e != nil {
				t.Errorf("Decode = %v, %v; want %v", e, err, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(minimal))
	for _, text := range texts {
		body, err := audit.Encode(nil, full(f, always(text)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
		f.Add(audit.Committed(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		// What Committed and LeafHash say agrees, of whatever bytes.
		committed := audit.Committed(body)
		if audit.LeafHash(body) != audit.LeafHash(committed) {
			t.Fatalf("another leaf without the private member: %q, %q", body, committed)
		}
		wiped := bytes.Clone(body)
		if short := audit.Wipe(wiped); !bytes.Equal(short, committed) || !bytes.HasPrefix(wiped, short) || audit.LeafHash(wiped) != audit.LeafHash(body) {
			t.Fatalf("wiped %q to %q, of which %q", body, wiped, short)
		}
		e, err := audit.Decode(body)
		if err != nil {
			return
		}
		again, err := audit.Encode(nil, e)
		if err != nil || !bytes.Equal(again, body) {
			t.Fatalf("Decode accepted what Encode does not make (%v):\n%s\n%s", err, body, again)
		}
		e.Private = nil
		if without, err := audit.Encode(nil, e); err != nil || !bytes.Equal(without, committed) {
			t.Fatalf("committed are (%v):\n%s\nwithout its person the event is\n%s", err, committed, without)
		}
	})
}

func FuzzEncode(f *testing.F) {
	for _, text := range texts {
		f.Add(text, "GET", int64(200))
	}
	f.Fuzz(func(t *testing.T, text, other string, n int64) {
		turn := 0
		e := full(t, func(string) string {
			turn++
			if turn%2 == 0 {
				return other
			}
			return text
		})
		e.Call.BytesIn, e.Call.Status = n, int(n)
		body, err := audit.Encode(nil, e)
		if err != nil {
			t.Fatal(err)
		}
		if len(body) > audit.MaxEvent {
			t.Fatalf("%d bytes", len(body))
		}
		d, err := audit.Decode(body)
		if err != nil {
			t.Fatalf("Decode: %v\n%s", err, body)
		}
		again, err := audit.Encode(nil, d)
		if err != nil || !bytes.Equal(again, body) {
			t.Fatalf("no fixed point (%v):\n%s\n%s", err, body, again)
		}
	})
}

// What is read fast is what encoding/json reads, and whatever Encode makes is.
func TestReadIsTheSame(t *testing.T) {
	t.Parallel()
	for _, text := range texts {
		body, err := audit.Encode(nil, full(t, always(text)))
		if err != nil {
			t.Fatal(err)
		}
		var fast, slow audit.Event
		if err := audit.Read(body, &fast); err != nil {
			t.Errorf("%q: %v:\n%s", text, err, body)
		}
		if err := audit.ReadJSON(body, &slow); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(slow, fast, cmp.AllowUnexported(identity.ID{})); diff != "" {
			t.Errorf("%q: -encoding/json +read\n%s", text, diff)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(minimal))
	for _, text := range texts {
		body, err := audit.Encode(nil, full(f, always(text)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := audit.Decode(body); err != nil {
			return
		}
		var fast, slow audit.Event
		if audit.Read(body, &fast) != nil {
			return
		}
		if err := audit.ReadJSON(body, &slow); err != nil {
			t.Fatalf("encoding/json: %v\n%s", err, body)
		}
		if diff := cmp.Diff(slow, fast, cmp.AllowUnexported(identity.ID{})); diff != "" {
			t.Fatalf("-encoding/json +read\n%s\n%s", diff, body)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	body, err := audit.Encode(nil, typical(b))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := audit.Decode(body); err != nil {
			b.Fatal(err)
		}
	}
}
