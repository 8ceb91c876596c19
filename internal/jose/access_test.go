package jose_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

// claims are a good token's, with changes; nil takes a claim away.
func claims(changes ...any) string {
	c := map[string]any{
		"iss": "https://id.example", "sub": "alice", "aud": "orders", "client_id": "shop", "scope": "orders.read orders.write",
		"exp": noon().Unix() + 60, "iat": noon().Unix(), "nbf": noon().Unix(),
	}
	for i := 0; i < len(changes); i += 2 {
		if c[changes[i].(string)] = changes[i+1]; changes[i+1] == nil {
			delete(c, changes[i].(string))
		}
	}
	return string(must(json.Marshal(c)))
}

func issuer(t testing.TB, change func(*jose.Rules)) *jose.Issuer {
	t.Helper()
	r := rules()
	if change != nil {
		change(&r)
	}
	i, _, err := jose.NewIssuer(r, jwks(ecJWK("ec", "P-256", &ecKey().PublicKey), rsaJWK("rsa", rsaKey().N), edJWK("ed")))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func verifyAt(i *jose.Issuer, token string, now time.Time) (*jose.Verified, error) {
	c, err := jose.Read(token)
	if err != nil {
		return nil, err
	}
	v, err := i.Verify(c)
	if err != nil {
		return nil, err
	}
	return v, i.InTime(v, now)
}

const goodHead = `{"alg":"ES256","kid":"ec","typ":"at+jwt"}`

func eddsa(input []byte) []byte { return ed25519.Sign(edKey(), input) }

// hs256 is the old trick: a public key as the secret of an HMAC.
func hs256(secret []byte) signer {
	return func(input []byte) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write(input)
		return m.Sum(nil)
	}
}

func TestAccessToken(t *testing.T) {
	t.Parallel()
	got, err := verifyAt(issuer(t, nil), compact(goodHead, claims(), es256(ecKey())), noon())
	if err != nil {
		t.Fatal(err)
	}
	want := identity.Token{
		Issuer: "https://id.example", Subject: "alice", ClientID: "shop", Audiences: []string{"orders"},
		Scopes: []string{"orders.read", "orders.write"}, Expires: noon().Add(time.Minute),
	}
	if diff := cmp.Diff(want, got.Token, cmp.Comparer(time.Time.Equal)); diff != "" {
		t.Error(diff)
	}
	if n := got.Size(); n < 64 || n > 1024 {
		t.Errorf("it keeps %d bytes", n)
	}
}

func TestAccessHeader(t *testing.T) {
	t.Parallel()
	ec := es256(ecKey())
	public := must(ecKey().PublicKey.Bytes())
	for name, tt := range map[string]struct {
		head string
		sign signer
		want error
	}{
		"ES256":               {goodHead, ec, nil},
		"RS256":               {`{"alg":"RS256","kid":"rsa","typ":"JWT"}`, rs256, nil},
		"EdDSA":               {`{"alg":"EdDSA","kid":"ed","typ":"JWT"}`, eddsa, nil},
		"media type":          {`{"alg":"ES256","kid":"ec","typ":"application/at+JWT"}`, ec, nil},
		"typ in small":        {`{"alg":"ES256","kid":"ec","typ":"jwt"}`, ec, nil},
		"x5t and others":      {`{"alg":"ES256","kid":"ec","typ":"JWT","x5t":"abc","nonce":"x"}`, ec, nil},
		"no typ":              {`{"alg":"ES256","kid":"ec"}`, ec, jose.ErrType},
		"typ absent":          {`{"alg":"ES256","kid":"ec","typ":""}`, ec, jose.ErrType},
		"logout token":        {`{"alg":"ES256","kid":"ec","typ":"logout+jwt"}`, ec, jose.ErrType},
		"proof":               {`{"alg":"ES256","kid":"ec","typ":"dpop+jwt"}`, ec, jose.ErrType},
		"typ is a number":     {`{"alg":"ES256","kid":"ec","typ":1}`, ec, jose.ErrTokenHeader},
		"none":                {`{"alg":"none","kid":"ec","typ":"JWT"}`, ec, jose.ErrAlgorithm},
		"None":                {`{"alg":"None","kid":"ec","typ":"JWT"}`, ec, jose.ErrAlgorithm},
		"HS256":               {`{"alg":"HS256","kid":"ec","typ":"JWT"}`, hs256(public), jose.ErrAlgorithm},
		"HS256 with RSA":      {`{"alg":"HS256","kid":"rsa","typ":"JWT"}`, hs256(rsaKey().N.Bytes()), jose.ErrAlgorithm},
		"PS256 of RS256 key":  {`{"alg":"PS256","kid":"rsa","typ":"JWT"}`, ps256(32), jose.ErrAlgorithm},
		"ES384":               {`{"alg":"ES384","kid":"ec","typ":"JWT"}`, ec, jose.ErrAlgorithm},
		"no alg":              {`{"kid":"ec","typ":"JWT"}`, ec, jose.ErrTokenHeader},
		"alg twice":           {`{"alg":"none","alg":"ES256","kid":"ec","typ":"JWT"}`, ec, jose.ErrTokenHeader},
		"alg in capitals":     {`{"ALG":"ES256","kid":"ec","typ":"JWT"}`, ec, jose.ErrTokenHeader},
		"no kid":              {`{"alg":"ES256","typ":"JWT"}`, ec, jose.ErrTokenHeader},
		"empty kid":           {`{"alg":"ES256","kid":"","typ":"JWT"}`, ec, jose.ErrTokenHeader},
		"kid is a list":       {`{"alg":"ES256","kid":["ec"],"typ":"JWT"}`, ec, jose.ErrTokenHeader},
		"kid twice":           {`{"alg":"ES256","kid":"x","kid":"ec","typ":"JWT"}`, ec, jose.ErrTokenHeader},
		"kid of a path":       {`{"alg":"ES256","kid":"../../ec","typ":"JWT"}`, ec, jose.ErrNoKey},
		"kid of SQL":          {`{"alg":"ES256","kid":"x' UNION SELECT 'ec","typ":"JWT"}`, ec, jose.ErrNoKey},
		"kid with a space":    {`{"alg":"ES256","kid":"ec ","typ":"JWT"}`, ec, jose.ErrNoKey},
		"kid in capitals":     {`{"alg":"ES256","kid":"EC","typ":"JWT"}`, ec, jose.ErrNoKey},
		"kid of another":      {`{"alg":"ES256","kid":"rsa","typ":"JWT"}`, ec, jose.ErrAlgorithm},
		"jku":                 {`{"alg":"ES256","kid":"ec","typ":"JWT","jku":"https://id.example/jwks"}`, ec, jose.ErrTokenHeader},
		"x5u":                 {`{"alg":"ES256","kid":"ec","typ":"JWT","x5u":"https://evil.example"}`, ec, jose.ErrTokenHeader},
		"x5c":                 {`{"alg":"ES256","kid":"ec","typ":"JWT","x5c":[]}`, ec, jose.ErrTokenHeader},
		"jwk":                 {`{"alg":"ES256","kid":"ec","typ":"JWT","jwk":` + string(must(json.Marshal(ecJWK("ec", "P-256", &otherKey().PublicKey)))) + `}`, es256(otherKey()), jose.ErrTokenHeader},
		"crit":                {`{"alg":"ES256","kid":"ec","typ":"JWT","crit":["exp"],"exp":1}`, ec, jose.ErrTokenHeader},
		"b64":                 {`{"alg":"ES256","kid":"ec","typ":"JWT","b64":false}`, ec, jose.ErrTokenHeader},
		"nested":              {`{"alg":"ES256","kid":"ec","typ":"JWT","cty":"JWT"}`, ec, jose.ErrTokenHeader},
		"compressed":          {`{"alg":"ES256","kid":"ec","typ":"JWT","zip":"DEF"}`, ec, jose.ErrTokenHeader},
		"enc":                 {`{"alg":"ES256","kid":"ec","typ":"JWT","enc":"A256GCM"}`, ec, jose.ErrTokenHeader},
		"no object":           {`"ES256"`, ec, jose.ErrTokenHeader},
		"signed by another":   {goodHead, es256(otherKey()), jose.ErrSignature},
		"signed by nobody":    {goodHead, func([]byte) []byte { return make([]byte, 64) }, jose.ErrSignature},
		"signature cut short": {goodHead, func(in []byte) []byte { return ec(in)[:63] }, jose.ErrSignature},
		"signature in DER":    {goodHead, func(in []byte) []byte { return append(ec(in), 0) }, jose.ErrSignature},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, err := verifyAt(issuer(t, nil), compact(tt.head, claims(), tt.sign), noon())
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) || (err == nil) != (v != nil) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	absent := issuer(t, func(r *jose.Rules) { r.Types = []string{jose.TypeAbsent} })
	if _, err := verifyAt(absent, compact(`{"alg":"ES256","kid":"ec"}`, claims(), ec), noon()); err != nil {
		t.Errorf("without a typ, where that is accepted: %v", err)
	}
	if _, err := verifyAt(absent, compact(`{"alg":"ES256","kid":"ec","typ":"absent"}`, claims(), ec), noon()); err == nil {
		t.Error("a type called absent passes for none")
	}
}

func TestAccessForm(t *testing.T) {
	t.Parallel()
	good := compact(goodHead, claims(), es256(ecKey()))
	part := strings.Split(good, ".")
	for name, tt := range map[string]struct {
		token string
		want  error
	}{
		"empty":                {"", jose.ErrMalformed},
		"two parts":            {part[0] + "." + part[1], jose.ErrMalformed},
		"no signature":         {part[0] + "." + part[1] + ".", jose.ErrMalformed},
		"encrypted":            {good + ".AAAA.AAAA", jose.ErrMalformed},
		"nested":               {compact(goodHead, good, es256(ecKey())), jose.ErrTokenClaims},
		"JSON":                 {`{"payload":"` + part[1] + `","protected":"` + part[0] + `","signature":"` + part[2] + `"}`, jose.ErrMalformed},
		"padded":               {good + "=", jose.ErrMalformed},
		"line break":           {good[:20] + "\n" + good[20:], jose.ErrMalformed},
		"space":                {good + " ", jose.ErrMalformed},
		"other bits":           {good[:len(good)-1] + flip(good[len(good)-1]), jose.ErrMalformed},
		"too long":             {part[0] + "." + part[1] + strings.Repeat("A", 8192) + "." + part[2], jose.ErrTooLong},
		"payload changed":      {part[0] + "." + b64([]byte(claims("sub", "admin"))) + "." + part[2], jose.ErrSignature},
		"header changed":       {b64([]byte(`{"alg":"ES256","kid":"ec","typ":"JWT"}`)) + "." + part[1] + "." + part[2], jose.ErrSignature},
		"ten thousand dots":    {strings.Repeat(".", 8000), jose.ErrMalformed},
		"deep":                 {b64([]byte(strings.Repeat(`{"a":`, 1000))) + "." + part[1] + "." + part[2], jose.ErrTokenHeader},
		"claims are not UTF-8": {compact(goodHead, "{\"iss\":\"https://id.example\",\"x\":\"\xff\"}", es256(ecKey())), jose.ErrTokenClaims},
	} {
		if _, err := verifyAt(issuer(t, nil), tt.token, noon()); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

// flip is another character that decodes to the same bits at a signature's end.
func flip(last byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, last)|1])
}

func TestAccessClaims(t *testing.T) {
	t.Parallel()
	later := noon().Unix() + 60
	for name, tt := range map[string]struct {
		payload string
		want    error
	}{
		"least":               {claims("client_id", nil, "scope", nil, "iat", nil, "nbf", nil), nil},
		"audiences":           {claims("aud", []string{"x", "orders"}), nil},
		"azp":                 {claims("client_id", nil, "azp", "shop"), nil},
		"scp":                 {claims("scope", nil, "scp", []string{"a", "b"}), nil},
		"scp as text":         {claims("scope", nil, "scp", "a b"), nil},
		"more claims":         {claims("jti", "x", "roles", []any{map[string]any{"a": 1}}), nil},
		"other issuer":        {claims("iss", "https://id.example/"), jose.ErrIssuer},
		"issuer in capitals":  {claims("iss", "HTTPS://ID.EXAMPLE"), jose.ErrIssuer},
		"no iss":              {claims("iss", nil), jose.ErrTokenClaims},
		"iss is a list":       {claims("iss", []string{"https://id.example"}), jose.ErrTokenClaims},
		"iss twice":           {strings.Replace(claims(), `{`, `{"iss":"https://evil.example",`, 1), jose.ErrTokenClaims},
		"no sub":              {claims("sub", nil), jose.ErrTokenClaims},
		"empty sub":           {claims("sub", ""), jose.ErrTokenClaims},
		"sub is a number":     {claims("sub", 7), jose.ErrTokenClaims},
		"sub of two lines":    {claims("sub", "alice\nroot"), jose.ErrTokenClaims},
		"sub with an escape":  {claims("sub", "\x1b[2Jalice"), jose.ErrTokenClaims},
		"half a surrogate":    {strings.Replace(claims(), `"alice"`, `"alice\ud800"`, 1), jose.ErrTokenClaims},
		"sub twice":           {strings.Replace(claims(), `{`, `{"sub":"root",`, 1), jose.ErrTokenClaims},
		"sub by escape twice": {strings.Replace(claims(), `{`, `{"\u0073ub":"root",`, 1), jose.ErrTokenClaims},
		"client is a number":  {claims("client_id", 1), jose.ErrTokenClaims},
		"no aud":              {claims("aud", nil), jose.ErrTokenClaims},
		"aud null":            {strings.Replace(claims(), `"aud":"orders"`, `"aud":null`, 1), jose.ErrTokenClaims},
		"aud empty":           {claims("aud", []string{}), jose.ErrTokenClaims},
		"aud with nothing":    {claims("aud", []string{"orders", ""}), jose.ErrTokenClaims},
		"aud empty text":      {claims("aud", ""), jose.ErrTokenClaims},
		"aud is an object":    {claims("aud", map[string]string{"orders": "orders"}), jose.ErrTokenClaims},
		"no exp":              {claims("exp", nil), jose.ErrTokenClaims},
		"exp null":            {strings.Replace(claims(), fmt.Sprintf(`"exp":%d`, later), `"exp":null`, 1), jose.ErrTokenClaims},
		"exp is text":         {claims("exp", fmt.Sprint(later)), jose.ErrTokenClaims},
		"exp huge":            {claims("exp", 1e300), jose.ErrTokenClaims},
		"exp negative":        {claims("exp", -1), jose.ErrTokenClaims},
		"exp twice":           {strings.Replace(claims("exp", noon().Unix()-1), `{`, fmt.Sprintf(`{"exp":%d,`, later), 1), jose.ErrTokenClaims},
		"expired":             {claims("exp", noon().Unix()), jose.ErrExpired},
		"not yet":             {claims("nbf", noon().Unix()+1), jose.ErrNotYet},
		"nbf is text":         {claims("nbf", "x"), jose.ErrTokenClaims},
		"issued later":        {claims("iat", noon().Unix()+1), jose.ErrNotYet},
		"iat is text":         {claims("iat", "x"), jose.ErrTokenClaims},
		"scope and scp":       {claims("scp", []string{"admin"}), jose.ErrTokenClaims},
		"scope is a number":   {claims("scope", 7), jose.ErrTokenClaims},
		"scope with null":     {claims("scope", []any{"a", nil}), jose.ErrTokenClaims},
		"bound":               {claims("cnf", map[string]string{"jkt": "x"}), jose.ErrBound},
		"bound to a cert":     {claims("cnf", map[string]string{"x5t#S256": "x"}), jose.ErrBound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := verifyAt(issuer(t, nil), compact(goodHead, tt.payload, es256(ecKey())), noon())
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	for text, want := range map[string][]string{
		`"a b"`: {"a", "b"}, `""`: {}, `["a b","c"]`: {"a b", "c"}, `[]`: {},
	} {
		v, err := verifyAt(issuer(t, nil), compact(goodHead, claims("scope", json.RawMessage(text)), es256(ecKey())), noon())
		if err != nil || cmp.Diff(want, v.Scopes) != "" {
			t.Errorf("scope %s gives %v, %v", text, v, err)
		}
	}
}

func TestAccessTimes(t *testing.T) {
	t.Parallel()
	skewed := issuer(t, func(r *jose.Rules) { r.Skew, r.MaxAge = 30*time.Second, 5*time.Minute })
	token := compact(goodHead, claims("exp", noon().Unix()+3600), es256(ecKey()))
	for name, tt := range map[string]struct {
		after time.Duration
		want  error
	}{
		"early by less":  {-30 * time.Second, nil},
		"early by more":  {-31 * time.Second, jose.ErrNotYet},
		"old":            {5*time.Minute + 30*time.Second, nil},
		"older":          {5*time.Minute + 31*time.Second, jose.ErrTooOld},
		"past its end":   {time.Hour + 30*time.Second, jose.ErrExpired},
		"far beyond all": {1000 * time.Hour, jose.ErrExpired},
	} {
		if _, err := verifyAt(skewed, token, noon().Add(tt.after)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if _, err := verifyAt(skewed, compact(goodHead, claims("iat", nil), es256(ecKey())), noon()); !errors.Is(err, jose.ErrTokenClaims) {
		t.Errorf("no iat where the age counts: %v", err)
	}
}

func TestSignAccess(t *testing.T) {
	t.Parallel()
	want := identity.Token{
		Issuer: "https://id.example", Subject: "alice", ClientID: "shop", Audiences: []string{"orders", "x"},
		Scopes: []string{"a", "b"}, Expires: noon().Add(time.Minute),
	}
	token, err := jose.SignAccess(ecKey(), "ec", want, noon())
	if err != nil {
		t.Fatal(err)
	}
	i, _, err := jose.NewIssuer(rules(), must(jose.MarshalKey("ec", &ecKey().PublicKey)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := verifyAt(i, token, noon())
	if err != nil || cmp.Diff(want, got.Token, cmp.Comparer(time.Time.Equal)) != "" {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, change := range map[string]func(*identity.Token){
		"no issuer":   func(t *identity.Token) { t.Issuer = "" },
		"no subject":  func(t *identity.Token) { t.Subject = "" },
		"no client":   func(t *identity.Token) { t.ClientID = "" },
		"no audience": func(t *identity.Token) { t.Audiences = nil },
		"no life":     func(t *identity.Token) { t.Expires = noon() },
	} {
		bad := want
		change(&bad)
		if token, err := jose.SignAccess(ecKey(), "ec", bad, noon()); !errors.Is(err, jose.ErrTokenClaims) || token != "" {
			t.Errorf("%s: %q, %v", name, token, err)
		}
	}
	if _, err := jose.SignAccess(rsaKey(), "ec", want, noon()); !errors.Is(err, jose.ErrAlgorithm) {
		t.Errorf("RSA: %v", err)
	}
}

// TestSVIDHasNoEdDSA: a key of Ed25519 is one for access tokens and none of SPIFFE.
func TestSVIDHasNoEdDSA(t *testing.T) {
	t.Parallel()
	b := bundles(id("spiffe://td").TrustDomain())
	b.JWTKeys = maps.Clone(b.JWTKeys)
	b.JWTKeys["ed"] = edKey().Public()
	token := compact(`{"alg":"EdDSA","kid":"ed"}`, fmt.Sprintf(`{"sub":"spiffe://td/a","aud":"orders","exp":%d}`, noon().Unix()+60), eddsa)
	if _, _, err := jose.VerifySVID(token, "orders", func(identity.TrustDomain) *identity.Bundle { return b }, noon()); !errors.Is(err, jose.ErrWeakKey) {
		t.Errorf("verified: %v", err)
	}
	delete(b.JWTKeys, "weak")
	if _, err := jose.MarshalBundle(b); !errors.Is(err, jose.ErrWeakKey) {
		t.Errorf("published: %v", err)
	}
}

// FuzzRead: no token panics, and nothing that was not signed is accepted.
func FuzzRead(f *testing.F) {
	good := compact(goodHead, claims(), es256(ecKey()))
	i := issuer(f, nil)
	f.Add(good)
	f.Add(good + ".AAAA.AAAA")
	f.Add(compact(`{"alg":"none","kid":"ec"}`, claims(), hs256(nil)))
	f.Add(compact(`{"alg":"HS256","kid":"rsa"}`, claims(), hs256([]byte("x"))))
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		if v, err := verifyAt(i, token, noon()); err == nil && token != good {
			t.Fatalf("accepted as %q", v.Subject)
		}
	})
}

// FuzzAccessPayload: claims that are signed are read without panic, and what is
// accepted is what the standard library reads too.
func FuzzAccessPayload(f *testing.F) {
	i := issuer(f, nil)
	f.Add(claims())
	f.Add(claims("aud", []string{"a", "b"}, "scp", []string{"x"}, "scope", nil))
	f.Add(`{"iss":"https://id.example","sub":null,"aud":[[]],"exp":{}}`)
	f.Fuzz(func(t *testing.T, payload string) {
		v, err := verifyAt(i, compact(goodHead, payload, es256(ecKey())), noon())
		if err != nil {
			return
		}
		var c map[string]any
		if json.Unmarshal([]byte(payload), &c) != nil || c["iss"] != v.Issuer || c["sub"] != v.Subject || c["cnf"] != nil || len(v.Audiences) == 0 || !v.Expires.After(noon()) {
			t.Fatalf("%s accepted as %+v", payload, v)
		}
	})
}

func BenchmarkVerifyAccess(b *testing.B) {
	i, token := issuer(b, nil), compact(goodHead, claims(), es256(ecKey()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := verifyAt(i, token, noon()); err != nil {
			b.Fatal(err)
		}
	}
}
