package audit_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"sync"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
)

func TestHashKey(t *testing.T) {
	t.Parallel()
	secret := []byte(strings.Repeat("s", 32))
	key := audit.DeriveKey(secret, "paths")
	k := audit.NewHashKey(key)
	for _, text := range []string{"", "/orders/4711", strings.Repeat("long", 1000)} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		want := "k1:" + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if got := k.Hash(text).String(); got != want {
					t.Errorf("%.20q: %s, want %s", text, got, want)
				}
			})
		}
		wg.Wait()
		var back audit.KeyedHash
		if err := back.UnmarshalText([]byte(want)); err != nil || back.String() != want {
			t.Errorf("%s read as %s, %v", want, back, err)
		}
	}
	if other := audit.NewHashKey(audit.DeriveKey(secret, "persons")); other.Hash("x") == k.Hash("x") {
		t.Error("both purposes have one key")
	}
	if (audit.KeyedHash{}).String() != "" {
		t.Error("none has a text")
	}
	for _, bad := range []string{"", "k1:", "k2:AAAAAAAAAAAAAAAAAAAAAA", "k1:AAAAAAAAAAAAAAAAAAAAA", "k1:AAAAAAAAAAAAAAAAAAAAAB", "k1:AAAAAAAAAAAAAAAAAAAAA\n"} {
		if err := new(audit.KeyedHash).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a hash", bad)
		}
	}
}

// One made anew is five allocations; the race detector loses one of four of a pool.
func TestHashAllocations(t *testing.T) {
	k := audit.NewHashKey(audit.DeriveKey([]byte("secret"), "paths"))
	path := "/orders/" + strings.Repeat("4711", 20)
	if n := testing.AllocsPerRun(500, func() { k.Hash(path) }); n > 2 && !racing {
		t.Errorf("%v allocations, want 2 at most: of what escapes into the hash", n)
	}
}
