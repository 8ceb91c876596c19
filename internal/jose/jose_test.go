package jose_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

var (
	ecKey    = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	otherKey = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384Key  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
)

// weakKey is a public key of 1024 bits, which crypto/rsa no longer makes.
func weakKey() *rsa.PublicKey {
	n := new(big.Int).Rsh(rsaKey().N, 1024)
	return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
}

// bundles is the bundle of td, and none of any other trust domain.
func bundles(td identity.TrustDomain) *identity.Bundle {
	if td.String() != "td" {
		return nil
	}
	return &identity.Bundle{TrustDomain: td, JWTKeys: map[string]crypto.PublicKey{
		"ec": ecKey().Public(), "p384": p384Key().Public(), "rsa": rsaKey().Public(), "weak": weakKey(),
	}}
}

func id(s string) identity.ID { return must(identity.ParseID(s)) }

func signed(t testing.TB) string {
	t.Helper()
	token, err := jose.SignSVID(ecKey(), "ec", id("spiffe://td/a"), []string{"orders"}, noon(), noon().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestSignedVerifies(t *testing.T) {
	t.Parallel()
	token := signed(t)
	got, claims, err := jose.VerifySVID(token, "orders", bundles, noon())
	if err != nil || got != id("spiffe://td/a") {
		t.Fatalf("got %q, %v", got, err)
	}
	want := map[string]any{
		"sub": "spiffe://td/a", "aud": "orders",
		"iat": float64(noon().Unix()), "exp": float64(noon().Add(time.Minute).Unix()),
	}
	if diff := cmp.Diff(want, claims); diff != "" {
		t.Error(diff)
	}
	head := must(base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0]))
	if string(head) != `{"alg":"ES256","kid":"ec","typ":"JWT"}` {
		t.Errorf("the header is %s", head)
	}
}

func TestSeveralAudiences(t *testing.T) {
	t.Parallel()
	token := must(jose.SignSVID(ecKey(), "ec", id("spiffe://td/a"), []string{"x", "y"}, noon(), noon().Add(time.Minute)))
	for audience, want := range map[string]error{"x": nil, "y": nil, "z": jose.ErrAudience, "": jose.ErrAudience, "X": jose.ErrAudience} {
		if _, _, err := jose.VerifySVID(token, audience, bundles, noon()); !errors.Is(err, want) {
			t.Errorf("audience %q: %v, want %v", audience, err, want)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	a, in := id("spiffe://td/a"), noon().Add(time.Minute)
	tests := []struct {
		name     string
		key      crypto.Signer
		kid      string
		id       identity.ID
		audience []string
		expires  time.Time
		want     error
	}{
		{"other curve", p384Key(), "k", a, []string{"x"}, in, jose.ErrAlgorithm},
		{"RSA", rsaKey(), "k", a, []string{"x"}, in, jose.ErrAlgorithm},
		{"no kid", ecKey(), "", a, []string{"x"}, in, jose.ErrAlgorithm},
		{"no subject", ecKey(), "k", identity.ID{}, []string{"x"}, in, jose.ErrClaims},
		{"trust domain", ecKey(), "k", id("spiffe://td"), []string{"x"}, in, jose.ErrClaims},
		{"no audience", ecKey(), "k", a, nil, in, jose.ErrClaims},
		{"empty audience", ecKey(), "k", a, []string{"x", ""}, in, jose.ErrClaims},
		{"ends at once", ecKey(), "k", a, []string{"x"}, noon(), jose.ErrClaims},
		{"too long", ecKey(), "k", a, []string{strings.Repeat("x", 8000)}, in, jose.ErrTooLong},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			token, err := jose.SignSVID(tt.key, tt.kid, tt.id, tt.audience, noon(), tt.expires)
			if !errors.Is(err, tt.want) || token != "" {
				t.Errorf("got %q, %v, want %v", token, err, tt.want)
			}
		})
	}
}

func TestVerifyClaims(t *testing.T) {
	t.Parallel()
	const head = `{"alg":"ES256","kid":"ec"}`
	in, past := noon().Unix()+60, noon().Unix()
	tests := []struct {
		name, payload string
		want          error
	}{
		{"least", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d}`, in), nil},
		{"array", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":["x","orders"],"exp":%d}`, in), nil},
		{"fraction", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d.5}`, in), nil},
		{"not before now", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d,"nbf":%d}`, in, past), nil},
		{"ends now", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d}`, past), jose.ErrExpired},
		{"ends within the second", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d.9}`, past), jose.ErrExpired},
		{"begins later", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d,"nbf":%d}`, in, in), jose.ErrNotYet},
		{"bad nbf", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d,"nbf":"x"}`, in), jose.ErrClaims},
		{"no exp", `{"sub":"spiffe://td/a","aud":"orders"}`, jose.ErrClaims},
		{"exp null", `{"sub":"spiffe://td/a","aud":"orders","exp":null}`, jose.ErrClaims},
		{"exp text", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":"%d"}`, in), jose.ErrClaims},
		{"exp huge", `{"sub":"spiffe://td/a","aud":"orders","exp":1e300}`, jose.ErrClaims},
		{"exp negative", `{"sub":"spiffe://td/a","aud":"orders","exp":-1}`, jose.ErrClaims},
		{"exp twice", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d,"exp":%d}`, past, in), jose.ErrClaims},
		{"exp in capitals", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","EXP":%d}`, in), jose.ErrClaims},
		{"no aud", fmt.Sprintf(`{"sub":"spiffe://td/a","exp":%d}`, in), jose.ErrClaims},
		{"aud null", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":null,"exp":%d}`, in), jose.ErrClaims},
		{"aud empty", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":[],"exp":%d}`, in), jose.ErrClaims},
		{"aud with null", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":["orders",null],"exp":%d}`, in), jose.ErrClaims},
		{"aud number", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":7,"exp":%d}`, in), jose.ErrClaims},
		{"other aud", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"ord","exp":%d}`, in), jose.ErrAudience},
		{"no sub", fmt.Sprintf(`{"aud":"orders","exp":%d}`, in), jose.ErrClaims},
		{"sub twice", fmt.Sprintf(`{"sub":"spiffe://td/a","sub":"spiffe://td/b","aud":"orders","exp":%d}`, in), jose.ErrClaims},
		{"sub of a trust domain", fmt.Sprintf(`{"sub":"spiffe://td","aud":"orders","exp":%d}`, in), identity.ErrNoPath},
		{"sub percent-encoded", fmt.Sprintf(`{"sub":"spiffe://td/%%61","aud":"orders","exp":%d}`, in), identity.ErrPath},
		{"sub no SPIFFE ID", fmt.Sprintf(`{"sub":"alice","aud":"orders","exp":%d}`, in), identity.ErrScheme},
		{"foreign sub", fmt.Sprintf(`{"sub":"spiffe://other/a","aud":"orders","exp":%d}`, in), jose.ErrUntrusted},
		{"no object", `["sub"]`, jose.ErrClaims},
		{"two values", fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d}{}`, in), jose.ErrClaims},
		{"not UTF-8", fmt.Sprintf("{\"sub\":\"spiffe://td/a\",\"aud\":\"orders\",\"exp\":%d,\"x\":\"\xff\"}", in), jose.ErrClaims},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, claims, err := jose.VerifySVID(compact(head, tt.payload, es256(ecKey())), "orders", bundles, noon())
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if (err == nil) != (got == id("spiffe://td/a")) || (err == nil) != (claims != nil) {
				t.Errorf("got %q and %v beside %v", got, claims, err)
			}
		})
	}
}

func TestVerifyHeader(t *testing.T) {
	t.Parallel()
	payload := fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d}`, noon().Unix()+60)
	tests := []struct {
		name, head string
		sign       signer
		want       error
	}{
		{"typ JWT", `{"alg":"ES256","kid":"ec","typ":"JWT"}`, es256(ecKey()), nil},
		{"typ JOSE", `{"alg":"ES256","kid":"ec","typ":"JOSE"}`, es256(ecKey()), nil},
		{"RS256", `{"alg":"RS256","kid":"rsa"}`, rs256, nil},
		{"PS256", `{"alg":"PS256","kid":"rsa"}`, ps256(32), nil},
		{"PS256 with another salt", `{"alg":"PS256","kid":"rsa"}`, ps256(20), jose.ErrSignature},
		{"typ in small letters", `{"alg":"ES256","kid":"ec","typ":"jwt"}`, es256(ecKey()), jose.ErrHeader},
		{"typ at+jwt", `{"alg":"ES256","kid":"ec","typ":"at+jwt"}`, es256(ecKey()), jose.ErrHeader},
		{"typ number", `{"alg":"ES256","kid":"ec","typ":1}`, es256(ecKey()), jose.ErrHeader},
		{"crit", `{"alg":"ES256","kid":"ec","crit":["exp"]}`, es256(ecKey()), jose.ErrHeader},
		{"jku", `{"alg":"ES256","kid":"ec","jku":"https://x"}`, es256(ecKey()), jose.ErrHeader},
		{"jwk", `{"alg":"ES256","kid":"ec","jwk":{}}`, es256(ecKey()), jose.ErrHeader},
		{"x5c", `{"alg":"ES256","kid":"ec","x5c":[]}`, es256(ecKey()), jose.ErrHeader},
		{"cty", `{"alg":"ES256","kid":"ec","cty":"JWT"}`, es256(ecKey()), jose.ErrHeader},
		{"b64", `{"alg":"ES256","kid":"ec","b64":false}`, es256(ecKey()), jose.ErrHeader},
		{"private", `{"alg":"ES256","kid":"ec","x":"y"}`, es256(ecKey()), jose.ErrHeader},
		{"alg twice", `{"alg":"none","alg":"ES256","kid":"ec"}`, es256(ecKey()), jose.ErrHeader},
		{"no object", `"ES256"`, es256(ecKey()), jose.ErrHeader},
		{"no alg", `{"kid":"ec"}`, es256(ecKey()), jose.ErrAlgorithm},
		{"none", `{"alg":"none","kid":"ec"}`, es256(ecKey()), jose.ErrAlgorithm},
		{"HS256", `{"alg":"HS256","kid":"ec"}`, es256(ecKey()), jose.ErrAlgorithm},
		{"HS256 with an RSA key", `{"alg":"HS256","kid":"rsa"}`, rs256, jose.ErrAlgorithm},
		{"EdDSA", `{"alg":"EdDSA","kid":"ec"}`, es256(ecKey()), jose.ErrAlgorithm},
		{"ES256 with a P-384 key", `{"alg":"ES256","kid":"p384"}`, es256(ecKey()), jose.ErrAlgorithm},
		{"RS256 with an EC key", `{"alg":"RS256","kid":"ec"}`, rs256, jose.ErrAlgorithm},
		{"alg in small letters", `{"alg":"es256","kid":"ec"}`, es256(ecKey()), jose.ErrAlgorithm},
		{"no kid", `{"alg":"ES256"}`, es256(ecKey()), jose.ErrKey},
		{"empty kid", `{"alg":"ES256","kid":""}`, es256(ecKey()), jose.ErrKey},
		{"unknown kid", `{"alg":"ES256","kid":"x"}`, es256(ecKey()), jose.ErrKey},
		{"weak key", `{"alg":"RS256","kid":"weak"}`, rs256, jose.ErrWeakKey},
		{"another key", `{"alg":"ES256","kid":"ec"}`, es256(otherKey()), jose.ErrSignature},
		{"RS256 signed as PS256", `{"alg":"PS256","kid":"rsa"}`, rs256, jose.ErrSignature},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := jose.VerifySVID(compact(tt.head, payload, tt.sign), "orders", bundles, noon())
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestVerifyForm(t *testing.T) {
	t.Parallel()
	token := signed(t)
	part := strings.Split(token, ".")
	// The last character of an ES256 signature holds four bits that decode to
	// nothing.
	last := token[len(token)-1]
	spelling := token[:len(token)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", last)|1])
	tests := []struct {
		name, token string
		want        error
	}{
		{"empty", "", jose.ErrMalformed},
		{"two parts", part[0] + "." + part[1], jose.ErrMalformed},
		{"four parts", token + ".", jose.ErrMalformed},
		{"no signature", part[0] + "." + part[1] + ".", jose.ErrMalformed},
		{"no header", "." + part[1] + "." + part[2], jose.ErrMalformed},
		{"detached", part[0] + ".." + part[2], jose.ErrMalformed},
		{"padding", part[0] + "=." + part[1] + "." + part[2], jose.ErrMalformed},
		{"standard alphabet", strings.Replace(token, ".", ".+", 1), jose.ErrMalformed},
		{"line break", token[:10] + "\n" + token[10:], jose.ErrMalformed},
		{"line break at the end", token + "\r\n", jose.ErrMalformed},
		{"space before", " " + token, jose.ErrMalformed},
		{"left-over bits", spelling, jose.ErrMalformed},
		{"JSON form", `{"payload":"a.b.c"}`, jose.ErrMalformed},
		{"too long", token + strings.Repeat("A", 8192), jose.ErrTooLong},
		{"payload of another", part[0] + "." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"sub":"spiffe://td/b","aud":"orders","exp":%d}`, noon().Unix()+60)) + "." + part[2], jose.ErrSignature},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, _, err := jose.VerifySVID(tt.token, "orders", bundles, noon()); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// The bundle must be the subject's own, whatever the look-up returns.
func TestBundleOfAnotherTrustDomain(t *testing.T) {
	t.Parallel()
	always := func(identity.TrustDomain) *identity.Bundle { return bundles(id("spiffe://td").TrustDomain()) }
	token := must(jose.SignSVID(ecKey(), "ec", id("spiffe://other/a"), []string{"orders"}, noon(), noon().Add(time.Minute)))
	if _, _, err := jose.VerifySVID(token, "orders", always, noon()); !errors.Is(err, jose.ErrUntrusted) {
		t.Errorf("got %v", err)
	}
}

func TestMarshalBundle(t *testing.T) {
	t.Parallel()
	td := id("spiffe://td").TrustDomain()
	out := must(jose.MarshalBundle(&identity.Bundle{TrustDomain: td, JWTKeys: map[string]crypto.PublicKey{
		"b": ecKey().Public(), "a": rsaKey().Public(),
	}}))
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(out, &set); err != nil {
		t.Fatal(err)
	}
	if len(set.Keys) != 2 || set.Keys[0]["kid"] != "a" || set.Keys[0]["kty"] != "RSA" || set.Keys[1]["kid"] != "b" || set.Keys[1]["kty"] != "EC" {
		t.Fatalf("got %s", out)
	}
	for _, k := range set.Keys {
		if k["use"] != "jwt-svid" || k["d"] != nil || k["x5c"] != nil {
			t.Errorf("got %v", k)
		}
	}
	if out := must(jose.MarshalBundle(&identity.Bundle{TrustDomain: td})); string(out) != `{"keys":[]}` {
		t.Errorf("no keys: %s", out)
	}
	for name, bad := range map[string]map[string]crypto.PublicKey{
		"no kid": {"": ecKey().Public()}, "weak": {"w": weakKey()}, "private": {"p": ecKey()},
	} {
		if out, err := jose.MarshalBundle(&identity.Bundle{TrustDomain: td, JWTKeys: bad}); err == nil {
			t.Errorf("%s: got %s", name, out)
		}
	}
}

// RFC 7638 section 3.1 has an RSA key and its thumbprint.
func TestKeyID(t *testing.T) {
	t.Parallel()
	n := new(rsa.PublicKey)
	n.E = 65537
	n.N = bigInt("0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw")
	if got := must(jose.KeyID(n)); got != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" {
		t.Errorf("got %q", got)
	}
	if _, err := jose.KeyID("no key"); err == nil {
		t.Error("a text has a key id")
	}
}

// FuzzVerifySVID: nothing panics, and nothing that was not signed is accepted.
func FuzzVerifySVID(f *testing.F) {
	good := signed(f)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(compact(`{"alg":"none"}`, `{}`, es256(otherKey())))
	f.Add("..")
	f.Add("eyJ.eyJ.eyJ")
	f.Fuzz(func(t *testing.T, token string) {
		got, _, err := jose.VerifySVID(token, "orders", bundles, noon())
		if err == nil && token != good {
			t.Fatalf("accepted as %q", got)
		}
		if err != nil && !got.IsZero() {
			t.Fatalf("%q beside %v", got, err)
		}
	})
}

// FuzzVerifyPayload: a payload that is signed is read without panic, and what is
// accepted has the three claims in the standard library's reading too.
func FuzzVerifyPayload(f *testing.F) {
	f.Add(fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d}`, noon().Unix()+60))
	f.Add(`{"sub":"spiffe://td/a","aud":["orders"],"exp":1e10,"nbf":0}`)
	f.Add(`{"sub":null,"aud":[[]],"exp":{}}`)
	f.Fuzz(func(t *testing.T, payload string) {
		got, _, err := jose.VerifySVID(compact(`{"alg":"ES256","kid":"ec"}`, payload, es256(ecKey())), "orders", bundles, noon())
		if err != nil {
			return
		}
		var c struct {
			Sub string   `json:"sub"`
			Exp *float64 `json:"exp"`
		}
		if json.Unmarshal([]byte(payload), &c) != nil || c.Exp == nil || *c.Exp <= float64(noon().Unix()) || !strings.HasPrefix(got.String(), "spiffe://td/") {
			t.Fatalf("%s accepted as %q", payload, got)
		}
	})
}

func BenchmarkVerifySVID(b *testing.B) {
	token := signed(b)
	bundle := bundles(id("spiffe://td").TrustDomain())
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := jose.VerifySVID(token, "orders", func(identity.TrustDomain) *identity.Bundle { return bundle }, noon()); err != nil {
			b.Fatal(err)
		}
	}
}

// A signer signs the input of a JWS without any library's opinion of its header.
type signer func(input []byte) []byte

func es256(key *ecdsa.PrivateKey) signer {
	return func(input []byte) []byte {
		sum := sha256.Sum256(input)
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			panic(err)
		}
		sig := make([]byte, 64)
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
		return sig
	}
}

func rs256(input []byte) []byte {
	sum := sha256.Sum256(input)
	return must(rsa.SignPKCS1v15(rand.Reader, rsaKey(), crypto.SHA256, sum[:]))
}

func ps256(salt int) signer {
	return func(input []byte) []byte {
		sum := sha256.Sum256(input)
		return must(rsa.SignPSS(rand.Reader, rsaKey(), crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: salt}))
	}
}

func compact(head, payload string, sign signer) string {
	input := base64.RawURLEncoding.EncodeToString([]byte(head)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return input + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(input)))
}

func bigInt(s string) *big.Int {
	return new(big.Int).SetBytes(must(base64.RawURLEncoding.DecodeString(s)))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
