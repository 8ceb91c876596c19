package xtest_test

import (
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/logging/xtest"
)

// TestCanaryFindsItself: wherever a canary is planted, in whichever encoding, with
// whatever before and behind it, whole or in a piece of it, the detector finds it.
func TestCanaryFindsItself(t *testing.T) {
	t.Parallel()
	const secret = "Kn4r1VogeL+sEcr/et=Qz7wX"
	c := xtest.NewCanary(secret)
	words := func(s string) string { // as a goroutine dump has an array
		var b strings.Builder
		for i := 0; i+8 <= len(s); i += 8 {
			fmt.Fprintf(&b, "0x%x, ", uint64(s[i])|uint64(s[i+1])<<8|uint64(s[i+2])<<16|uint64(s[i+3])<<24|uint64(s[i+4])<<32|uint64(s[i+5])<<40|uint64(s[i+6])<<48|uint64(s[i+7])<<56)
		}
		return b.String()
	}
	quote := func(s string) string {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	encodings := map[string]func(string) string{
		"raw": func(s string) string { return s }, "base64": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"base64url": func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
		"base32":    func(s string) string { return base32.StdEncoding.EncodeToString([]byte(s)) },
		"hex":       func(s string) string { return hex.EncodeToString([]byte(s)) }, "HEX": func(s string) string { return fmt.Sprintf("%X", s) },
		"URL": url.QueryEscape, "path": url.PathEscape, "JSON": quote, "upper": strings.ToUpper, "lower": strings.ToLower,
		"Go": func(s string) string { return fmt.Sprintf("%+q", s) }, "bytes": func(s string) string { return fmt.Sprint([]byte(s)) },
		"words": words,
	}
	for name, encode := range encodings {
		for before := range 16 {
			for behind := range 4 {
				// Beside the secret in the same encoding, as in a header or a body, and of it a piece.
				whole := encode(strings.Repeat("a", before) + secret + strings.Repeat("b", behind))
				if name == "words" {
					whole = encode(secret)
				}
				if c.In([]byte("begin "+whole+" end")) == "" {
					t.Errorf("%s with %d before and %d behind is not found in %q", name, before, behind, whole)
				}
			}
		}
		if piece := secret[5:20]; name != "words" && name != "base64" && name != "base64url" && name != "base32" && c.In([]byte(encode(piece))) == "" {
			t.Errorf("%s: a piece is not found", name)
		}
	}
	for _, other := range []string{"", "begin end", strings.Repeat("Kn4r1VogeL", 3), base64.StdEncoding.EncodeToString([]byte("something else that is long"))} {
		if in := c.In([]byte(other)); in != "" {
			t.Errorf("found in %q: %s", other, in)
		}
	}
}
