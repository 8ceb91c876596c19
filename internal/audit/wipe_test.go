package audit_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
)

// bodies are an event of alice as each kind of body.
func bodies(t testing.TB) map[string][]byte {
	t.Helper()
	e, canonical := ofPerson(t)
	return map[string][]byte{"packed": pack(t, e), "canonical": canonical}
}

// text is the canonical encoding of a body.
func text(t testing.TB, body []byte) []byte {
	t.Helper()
	if body[0] == '{' {
		return body
	}
	got, err := audit.Render(nil, body)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestAppendWiped(t *testing.T) {
	t.Parallel()
	for name, body := range bodies(t) {
		before := bytes.Clone(body)
		got, at, ok := audit.AppendWiped([]byte("x"), body)
		if !ok || got[0] != 'x' || len(got) != 1+len(body) || !bytes.Equal(body, before) {
			t.Fatalf("%s: %v, %q", name, ok, got)
		}
		got = got[1:]
		if !bytes.Equal(audit.Committed(text(t, got)), audit.Committed(text(t, body))) || audit.LeafHash(text(t, got)) != audit.LeafHash(text(t, body)) {
			t.Errorf("%s: wiped\n%s\nof\n%s", name, text(t, got), text(t, body))
		}
		for _, secret := range []string{"alice", "192.0.2.7"} {
			if !bytes.Contains(body[at:], []byte(secret)) || bytes.Contains(got, []byte(secret)) {
				t.Errorf("%s: %s in %q", name, secret, got)
			}
		}
		if _, _, again := audit.AppendWiped(nil, got); again {
			t.Errorf("%s: wiped twice", name)
		}
	}
	nobody := typical(t)
	nobody.Private = nil
	for name, body := range map[string][]byte{"of nobody": pack(t, nobody), "nothing": nil, "no event": {1, 0xff}, "cut off": bodies(t)["packed"][:40]} {
		if got, at, ok := audit.AppendWiped([]byte("x"), body); ok || at != 0 || string(got) != "x" {
			t.Errorf("%s: %q, %d, %v", name, got, at, ok)
		}
	}
}

// An event that only fits cut short by what is said of a person stays cut short.
func TestWipedStaysCut(t *testing.T) {
	t.Parallel()
	cut := 0
	for n := range 60 {
		e, _ := ofPerson(t)
		long := strings.Repeat("\x01", 512)
		e.Private.Subject, e.Private.Address = long, long
		e.Caller.Exe, e.Caller.Issuer, e.Caller.ClientID, e.Caller.Scopes, e.Caller.Audience = long, long, long, long, long
		e.Callee.Exe, e.Callee.Issuer, e.Callee.ClientID, e.Callee.Scopes, e.Callee.Audience = long, long, long, long, long
		e.Call.Path, e.Call.Host, e.Message = strings.Repeat("\x01", 2048), strings.Repeat("\x01", 2048), long[:8*n]
		packed := pack(t, e)
		wiped, _, ok := audit.AppendWiped(nil, packed)
		if !ok || !bytes.Equal(text(t, wiped), audit.Committed(text(t, packed))) {
			t.Fatalf("%d: %v\n%s\n%s", n, ok, text(t, wiped), audit.Committed(text(t, packed)))
		}
		if bytes.Contains(text(t, wiped), []byte("…")) {
			cut++
		}
	}
	if cut == 0 || cut == 60 {
		t.Errorf("%d of 60 were cut: the bound is not met", cut)
	}
}

// TestUntear: whichever bytes of a step were written, the body is as before or as after.
func TestUntear(t *testing.T) {
	t.Parallel()
	for name, body := range bodies(t) {
		wiped, at, ok := audit.AppendWiped(nil, body)
		if !ok {
			t.Fatal(name)
		}
		for _, step := range []struct{ from, to, want []byte }{
			{body, append(bytes.Clone(wiped[:at]), body[at:]...), body},
			{append(bytes.Clone(wiped[:at]), body[at:]...), wiped, wiped},
		} {
			whole := func(b []byte) bool { return bytes.Equal(b, step.want) }
			for i := range len(body) + 1 {
				for _, torn := range [][]byte{
					append(bytes.Clone(step.to[:i]), step.from[i:]...),
					append(bytes.Clone(step.from[:i]), step.to[i:]...),
				} {
					if got := audit.Untear(torn, whole); !whole(torn) && !bytes.Equal(got, step.want) {
						t.Fatalf("%s: torn at %d\n got %q\nfrom %q\nwant %q", name, i, got, torn, step.want)
					}
				}
			}
		}
		body[10] ^= 1
		if got := audit.Untear(body, func(b []byte) bool { return bytes.Equal(b, wiped) }); got != nil {
			t.Errorf("%s: damage is mended: %q", name, got)
		}
	}
}

// FuzzUntear: whatever bytes it is given, it makes nothing that is not whole.
func FuzzUntear(f *testing.F) {
	for _, body := range bodies(f) {
		f.Add(body)
	}
	f.Add(pack(f, typical(f)))
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		tried := 0
		got := audit.Untear(body, func(b []byte) bool { tried++; return tried == 2 && len(b) == len(body) })
		if got != nil && tried != 2 || !bytes.Equal(body, before) {
			t.Errorf("%q of %q after %d", got, before, tried)
		}
		if wiped, _, ok := audit.AppendWiped(nil, body); ok && len(wiped) != len(body) {
			t.Errorf("%q of %q", wiped, body)
		}
	})
}
