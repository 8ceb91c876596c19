package authn_test

import (
	"hash/crc32"
	"math/big"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/gate/authn"
)

// base62 writes n as the package does, said in another way: math/big orders its
// digits 0-9a-zA-Z.
func base62(n *big.Int, width int) string {
	swapped := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return r
	}, n.Text(62))
	return strings.Repeat("0", width-len(swapped)) + swapped
}

func checksum(text string) string {
	return base62(new(big.Int).SetUint64(uint64(crc32.ChecksumIEEE([]byte(text)))), 6)
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{goldenKey, "", "parley_key_", goldenKey[:72], goldenKey + "0", strings.ToUpper(goldenKey)} {
		f.Add(s)
	}
	pattern := regexp.MustCompile(`^(?:` + authn.KeyPattern + `)$`)
	f.Fuzz(func(t *testing.T, s string) {
		id, err := authn.ParseKey(s)
		sealed := pattern.MatchString(s) && s[67:] == checksum(s[:67])
		if (err == nil) != sealed {
			t.Fatalf("%q: %v", s, err)
		}
		if err == nil && id != s[11:23] || err != nil && id != "" {
			t.Errorf("%q is %q", s, id)
		}
	})
}

func FuzzFromHeaders(f *testing.F) {
	f.Add(goldenKey, "", 1, 0)
	f.Add("", "Bearer "+goldenKey, 0, 1)
	f.Add(goldenKey, "bearer "+goldenKey, 1, 1)
	f.Add("x", "Bearer parley_key_", 1, 1)
	f.Add("x", "Basic eA==", 2, 2)
	f.Fuzz(func(t *testing.T, own, authorization string, owns, authorizations int) {
		h := http.Header{}
		for range owns & 3 {
			h.Add("X-Api-Key", own)
		}
		for range authorizations & 3 {
			h.Add("Authorization", authorization)
		}
		key, present, err := authn.FromHeaders(h)
		switch {
		case owns&3 > 1 || authorizations&3 > 1:
			if err == nil {
				t.Error("several fields")
			}
		case err != nil && (present || key != ""):
			t.Error("a key beside an error")
		case err == nil && owns&3 == 1 && (!present || key != own):
			t.Errorf("%q is %q", own, key)
		case present && key != own && !strings.HasSuffix(authorization, key):
			t.Errorf("%q came from nowhere", key)
		}
		if !present && key != "" {
			t.Errorf("%q is not present", key)
		}
	})
}
