package jose_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
)

// gateway is a gateway's credential.
func gateway(t testing.TB) *identity.Credential {
	t.Helper()
	return mtlstest.NewCA(t, "td").CredentialFor(t, id("spiffe://td/gateway/edge"), time.Hour)
}

func keyHolder() identity.Caller {
	return identity.Caller{KeyID: "4fG7hJ9kLmN0", KeyName: "ci", Scopes: []string{"orders.read", "two words"}}
}

func alice() identity.Caller {
	return identity.Caller{Token: &identity.Token{Issuer: "https://id.example", Subject: "alice", ClientID: "shop", Scopes: []string{"<a>&b"}, Audiences: []string{"orders"}}}
}

func introduce(c identity.Caller) *jose.Identity {
	return &jose.Identity{
		Issuer: id("spiffe://td/gateway/edge"), Audience: id("spiffe://td/orders"), Caller: c, Revision: 7,
		Issued: noon(), Expires: noon().Add(time.Minute),
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	own := gateway(t)
	both := alice()
	both.KeyID, both.KeyName, both.Scopes = keyHolder().KeyID, keyHolder().KeyName, keyHolder().Scopes
	for name, tt := range map[string]struct {
		caller identity.Caller
		claims string
	}{
		"API key": {keyHolder(), `"sub":"api_key:4fG7hJ9kLmN0","aud":"spiffe://td/orders","iat":1772366400,"exp":1772366460,"revision":7,"api_key":{"id":"4fG7hJ9kLmN0","name":"ci","scopes":["orders.read","two words"]}}`},
		"token":   {alice(), `"sub":"https://id.example#alice","aud":"spiffe://td/orders","iat":1772366400,"exp":1772366460,"revision":7,"jwt":{"issuer":"https://id.example","subject":"alice","client_id":"shop","scopes":["<a>&b"]}}`},
		"both":    {both, `"sub":"https://id.example#alice","aud":"spiffe://td/orders","iat":1772366400,"exp":1772366460,"revision":7,"api_key":{"id":"4fG7hJ9kLmN0","name":"ci","scopes":["orders.read","two words"]},"jwt":{"issuer":"https://id.example","subject":"alice","client_id":"shop","scopes":["<a>&b"]}}`},
	} {
		token, err := jose.SignIdentity(own, introduce(tt.caller))
		if err != nil {
			t.Fatal(err)
		}
		part := strings.Split(token, ".")
		sum := sha256.Sum256(own.Chain[0].Raw)
		head := fmt.Sprintf(`{"alg":"ES256","typ":"parley-identity+jwt","x5t#S256":%q}`, base64.RawURLEncoding.EncodeToString(sum[:]))
		if got := string(must(base64.RawURLEncoding.DecodeString(part[0]))); got != head {
			t.Errorf("%s: the header is %s", name, got)
		}
		if got := string(must(base64.RawURLEncoding.DecodeString(part[1]))); got != `{"iss":"spiffe://td/gateway/edge",`+tt.claims {
			t.Errorf("%s: the claims are %s", name, got)
		}
		got, err := jose.VerifyIdentity(token, own.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		want := introduce(tt.caller)
		if want.Caller.Token != nil {
			told := *want.Caller.Token
			told.Audiences, told.Expires = nil, want.Expires
			want.Caller.Token = &told
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(time.Time.Equal), cmp.Comparer(func(a, b identity.ID) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if err := got.Holds(own.ID, id("spiffe://td/orders"), noon()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestIdentitySubjectsAreApart: sub alone tells callers apart.
func TestIdentitySubjectsAreApart(t *testing.T) {
	t.Parallel()
	own := gateway(t)
	seen := map[string]bool{}
	for _, c := range []identity.Caller{
		{KeyID: "k"},
		{KeyID: "K"},
		{Token: &identity.Token{Issuer: "https://a.example", Subject: "k"}},
		{Token: &identity.Token{Issuer: "https://b.example", Subject: "k"}},
		{Token: &identity.Token{Issuer: "https://a.example", Subject: "api_key:k"}},
		{Token: &identity.Token{Issuer: "https://a.example/x", Subject: "y#k"}},
	} {
		token := must(jose.SignIdentity(own, introduce(c)))
		var claims struct{ Sub string }
		if err := json.Unmarshal(must(base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])), &claims); err != nil || seen[claims.Sub] {
			t.Errorf("%+v is %q, like another, or %v", c, claims.Sub, err)
		}
		seen[claims.Sub] = true
	}
}

func TestIdentityHolds(t *testing.T) {
	t.Parallel()
	i := introduce(keyHolder())
	for name, tt := range map[string]struct {
		from, to string
		after    time.Duration
		want     error
	}{
		"in time":           {after: 59 * time.Second},
		"within the skew":   {after: 89 * time.Second},
		"expired":           {after: 90 * time.Second, want: jose.ErrExpired},
		"ahead by the skew": {after: -30 * time.Second},
		"not yet":           {after: -31 * time.Second, want: jose.ErrNotYet},
		"other service":     {to: "spiffe://td/billing", want: jose.ErrAudience},
		"other gateway":     {from: "spiffe://td/gateway/other", want: jose.ErrIssuer},
		"other domain":      {from: "spiffe://other/gateway/edge", want: jose.ErrIssuer},
	} {
		from, to := i.Issuer, i.Audience
		if tt.from != "" {
			from = id(tt.from)
		}
		if tt.to != "" {
			to = id(tt.to)
		}
		if err := i.Holds(from, to, noon().Add(tt.after)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

// TestLongIdentity: scopes give way before a token becomes too long for the header
// of an application, and names that are too long make none.
func TestLongIdentity(t *testing.T) {
	t.Parallel()
	own := gateway(t)
	for n, omitted := range map[int]bool{0: false, 100: false, 400: true, 4000: true} {
		c := alice()
		c.KeyID, c.Scopes = "k", []string{"a"}
		c.Token.Scopes = strings.Fields(strings.Repeat("shop.read ", n))
		token, err := jose.SignIdentity(own, introduce(c))
		if err != nil || len(token) > 4096 {
			t.Fatalf("%d scopes: %d bytes, %v", n, len(token), err)
		}
		got, err := jose.VerifyIdentity(token, own.Chain[0])
		if err != nil || got.ScopesOmitted != omitted || omitted && len(got.Caller.Scopes)+len(got.Caller.Token.Scopes) > 0 || !omitted && len(got.Caller.Token.Scopes) != n {
			t.Errorf("%d scopes: %+v, %v", n, got, err)
		}
		if len(c.Token.Scopes) != n {
			t.Error("the caller's own scopes are gone")
		}
	}
	worst := alice()
	worst.Token.Issuer = "https://" + strings.Repeat("i", jose.MaxName-8)
	worst.Token.Subject, worst.Token.ClientID = strings.Repeat(`"`, jose.MaxName), strings.Repeat(`\`, jose.MaxName)
	if token, err := jose.SignIdentity(own, introduce(worst)); err != nil {
		t.Errorf("names of the longest that the edge accepts: %v", err)
	} else if _, err := jose.VerifyIdentity(token, own.Chain[0]); err != nil {
		t.Error(err)
	}
	worst.Token.Subject = strings.Repeat("s", 4000)
	if _, err := jose.SignIdentity(own, introduce(worst)); !errors.Is(err, jose.ErrTooLong) {
		t.Errorf("longer ones: %v", err)
	}
}

func TestSignIdentityRefuses(t *testing.T) {
	t.Parallel()
	own := gateway(t)
	for name, tt := range map[string]struct {
		change func(*jose.Identity)
		want   error
	}{
		"nobody":         {func(i *jose.Identity) { i.Caller = identity.Caller{} }, jose.ErrIdentityClaims},
		"another issuer": {func(i *jose.Identity) { i.Issuer = id("spiffe://td/gateway/other") }, jose.ErrIdentityClaims},
		"no audience":    {func(i *jose.Identity) { i.Audience = identity.ID{} }, jose.ErrIdentityClaims},
		"ended":          {func(i *jose.Identity) { i.Expires = i.Issued }, jose.ErrIdentityClaims},
		"too long":       {func(i *jose.Identity) { i.Expires = i.Issued.Add(61 * time.Second) }, jose.ErrIdentityClaims},
	} {
		i := introduce(keyHolder())
		tt.change(i)
		if token, err := jose.SignIdentity(own, i); token != "" || !errors.Is(err, tt.want) {
			t.Errorf("%s: %q, %v", name, token, err)
		}
	}
	weak := *own
	weak.Key = p384Key()
	if _, err := jose.SignIdentity(&weak, introduce(keyHolder())); !errors.Is(err, jose.ErrAlgorithm) {
		t.Errorf("another curve: %v", err)
	}
}

// TestForgedIdentity: what is not signed with the leaf's key, exactly as it has to
// be, is refused for what it is.
func TestForgedIdentity(t *testing.T) {
	t.Parallel()
	own, other := gateway(t), gateway(t)
	leaf := own.Chain[0]
	key, _ := own.Key.(*ecdsa.PrivateKey)
	sum, otherSum := sha256.Sum256(leaf.Raw), sha256.Sum256(other.Chain[0].Raw)
	x5t := `"x5t#S256":"` + base64.RawURLEncoding.EncodeToString(sum[:]) + `"`
	good := `{"alg":"ES256","typ":"parley-identity+jwt",` + x5t + `}`
	times := `"iat":1772366400,"exp":1772366460`
	names := `"iss":"spiffe://td/gateway/edge","aud":"spiffe://td/orders"`
	caller := `"sub":"api_key:k","api_key":{"id":"k","name":"ci"}`
	body := `{` + names + `,` + times + `,` + caller + `}`
	ec := es256(key)
	for name, tt := range map[string]struct {
		head, body string
		sign       signer
		want       error
	}{
		"good":                  {good, body, ec, nil},
		"unknown claim":         {good, `{"new":{"a":1},` + body[1:], ec, nil},
		"none":                  {`{"alg":"none","typ":"parley-identity+jwt",` + x5t + `}`, body, ec, jose.ErrAlgorithm},
		"HS256":                 {`{"alg":"HS256","typ":"parley-identity+jwt",` + x5t + `}`, body, hs256(must(key.PublicKey.Bytes())), jose.ErrAlgorithm},
		"HS256 as ES256":        {good, body, hs256(leaf.Raw), jose.ErrSignature},
		"ES384":                 {`{"alg":"ES384","typ":"parley-identity+jwt",` + x5t + `}`, body, es256(key), jose.ErrAlgorithm},
		"unsigned":              {good, body, func([]byte) []byte { return nil }, jose.ErrMalformed},
		"other key":             {good, body, es256(otherKey()), jose.ErrSignature},
		"other leaf":            {strings.Replace(good, base64.RawURLEncoding.EncodeToString(sum[:]), base64.RawURLEncoding.EncodeToString(otherSum[:]), 1), body, ec, jose.ErrOtherLeaf},
		"no thumbprint":         {`{"alg":"ES256","typ":"parley-identity+jwt"}`, body, ec, jose.ErrIdentityHeader},
		"thumbprint in hex":     {strings.Replace(good, base64.RawURLEncoding.EncodeToString(sum[:]), identity.Fingerprint(leaf), 1), body, ec, jose.ErrOtherLeaf},
		"access token":          {`{"alg":"ES256","typ":"at+jwt",` + x5t + `}`, body, ec, jose.ErrIdentityHeader},
		"JWT":                   {`{"alg":"ES256","typ":"JWT",` + x5t + `}`, body, ec, jose.ErrIdentityHeader},
		"no typ":                {`{"alg":"ES256",` + x5t + `}`, body, ec, jose.ErrIdentityHeader},
		"brings a key":          {good[:len(good)-1] + `,"jwk":{}}`, body, ec, jose.ErrIdentityHeader},
		"kid":                   {good[:len(good)-1] + `,"kid":"k"}`, body, ec, jose.ErrIdentityHeader},
		"crit":                  {good[:len(good)-1] + `,"crit":["exp"]}`, body, ec, jose.ErrIdentityHeader},
		"alg twice":             {`{"alg":"none",` + good[1:], body, ec, jose.ErrIdentityHeader},
		"alg in capitals":       {`{"ALG":"ES256","typ":"parley-identity+jwt",` + x5t + `}`, body, ec, jose.ErrAlgorithm},
		"alg is a list":         {`{"alg":["ES256"],"typ":"parley-identity+jwt",` + x5t + `}`, body, ec, jose.ErrIdentityHeader},
		"sub twice":             {good, `{"sub":"api_key:k",` + body[1:], ec, jose.ErrIdentityClaims},
		"id twice":              {good, strings.Replace(body, `{"id"`, `{"id":"root","id"`, 1), ec, jose.ErrIdentityClaims},
		"other sub":             {good, strings.Replace(body, "api_key:k", "api_key:root", 1), ec, jose.ErrIdentityClaims},
		"no sub":                {good, strings.Replace(body, `"sub":"api_key:k",`, "", 1), ec, jose.ErrIdentityClaims},
		"no caller":             {good, `{` + names + `,` + times + `,"sub":"api_key:"}`, ec, jose.ErrIdentityClaims},
		"nobody's key":          {good, strings.NewReplacer(`"id":"k"`, `"id":""`, "api_key:k", "api_key:").Replace(body), ec, jose.ErrIdentityClaims},
		"key is text":           {good, `{` + names + `,` + times + `,"sub":"api_key:k","api_key":"k"}`, ec, jose.ErrIdentityClaims},
		"scopes are text":       {good, strings.Replace(body, `"name"`, `"scopes":"a b","name"`, 1), ec, jose.ErrIdentityClaims},
		"a scope is null":       {good, strings.Replace(body, `"name"`, `"scopes":[null],"name"`, 1), ec, jose.ErrIdentityClaims},
		"subject with newline":  {good, `{` + names + `,` + times + `,"sub":"https://i#a\nb","jwt":{"issuer":"https://i","subject":"a\nb"}}`, ec, jose.ErrIdentityClaims},
		"no exp":                {good, strings.Replace(body, `,"exp":1772366460`, "", 1), ec, jose.ErrIdentityClaims},
		"exp is text":           {good, strings.Replace(body, `1772366460`, `"1772366460"`, 1), ec, jose.ErrIdentityClaims},
		"for ever":              {good, strings.Replace(body, `1772366460`, `1872366460`, 1), ec, jose.ErrIdentityClaims},
		"two audiences":         {good, strings.Replace(body, `"spiffe://td/orders"`, `["spiffe://td/orders","spiffe://td/billing"]`, 1), ec, jose.ErrIdentityClaims},
		"audience is no ID":     {good, strings.Replace(body, `spiffe://td/orders`, `orders`, 1), ec, jose.ErrIdentityClaims},
		"issuer is the domain":  {good, strings.Replace(body, `spiffe://td/gateway/edge`, `spiffe://td`, 1), ec, jose.ErrIdentityClaims},
		"revision is text":      {good, `{"revision":"7",` + body[1:], ec, jose.ErrIdentityClaims},
		"scopes_omitted is no":  {good, `{"scopes_omitted":false,` + body[1:], ec, jose.ErrIdentityClaims},
		"claims are a list":     {good, `[` + body + `]`, ec, jose.ErrIdentityClaims},
		"more than one object":  {good, body + body, ec, jose.ErrIdentityClaims},
		"claims are not UTF-8":  {good, strings.Replace(body, `"ci"`, "\"\xff\"", 1), ec, jose.ErrIdentityClaims},
		"name is half a letter": {good, strings.Replace(body, `"ci"`, `"\ud800"`, 1), ec, jose.ErrIdentityClaims},
	} {
		if got, err := jose.VerifyIdentity(compact(tt.head, tt.body, tt.sign), leaf); !errors.Is(err, tt.want) || (got == nil) != (err != nil) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	token := compact(good, body, ec)
	for name, bad := range map[string]string{
		"empty": "", "two parts": token[:strings.LastIndexByte(token, '.')], "five parts": token + ".a.a", "padding": token + "=",
		"line break": token[:20] + "\n" + token[20:], "two of them": token + "," + token, "too long": token + strings.Repeat("A", 8192),
	} {
		if got, err := jose.VerifyIdentity(bad, leaf); got != nil || err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	// Other tokens that the same key signs are none.
	if _, err := jose.VerifyIdentity(must(jose.SignSVID(own.Key, "k", id("spiffe://td/a"), []string{"spiffe://td/orders"}, noon(), noon().Add(time.Minute))), leaf); !errors.Is(err, jose.ErrIdentityHeader) {
		t.Errorf("a JWT-SVID: %v", err)
	}
	// A leaf of another algorithm vouches for nothing.
	strange := &x509.Certificate{Raw: leaf.Raw, PublicKey: &p384Key().PublicKey}
	if _, err := jose.VerifyIdentity(token, strange); !errors.Is(err, jose.ErrAlgorithm) {
		t.Errorf("a leaf of P-384: %v", err)
	}
}

// TestIdentityIsNoAccessToken: what a gateway signs is not a token that a gateway
// or the Workload API would take.
func TestIdentityIsNoAccessToken(t *testing.T) {
	t.Parallel()
	token := must(jose.SignIdentity(gateway(t), introduce(alice())))
	if _, err := jose.Read(token); err == nil {
		t.Error("it is read as an access token")
	}
	if _, _, err := jose.VerifySVID(token, "spiffe://td/orders", bundles, noon()); !errors.Is(err, jose.ErrHeader) {
		t.Errorf("as a JWT-SVID: %v", err)
	}
}

func FuzzVerifyIdentity(f *testing.F) {
	own := gateway(f)
	good := must(jose.SignIdentity(own, introduce(alice())))
	key, _ := own.Key.(*ecdsa.PrivateKey)
	part := strings.Split(good, ".")
	head, body := string(must(base64.RawURLEncoding.DecodeString(part[0]))), string(must(base64.RawURLEncoding.DecodeString(part[1])))
	f.Add(head, body)
	f.Add(head, `{"iss":"spiffe://td/gateway/edge","sub":"api_key:k","aud":"spiffe://td/orders","iat":1,"exp":2,"api_key":{"id":"k","name":"n","scopes":["a"]}}`)
	f.Add(`{"alg":"none"}`, `{}`)
	sign := sync.OnceValue(func() signer { return es256(key) })
	f.Fuzz(func(t *testing.T, head, body string) {
		// Signed, so that what is behind the signature is reached too.
		token := compact(head, body, sign())
		i, err := jose.VerifyIdentity(token, own.Chain[0])
		if (i == nil) != (err != nil) {
			t.Fatalf("%v and %v", i, err)
		}
		if err != nil {
			if len(body) > 20 && strings.Contains(err.Error(), body) {
				t.Fatalf("the error repeats the token: %v", err)
			}
			return
		}
		if i.Caller.IsZero() || i.Issuer.IsZero() || i.Audience.IsZero() || !i.Issued.Before(i.Expires) || i.Expires.Sub(i.Issued) > jose.IdentityLife {
			t.Fatalf("accepted %+v", i)
		}
	})
}
