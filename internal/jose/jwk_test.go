package jose_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/parleymesh/parley/internal/jose"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// A jwk is a key with what a test changes of it; nil takes a member away.
type jwk map[string]any

func (k jwk) with(changes ...any) jwk {
	out := jwk{}
	for name, v := range k {
		out[name] = v
	}
	for i := 0; i < len(changes); i += 2 {
		if out[changes[i].(string)] = changes[i+1]; changes[i+1] == nil {
			delete(out, changes[i].(string))
		}
	}
	return out
}

func ecJWK(kid, crv string, pub *ecdsa.PublicKey) jwk {
	point := must(pub.Bytes())[1:]
	return jwk{"kty": "EC", "kid": kid, "crv": crv, "x": b64(point[:len(point)/2]), "y": b64(point[len(point)/2:]), "use": "sig"}
}

func rsaJWK(kid string, n *big.Int) jwk {
	return jwk{"kty": "RSA", "kid": kid, "n": b64(n.Bytes()), "e": "AQAB", "use": "sig"}
}

var edKey = sync.OnceValue(func() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(make([]byte, 32)) })

func edJWK(kid string) jwk {
	return jwk{"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": b64(edKey().Public().(ed25519.PublicKey))}
}

func jwks(keys ...jwk) []byte { return must(json.Marshal(map[string]any{"keys": keys})) }

// rules accept everything that can be accepted.
func rules() jose.Rules {
	return jose.Rules{Issuer: "https://id.example", Algorithms: jose.Algorithms(), Types: []string{jose.TypeAccess, jose.TypeJWT}}
}

func TestAdmittedKeys(t *testing.T) {
	t.Parallel()
	ec, rs := ecJWK("k", "P-256", &ecKey().PublicKey), rsaJWK("k", rsaKey().N)
	for name, tt := range map[string]struct {
		key  jwk
		want string // a part of why it is refused, empty where it is not
	}{
		"EC":                  {ec, ""},
		"P-384":               {ecJWK("k", "P-384", &p384Key().PublicKey), ""},
		"RSA":                 {rs, ""},
		"Ed25519":             {edJWK("k"), ""},
		"no use":              {ec.with("use", nil), ""},
		"for verifying":       {ec.with("key_ops", []string{"verify"}), ""},
		"unknown members":     {ec.with("x5t", "abc", "x5c", []string{"MII"}, "exp", 1), ""},
		"PS256":               {rs.with("alg", "PS256"), ""},
		"for encryption":      {ec.with("use", "enc"), "use"},
		"use in capitals":     {ec.with("use", "SIG"), "use"},
		"for deriving":        {ec.with("use", nil, "key_ops", []string{"deriveKey"}), "key_ops"},
		"for more":            {ec.with("key_ops", []string{"verify", "decrypt"}), "key_ops"},
		"key_ops is text":     {ec.with("key_ops", "verify"), "key_ops"},
		"key_ops is empty":    {ec.with("key_ops", []string{}), "key_ops"},
		"private":             {ec.with("d", "AQ"), "private"},
		"private RSA":         {rs.with("p", "AQ"), "private"},
		"symmetric":           {jwk{"kty": "oct", "kid": "k", "k": "c2VjcmV0"}, "private or symmetric"},
		"symmetric, no value": {jwk{"kty": "oct", "kid": "k"}, "type"},
		"no kid":              {ec.with("kid", nil), "kid"},
		"empty kid":           {ec.with("kid", ""), "kid"},
		"kid is a number":     {ec.with("kid", 7), "kid"},
		"long kid":            {ec.with("kid", strings.Repeat("k", 257)), "kid"},
		"kty in small":        {ec.with("kty", "ec"), "type"},
		"other curve":         {ec.with("crv", "secp256k1"), "curve"},
		"crv of another":      {ec.with("crv", "P-384"), "length"},
		"off the curve":       {ec.with("y", ec["x"]), "not on the curve"},
		"short coordinate":    {ec.with("x", "AQ"), "length"},
		"padded":              {ec.with("x", ec["x"].(string)+"="), "base64url"},
		"line break":          {ec.with("x", ec["x"].(string)[:4]+"\n"+ec["x"].(string)[4:]), "base64url"},
		"ordinary base64":     {rs.with("n", "+/"+rs["n"].(string)[2:]), "base64url"},
		"no x":                {ec.with("x", nil), "x is not"},
		"alg of HMAC":         {rs.with("alg", "HS256"), "HS256"},
		"alg none":            {rs.with("alg", "none"), "none"},
		"alg of another type": {rs.with("alg", "ES256"), "ES256"},
		"alg of encryption":   {rs.with("alg", "RSA-OAEP"), "RSA-OAEP"},
		"RSA of 1024 bits":    {rsaJWK("k", weakKey().N), "1024 bits"},
		"RSA of 16384 bits":   {rsaJWK("k", new(big.Int).SetBit(new(big.Int).Lsh(rsaKey().N, 16384-2048), 0, 1)), "16384 bits"},
		"even modulus":        {rsaJWK("k", new(big.Int).Sub(rsaKey().N, big.NewInt(1))), "weak"},
		"small factor":        {rsaJWK("k", new(big.Int).Mul(rsaKey().N, big.NewInt(3))), "weak"},
		"ROCA":                {rsaJWK("k", rocaModulus()), "ROCA"},
		"exponent 3":          {rs.with("e", "Aw"), "exponent"},
		"even exponent":       {rs.with("e", b64([]byte{2, 0, 0})), "exponent"},
		"huge exponent":       {rs.with("e", b64(make([]byte, 200))), "zero byte"},
		"exponent of 40 bits": {rs.with("e", b64([]byte{1, 0, 0, 0, 1})), "exponent"},
		"zero before n":       {rs.with("n", b64(append([]byte{0}, rsaKey().N.Bytes()...))), "zero byte"},
		"Ed448":               {edJWK("k").with("crv", "Ed448"), "Ed25519"},
		"X25519":              {edJWK("k").with("crv", "X25519"), "Ed25519"},
		"short Ed25519":       {edJWK("k").with("x", "AQ"), "32 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Beside another key, so that one that is refused leaves a usable set.
			i, refused, err := jose.NewIssuer(rules(), jwks(tt.key, ecJWK("other", "P-256", &otherKey().PublicKey)))
			if err != nil {
				t.Fatal(err)
			}
			if admitted := slices.Contains(i.KeyIDs(), "k"); admitted != (tt.want == "") {
				t.Errorf("admitted %t; refused %v", admitted, refused)
			}
			if tt.want == "" {
				return
			}
			if len(refused) != 1 || !strings.Contains(refused[0].String(), tt.want) {
				t.Errorf("refused %v, want one for %q", refused, tt.want)
			}
			if _, _, err := jose.NewIssuer(rules(), jwks(tt.key)); !errors.Is(err, jose.ErrKeySet) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("alone: %v", err)
			}
		})
	}
}

func TestKeySets(t *testing.T) {
	t.Parallel()
	a, b := ecJWK("k", "P-256", &ecKey().PublicKey), ecJWK("k", "P-256", &otherKey().PublicKey)
	one := string(must(json.Marshal(a)))
	many := make([]jwk, 101)
	for i := range many {
		many[i] = a.with("kid", fmt.Sprint(i))
	}
	for name, tt := range map[string]struct {
		set  string
		want bool
	}{
		"one":            {`{"keys":[` + one + `]}`, true},
		"other members":  {`{"keys":[` + one + `],"issuer":7}`, true},
		"empty":          {`{"keys":[]}`, false},
		"none":           {`{}`, false},
		"null":           {`{"keys":null}`, false},
		"an object":      {`{"keys":` + one + `}`, false},
		"a list":         {`[` + one + `]`, false},
		"a bare key":     {one, false},
		"keys twice":     {`{"keys":[` + one + `],"keys":[` + one + `]}`, false},
		"Keys":           {`{"Keys":[` + one + `]}`, false},
		"member twice":   {`{"keys":[` + strings.Replace(one, `{`, `{"kid":"x",`, 1) + `]}`, false},
		"no key":         {`{"keys":["k"]}`, false},
		"two values":     {`{"keys":[` + one + `]}{}`, false},
		"HTML":           {`<html>`, false},
		"nothing":        {``, false},
		"too many":       {string(jwks(many...)), false},
		"too long":       {`{"keys":[` + one + `]` + strings.Repeat(" ", jose.MaxKeySet) + `}`, false},
		"same kid":       {string(jwks(a, b)), false},
		"same key twice": {string(jwks(a, a)), false},
	} {
		if _, _, err := jose.NewIssuer(rules(), []byte(tt.set)); (err == nil) != tt.want || err != nil && !errors.Is(err, jose.ErrKeySet) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Those that share a kid are left out, whatever their number; others stay.
	i, refused, err := jose.NewIssuer(rules(), jwks(a, b, a, edJWK("e"), a.with("kid", "k2"), a.with("use", "enc")))
	if err != nil || !slices.Equal(i.KeyIDs(), []string{"e", "k2"}) || len(refused) != 2 {
		t.Errorf("got %v, %v", refused, err)
	}
}

// TestOneAlgorithmAKey: what the set does not say follows from the type and from
// the issuer's list, and is one algorithm only.
func TestOneAlgorithmAKey(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		allowed string
		key     jwk
		alg     string
		want    error
	}{
		{"", rsaJWK("rsa", rsaKey().N), "RS256", nil},
		{"", rsaJWK("rsa", rsaKey().N), "PS256", jose.ErrAlgorithm},
		{"PS256 RS256", rsaJWK("rsa", rsaKey().N), "PS256", nil},
		{"PS256 RS256", rsaJWK("rsa", rsaKey().N), "RS256", jose.ErrAlgorithm},
		{"", rsaJWK("rsa", rsaKey().N).with("alg", "PS256"), "PS256", nil},
		{"", rsaJWK("rsa", rsaKey().N).with("alg", "PS256"), "RS256", jose.ErrAlgorithm},
	} {
		r := rules()
		if tt.allowed != "" {
			r.Algorithms = strings.Fields(tt.allowed)
		}
		i, _, err := jose.NewIssuer(r, jwks(tt.key))
		if err != nil {
			t.Fatal(err)
		}
		sign := map[string]signer{"RS256": rs256, "PS256": ps256(32)}[tt.alg]
		_, err = verifyAt(i, compact(`{"alg":"`+tt.alg+`","kid":"rsa","typ":"JWT"}`, claims(), sign), noon())
		if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%s of %q with alg %v: %v, want %v", tt.alg, tt.allowed, tt.key["alg"], err, tt.want)
		}
	}
	r := rules()
	r.Algorithms = []string{"ES256"}
	if _, refused, err := jose.NewIssuer(r, jwks(rsaJWK("rsa", rsaKey().N), edJWK("ed"))); err == nil || len(refused) != 2 {
		t.Errorf("keys of types that are not on the list: %v, %v", refused, err)
	}
}

// rocaModulus is of two primes as the broken library made them: k*M + 65537^a mod M.
func rocaModulus() *big.Int {
	m := big.NewInt(2)
	for p := int64(3); p <= 701; p += 2 { // the first 126 primes, as for 2048 bits
		if big.NewInt(p).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(p))
		}
	}
	room := new(big.Int).Lsh(big.NewInt(1), uint(1024-m.BitLen()))
	prime := func() *big.Int {
		for {
			k, a := must(rand.Int(rand.Reader, room)), must(rand.Int(rand.Reader, m))
			k.SetBit(k, room.BitLen()-2, 1)
			p := new(big.Int).Exp(big.NewInt(65537), a, m)
			if p.Add(p, k.Mul(k, m)); p.BitLen() == 1024 && p.ProbablyPrime(1) {
				return p
			}
		}
	}
	for {
		if n := new(big.Int).Mul(prime(), prime()); n.BitLen() >= 2047 {
			if n.BitLen() == 2048 {
				return n
			}
		}
	}
}

func TestReadMetadata(t *testing.T) {
	t.Parallel()
	const issuer = "https://id.example"
	for text, want := range map[string]string{
		`{"issuer":"https://id.example","jwks_uri":"https://id.example/jwks","more":[{}]}`: "https://id.example/jwks",
		`{"issuer":"https://id.example/","jwks_uri":"https://id.example/jwks"}`:            "",
		`{"issuer":"https://evil.example","jwks_uri":"x"}`:                                 "",
		`{"jwks_uri":"x"}`:                                                                  "",
		`{"issuer":"https://id.example"}`:                                                   "",
		`{"issuer":"https://id.example","jwks_uri":7}`:                                      "",
		`{"issuer":"https://id.example","jwks_uri":""}`:                                     "",
		`{"issuer":"https://evil.example","issuer":"https://id.example","jwks_uri":"x"}`:    "",
		`{"issuer":"https://id.example","jwks_uri":"https://id.example","jwks_uri":"evil"}`: "",
		`{"Issuer":"https://id.example","jwks_uri":"x"}`:                                    "",
		`[]`: "",
		``:   "",
	} {
		if got, err := jose.ReadMetadata([]byte(text), issuer); got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, jose.ErrMetadata) {
			t.Errorf("%s gives %q, %v", text, got, err)
		}
	}
}

// FuzzReadMetadata: nothing panics, and what is read is of the issuer.
func FuzzReadMetadata(f *testing.F) {
	f.Add([]byte(`{"issuer":"https://id.example","jwks_uri":"https://id.example/jwks"}`))
	f.Add([]byte(`{"issuer":"https://id.example","issuer":"x","jwks_uri":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := jose.ReadMetadata(data, "https://id.example")
		var lax map[string]any
		if err == nil && (got == "" || json.Unmarshal(data, &lax) != nil || lax["issuer"] != "https://id.example" || lax["jwks_uri"] != got) {
			t.Fatalf("%q gives %q", data, got)
		}
	})
}

// FuzzKeySet: nothing panics, and what is admitted has one usable algorithm.
func FuzzKeySet(f *testing.F) {
	f.Add(jwks(ecJWK("k", "P-256", &ecKey().PublicKey), rsaJWK("r", rsaKey().N), edJWK("e")))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AQ","kid":"k"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"EC","kid":"k","crv":"P-256","x":"","y":""}]}`))
	f.Add([]byte(`{"keys":[{"kid":"k","kty":"RSA","n":"AQ","e":"AQAB"}],"keys":[]}`))
	f.Fuzz(func(t *testing.T, set []byte) {
		i, _, err := jose.NewIssuer(rules(), set)
		if (err == nil) != (i != nil) {
			t.Fatalf("%v beside %v", i, err)
		}
		if err != nil {
			return
		}
		var lax struct {
			Keys []struct {
				Kid string `json:"kid"`
			} `json:"keys"`
		}
		if json.Unmarshal(set, &lax) != nil || len(lax.Keys) < len(i.KeyIDs()) || len(i.KeyIDs()) == 0 {
			t.Fatalf("%q gives %v", set, i.KeyIDs())
		}
	})
}
