package link_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func token() link.Token {
	return link.Token{
		Addresses: []string{"10.0.0.1:7443", "[fd00::1]:7443"}, TrustDomain: must(identity.ParseTrustDomain("shop.example")),
		Pin: [32]byte{1, 2, 3}, ID: "0123456789abcdef", Secret: []byte(strings.Repeat("S", 32)), Host: "web1",
		Expires: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC),
	}
}

// forged is a token whose JSON was changed.
func forged(t testing.TB, change func(map[string]any)) string {
	t.Helper()
	mark, text, _ := strings.Cut(token().String(), "join_")
	var m map[string]any
	if err := json.Unmarshal(must(base64.RawURLEncoding.DecodeString(text)), &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	return mark + "join_" + base64.RawURLEncoding.EncodeToString(must(json.Marshal(m)))
}

func TestTokenRoundTrip(t *testing.T) {
	t.Parallel()
	for _, text := range []string{token().String(), " " + token().String() + "\r\n", forged(t, func(map[string]any) {})} {
		got, err := link.ParseToken(text)
		if diff := cmp.Diff(token(), got, cmp.Comparer(func(a, b identity.TrustDomain) bool { return a == b })); err != nil || diff != "" {
			t.Errorf("%v%s", err, diff)
		}
	}
	if s := token().String(); strings.ContainsAny(s, " \n=+/") || !strings.HasPrefix(s, "parley_join_") {
		t.Errorf("not one word: %s", s)
	}
}

// What Check lets through can be read whatever the host is, and what it refuses
// could not.
func TestTokenHoldsSoManyAddresses(t *testing.T) {
	t.Parallel()
	for length, most := range map[int]int{14: 16, 100: 16, 200: 13, 259: 10} {
		for n := 1; n <= 17; n++ {
			tok := token()
			tok.Host, tok.ID = strings.Repeat("h", 63), strings.Repeat("0", 32)
			tok.Addresses = slices.Repeat([]string{strings.Repeat("a", length-5) + ":7443"}, n)
			err := tok.Check()
			if (err == nil) != (n <= most) {
				t.Errorf("%d addresses of %d bytes: %v", n, length, err)
			}
			var f *fault.Fault
			if err != nil && (!errors.As(err, &f) || f.Code != fault.BadRequest || !strings.Contains(f.Hint, "--advertise")) {
				t.Errorf("refused with %v", err)
			}
			if _, parsed := link.ParseToken(tok.String()); (parsed == nil) != (err == nil) {
				t.Errorf("%d addresses of %d bytes: checked %v, read %v", n, length, err, parsed)
			}
		}
	}
}

func TestTokenIsRefused(t *testing.T) {
	t.Parallel()
	set := func(key string, v any) string { return forged(t, func(m map[string]any) { m[key] = v }) }
	good := token().String()
	for name, text := range map[string]string{
		"nothing": "", "mark": "parley_join_", "text": "hello", "another mark": strings.Replace(good, "join", "key", 1),
		"cut": good[:len(good)-1], "cut more": good[:len(good)-9], "longer": good + "A", "padded": good + "=", "two": good + good, "in words": good[:30] + " " + good[30:],
		"long":    "parley_join_" + strings.Repeat("A", 5000),
		"version": set("v", 2), "unknown field": set("z", 1), "no JSON": "parley_join_" + base64.RawURLEncoding.EncodeToString([]byte("{}{}")),
		"no address": set("a", []string{}), "addresses": set("a", strings.Split(strings.Repeat("h:1,", 20), ",")[:17]), "no port": set("a", []string{"host"}),
		"no host of address": set("a", []string{":7443"}), "domain": set("d", "Shop Example"), "no domain": set("d", ""),
		"pin": set("p", []byte("short")), "secret": set("s", []byte("short")), "no id": set("i", ""), "no name": set("h", ""), "name with slash": set("h", "a/b"),
		"name": set("h", "a b"), "name up": set("h", ".."),
	} {
		got, err := link.ParseToken(text)
		all := fault.All(err)
		if len(all) != 1 || all[0].Code != fault.JoinToken || all[0].Hint == "" || got.Secret != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// One token has one spelling.
func TestTokenHasOneSpelling(t *testing.T) {
	t.Parallel()
	others := 0
	for i := range 3 {
		tok := token()
		tok.ID += strings.Repeat("0", i)
		text := tok.String()
		for _, last := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
			other := text[:len(text)-1] + string(last)
			a, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(other, "parley_join_"))
			b, _ := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text, "parley_join_"))
			if other == text || err != nil || string(a) != string(b) {
				continue
			}
			others++
			if _, err := link.ParseToken(other); err == nil {
				t.Errorf("%s is read too", other)
			}
		}
	}
	if others == 0 {
		t.Error("no other spelling to try")
	}
}

// Whoever has the secret can become the host: no error and no log has it.
func TestTokenIsNotRepeated(t *testing.T) {
	t.Parallel()
	tok := token()
	secret := base64.StdEncoding.EncodeToString(tok.Secret)
	for _, text := range []string{tok.String()[:200], tok.String() + "!", forged(t, func(m map[string]any) { m["v"] = 3 })} {
		_, err := link.ParseToken(text)
		if err == nil {
			t.Fatal("parsed")
		}
		for _, part := range []string{secret[:16], text[40:60], "SSSSSSSS"} {
			if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), part) {
				t.Errorf("the error repeats %q: %v", part, err)
			}
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(token().String())
	f.Add("parley_join_")
	f.Add("parley_join_" + base64.RawURLEncoding.EncodeToString([]byte(`{"v":1,"a":["h:1"],"d":"td","p":"","i":"x","s":"","h":"a","e":0}`)))
	f.Add(token().String()[:100])
	f.Fuzz(func(t *testing.T, text string) {
		got, err := link.ParseToken(text)
		if err != nil {
			if len(fault.All(err)) != 1 || len(text) > 60 && strings.Contains(err.Error(), text[20:50]) {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := link.ParseToken(got.String())
		if diff := cmp.Diff(got, again, cmp.Comparer(func(a, b identity.TrustDomain) bool { return a == b })); err != nil || diff != "" {
			t.Errorf("%v%s", err, diff)
		}
	})
}
