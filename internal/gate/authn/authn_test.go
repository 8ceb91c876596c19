package authn_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// golden is a key of fixed random bytes: the form of keys never changes, since
// they are in other people's hands. The digits were computed apart from this
// package, with Python's int, zlib.crc32 and divmod.
const (
	goldenID  = "0123456789AB"
	goldenKey = "parley_key_0123456789AB_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf1PhkCt"
)

func goldenRandom() io.Reader {
	b := make([]byte, 0, 12+32)
	for i := range 12 {
		b = append(b, byte(i))
	}
	for i := range 32 {
		b = append(b, byte(i))
	}
	return bytes.NewReader(b)
}

func newKey(tb testing.TB) (string, authn.KeyParts) {
	tb.Helper()
	key, parts, err := authn.NewKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key, parts
}

func TestNewKeyGolden(t *testing.T) {
	t.Parallel()
	key, parts, err := authn.NewKey(goldenRandom())
	if err != nil || key != goldenKey || parts.ID != goldenID || parts.Digest != sha256.Sum256([]byte(goldenKey)) {
		t.Errorf("%s %+v %v", key, parts, err)
	}
}

func TestNewKey(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(`^(?:` + authn.KeyPattern + `)$`)
	seen := map[string]bool{}
	for range 2000 {
		key, parts := newKey(t)
		id, err := authn.ParseKey(key)
		if err != nil || id != parts.ID || !pattern.MatchString(key) || seen[key] || seen[id] {
			t.Fatalf("%q: %q, %v", key, id, err)
		}
		seen[key], seen[id] = true, true
	}
	for n := range 44 {
		if key, parts, err := authn.NewKey(io.LimitReader(goldenRandom(), int64(n))); err == nil || key != "" || parts != (authn.KeyParts{}) {
			t.Errorf("a key of %d random bytes: %q", n, key)
		}
	}
}

func TestNewKeyIDIsFair(t *testing.T) {
	t.Parallel()
	// Bytes from 248 on would make the first 8 digits likelier than the others.
	random := append(bytes.Repeat([]byte{248, 255}, 20), bytes.Repeat([]byte{247}, 44)...)
	_, parts, err := authn.NewKey(bytes.NewReader(random))
	if err != nil || parts.ID != "zzzzzzzzzzzz" {
		t.Errorf("%q %v", parts.ID, err)
	}
}

func TestParseKeyRefuses(t *testing.T) {
	t.Parallel()
	for i := range goldenKey {
		for _, c := range []byte("0zZ_- \x00\xff") {
			if c == goldenKey[i] {
				continue
			}
			changed := goldenKey[:i] + string([]byte{c}) + goldenKey[i+1:]
			if id, err := authn.ParseKey(changed); !errors.Is(err, authn.ErrKeyMalformed) || id != "" {
				t.Errorf("%q is %q", changed, id)
			}
		}
		if _, err := authn.ParseKey(goldenKey[:i]); err == nil {
			t.Errorf("cut to %d", i)
		}
	}
	for _, s := range []string{
		"", goldenKey + "0", goldenKey + " ", " " + goldenKey[1:], strings.ToLower(goldenKey), strings.Repeat("0", len(goldenKey)),
	} {
		if _, err := authn.ParseKey(s); !errors.Is(err, authn.ErrKeyMalformed) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	key, parts := newKey(t)
	timed, timedParts := newKey(t)
	other, otherParts := newKey(t)
	forged := "parley_key_" + parts.ID + other[len("parley_key_")+12:] // right id, wrong secret
	rec := func(p authn.KeyParts, name string, end time.Time) snapshot.APIKey {
		return snapshot.APIKey{ID: p.ID, Name: name, Digest: p.Digest, Scopes: []string{"orders.read"}, NotAfter: end}
	}
	keys := authn.NewKeys([]snapshot.APIKey{
		rec(parts, "ci", time.Time{}), rec(timedParts, "trial", now), rec(authn.KeyParts{ID: parts.ID, Digest: otherParts.Digest}, "twin", time.Time{}),
		{ID: otherParts.ID, Name: "no digest"},
	})
	ci := identity.Caller{KeyID: parts.ID, KeyName: "ci", Scopes: []string{"orders.read"}}
	trial := identity.Caller{KeyID: timedParts.ID, KeyName: "trial", Scopes: []string{"orders.read"}}
	trial.KeyNotAfter = now
	ended := identity.Caller{KeyID: timedParts.ID, KeyName: "trial"}
	tests := []struct {
		name string
		keys *authn.Keys
		key  string
		now  time.Time
		want identity.Caller
		err  error
	}{
		{"good", keys, key, now, ci, nil},
		{"good for ever", keys, key, now.AddDate(100, 0, 0), ci, nil},
		{"before its end", keys, timed, now.Add(-1), trial, nil},
		{"at its end", keys, timed, now, ended, authn.ErrKeyExpired},
		{"after its end", keys, timed, now.Add(time.Hour), ended, authn.ErrKeyExpired},
		{"wrong secret", keys, reseal(t, forged), now, identity.Caller{}, authn.ErrKeyUnknown},
		{"record without digest", keys, other, now, identity.Caller{}, authn.ErrKeyUnknown},
		{"malformed", keys, forged, now, identity.Caller{}, authn.ErrKeyMalformed},
		{"empty", keys, "", now, identity.Caller{}, authn.ErrKeyMalformed},
		{"no keys", authn.NewKeys(nil), key, now, identity.Caller{}, authn.ErrKeyUnknown},
		{"nil keys", nil, key, now, identity.Caller{}, authn.ErrKeyUnknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := tt.keys.Lookup(tt.key, tt.now)
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b identity.ID) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// reseal finds the checksum that makes a key well-formed, as a forger would.
func reseal(t *testing.T, key string) string {
	t.Helper()
	id, secret := key[11:23], key[24:67]
	body := "parley_key_" + id + "_" + secret
	sealed := body + checksum(body)
	if _, err := authn.ParseKey(sealed); err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestFromHeaders(t *testing.T) {
	t.Parallel()
	key, _ := newKey(t)
	other, _ := newKey(t)
	tests := []struct {
		name    string
		header  http.Header
		key     string
		present bool
		err     error
	}{
		{"none", http.Header{}, "", false, nil},
		{"own field", http.Header{"X-Api-Key": {key}}, key, true, nil},
		{"bearer", http.Header{"Authorization": {"Bearer " + key}}, key, true, nil},
		{"scheme case", http.Header{"Authorization": {"bEARER  " + key}}, key, true, nil},
		{"both the same", http.Header{"X-Api-Key": {key}, "Authorization": {"Bearer " + key}}, key, true, nil},
		{"both different", http.Header{"X-Api-Key": {key}, "Authorization": {"Bearer " + other}}, "", false, authn.ErrSeveral},
		{"own twice", http.Header{"X-Api-Key": {key, key}}, "", false, authn.ErrSeveral},
		{"own and empty", http.Header{"X-Api-Key": {"", key}}, "", false, authn.ErrSeveral},
		{"authorization twice", http.Header{"Authorization": {"Bearer " + key, "Basic eA=="}}, "", false, authn.ErrSeveral},
		{"a list", http.Header{"X-Api-Key": {key + ", " + other}}, key + ", " + other, true, nil},
		{"empty", http.Header{"X-Api-Key": {""}}, "", true, nil},
		{"empty beside bearer", http.Header{"X-Api-Key": {""}, "Authorization": {"Bearer " + key}}, "", false, authn.ErrSeveral},
		{"another token", http.Header{"Authorization": {"Bearer eyJhbGciOi"}}, "", false, nil},
		{"another token beside", http.Header{"X-Api-Key": {key}, "Authorization": {"Bearer eyJhbGciOi"}}, key, true, nil},
		{"basic", http.Header{"Authorization": {"Basic " + key}}, "", false, nil},
		{"no scheme", http.Header{"Authorization": {key}}, "", false, nil},
		{"trailing", http.Header{"Authorization": {"Bearer " + key + " "}}, key + " ", true, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, present, err := authn.FromHeaders(tt.header)
			if got != tt.key || present != tt.present || !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Errorf("%q %v %v", got, present, err)
			}
		})
	}
	if _, present, err := authn.FromHeaders(nil); present || err != nil {
		t.Errorf("no header: %v %v", present, err)
	}
}

func TestKeysAllocations(t *testing.T) {
	key, parts := newKey(t)
	keys := authn.NewKeys([]snapshot.APIKey{{ID: parts.ID, Digest: parts.Digest}})
	now := time.Now()
	// One: the copy that the checksum is computed over.
	if n := testing.AllocsPerRun(100, func() { _, _ = keys.Lookup(key, now) }); n > 1 {
		t.Errorf("Lookup allocates %v times", n)
	}
	header := http.Header{"X-Api-Key": {key}, "Authorization": {"Bearer " + key}}
	if n := testing.AllocsPerRun(100, func() { _, _, _ = authn.FromHeaders(header) }); n != 0 {
		t.Errorf("FromHeaders allocates %v times", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	key, parts := newKey(b)
	keys := authn.NewKeys([]snapshot.APIKey{{ID: parts.ID, Digest: parts.Digest}})
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Lookup(key, now); err != nil {
			b.Fatal(err)
		}
	}
}
