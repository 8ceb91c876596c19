package interop

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// A provider is npm's oidc-provider, a certified OpenID provider, as a process.
type provider struct {
	t      *testing.T
	url    string
	ca     string // the file of its certificate
	key    string
	client *http.Client
	cmd    *exec.Cmd
	stdin  io.Closer
}

// newProvider has a certificate and an address, and does not run.
func newProvider(t *testing.T) *provider {
	t.Helper()
	if _, err := os.Stat("oidc/node_modules/oidc-provider/package.json"); err != nil {
		t.Fatal("oidc-provider is not installed; .ci/run installs the peers: npm ci --prefix interop/oidc")
	}
	dir := shortDir(t)
	p := &provider{t: t, url: "https://" + freeAddress(t), ca: filepath.Join(dir, "ca.pem"), key: filepath.Join(dir, "key.pem")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{p.ca: {Type: "CERTIFICATE", Bytes: der}, p.key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.client = httpsClient(t, p.ca)
	t.Cleanup(p.stop)
	return p
}

// httpsClient trusts the roots of a file.
func httpsClient(t *testing.T, roots string) *http.Client {
	t.Helper()
	text, err := os.ReadFile(roots)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
}

// start runs it with new keys, named by their algorithm and a suffix.
func (p *provider) start(suffix string) {
	p.t.Helper()
	kids := map[string]string{}
	for _, alg := range []string{"ES256", "RS256", "PS256", "EdDSA"} {
		kids[alg] = alg + suffix
	}
	text, err := json.Marshal(kids)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(need(p.t, "node"), "provider.mjs")
	p.cmd.Dir = "oidc"
	p.cmd.Env = append(os.Environ(), "ISSUER="+p.url, "CERT="+p.ca, "KEY="+p.key, "KEYS="+string(text))
	var said bytes.Buffer
	p.cmd.Stderr = &said
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		_ = p.cmd.Wait()
		p.t.Fatalf("oidc-provider said %q, %v\n%s", line, err, said.String())
	}
}

func (p *provider) stop() {
	if p.cmd == nil {
		return
	}
	p.stdin.Close()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// token is one that the provider issues to its client: for a service, by an
// algorithm, good for so many seconds.
func (p *provider) token(service, alg string, ttl int, scope string) string {
	p.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {fmt.Sprintf("https://%s.example/%s/%d", service, alg, ttl)}, "scope": {scope}}
	req, err := http.NewRequest("POST", p.url+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		p.t.Fatal(err)
	}
	req.SetBasicAuth("shop", "canary-secret")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var said struct {
		AccessToken string `json:"access_token"`
	}
	if text := p.answer(req); json.Unmarshal(text, &said) != nil || said.AccessToken == "" {
		p.t.Fatalf("the provider said %s", text)
	}
	return said.AccessToken
}

// made is what the provider's own key signs beside what it issues.
func (p *provider) made(what map[string]any) string {
	p.t.Helper()
	text, err := json.Marshal(what)
	if err != nil {
		p.t.Fatal(err)
	}
	req, err := http.NewRequest("POST", p.url+"/made", bytes.NewReader(text))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(p.answer(req))
}

func (p *provider) answer(req *http.Request) []byte {
	p.t.Helper()
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s: %s %v\n%s", req.URL, resp.Status, err, text)
	}
	return text
}

const tokenMesh = `
trust_domain: interop.example
services:
  site:
    runs_as: {user: root}
    inbound: {listen: %[1]q, app: %[2]q}
issuers:
  idp: {issuer: %[4]q, private_hosts: [127.0.0.1], ca: %[5]q, clock_skew: 0s, max_stale: 1m}
gateway:
  edge:
    listen: %[3]q
    tls: {mesh_ca: {hosts: [127.0.0.1]}}
    routes:
      - to: site
        require: {any: [{jwt: {issuer: idp, audience: orders, scopes: [orders.read]}}]}
`

// A tokenEdge is a gateway that lets the provider's tokens in to nginx.
type tokenEdge struct {
	*running
	client *http.Client
	url    string
	asked  int
}

func startTokenEdge(t *testing.T, p *provider) *tokenEdge {
	t.Helper()
	edge := freeAddress(t)
	r := start(t, fmt.Sprintf(tokenMesh, freeAddress(t), startNginx(t), edge, p.url, p.ca))
	return &tokenEdge{running: r, client: httpsClient(t, filepath.Join(r.dir, "data", "ca.pem")), url: "https://" + edge}
}

// ask calls through the gateway and returns the status, the challenge, and the
// event of the call.
func (e *tokenEdge) ask(token string) (status int, challenge string, event *audit.Event) {
	e.t.Helper()
	e.asked++
	id := fmt.Sprintf("oidc-%d", e.asked)
	req, err := http.NewRequest("GET", e.url+"/"+id, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("X-Request-Id", id)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := e.client.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if strings.Contains(string(body), "nginx saw") != (resp.StatusCode == http.StatusOK) {
		e.t.Errorf("%s with the body %s", resp.Status, body)
	}
	for _, found := range e.events(1, api.ListEventsParams{RequestID: id}) {
		if found.Call.End == "edge" {
			event = found
		}
	}
	if event == nil {
		e.t.Fatalf("no event of %s", id)
	}
	return resp.StatusCode, resp.Header.Get("WWW-Authenticate"), event
}

func TestTokensOfARealProvider(t *testing.T) {
	p := newProvider(t)
	p.start("-1")
	e := startTokenEdge(t, p)
	for _, alg := range []string{"ES256", "RS256", "PS256", "EdDSA"} {
		token := p.token("orders", alg, 60, "orders.read orders.write")
		for range 2 { // seen before, the second time
			status, _, event := e.ask(token)
			c := event.Caller
			if status != http.StatusOK || c.Issuer != p.url || c.ClientID != "shop" || event.Subject() == "" || c.Audience != "orders" || c.Scopes != "orders.read orders.write" {
				t.Errorf("%s: %d, recorded %s of %+v", alg, status, event.Reason, c)
			}
		}
	}
	good := p.token("orders", "ES256", 60, "orders.read")
	const realm, invalid, insufficient = `Bearer realm="parley"`, `Bearer realm="parley", error="invalid_token"`, `Bearer realm="parley", error="insufficient_scope"`
	for name, tt := range twins(t, p, good) {
		status, challenge, event := e.ask(tt.token)
		want, wantChallenge := http.StatusUnauthorized, invalid
		switch tt.reason {
		case "scope_missing":
			want, wantChallenge = http.StatusForbidden, insufficient
		case "no_credential":
			wantChallenge = realm
		case "allowed":
			want, wantChallenge = http.StatusOK, ""
		}
		if status != want || challenge != wantChallenge || event.Reason != tt.reason {
			t.Errorf("%s: %d %q, recorded %s (%s); want %s", name, status, challenge, event.Reason, event.Message, tt.reason)
		}
		if said, err := e.parley("why", event.ID); (err == nil) != (tt.reason == "allowed") || !strings.Contains(said, tt.reason) && tt.reason != "allowed" && tt.reason != "no_credential" && tt.reason != "scope_missing" && tt.reason != "jwt_audience" {
			t.Errorf("%s: parley why: %v\n%s", name, err, said)
		}
	}
	e.noCanary(good)
}

// A twin is a token that is nearly a good one.
type twin struct{ token, reason string }

// twins are what is made of a good token, without its key and with it.
func twins(t *testing.T, p *provider, good string) map[string]twin {
	t.Helper()
	part := strings.Split(good, ".")
	head, claims := decoded(t, part[0]), decoded(t, part[1])
	// changed is the good token with other bytes and the old signature, or one of
	// whoever has read the public key.
	changed := func(head, claims map[string]any, sign func(input string) []byte) string {
		input := encoded(t, head) + "." + encoded(t, claims)
		if sign == nil {
			return input + "." + part[2]
		}
		return input + "." + base64.RawURLEncoding.EncodeToString(sign(input))
	}
	with := func(m map[string]any, change map[string]any) map[string]any {
		out := maps.Clone(m)
		maps.Copy(out, change)
		return out
	}
	thief, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stolen := func(input string) []byte {
		sum := sha256.Sum256([]byte(input))
		r, s, err := ecdsa.Sign(rand.Reader, thief, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	point, err := thief.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	jwk := map[string]any{
		"kty": "EC", "crv": "P-256", "kid": head["kid"],
		"x": base64.RawURLEncoding.EncodeToString(point[1:33]), "y": base64.RawURLEncoding.EncodeToString(point[33:]),
	}
	public := p.answer(must(http.NewRequest("GET", p.url+"/jwks", nil)))
	hmacOf := func(input string) []byte {
		m := hmac.New(sha256.New, public)
		m.Write([]byte(input))
		return m.Sum(nil)
	}
	twice := func(text, extra string) string {
		return base64.RawURLEncoding.EncodeToString([]byte("{" + extra + "," + text[1:]))
	}
	rawHead, rawClaims := text64(t, part[0]), text64(t, part[1])
	all := map[string]twin{
		"the good one":                  {good, "allowed"},
		"alg none":                      {changed(with(head, map[string]any{"alg": "none"}), claims, nil), "jwt_algorithm"},
		"alg none, no signature":        {encoded(t, with(head, map[string]any{"alg": "none"})) + "." + part[1] + ".", "jwt_malformed"},
		"HS256 with the public keys":    {changed(with(head, map[string]any{"alg": "HS256"}), claims, hmacOf), "jwt_algorithm"},
		"another key":                   {changed(head, claims, stolen), "jwt_signature"},
		"another key, brought along":    {changed(with(head, map[string]any{"jwk": jwk}), claims, stolen), "jwt_header"},
		"another key, fetched":          {changed(with(head, map[string]any{"jku": p.url + "/jwks"}), claims, stolen), "jwt_header"},
		"another key, by certificate":   {changed(with(head, map[string]any{"x5u": "https://evil.example/x"}), claims, stolen), "jwt_header"},
		"another audience":              {changed(head, with(claims, map[string]any{"aud": []string{"orders", "billing"}}), nil), "jwt_signature"},
		"a later end":                   {changed(head, with(claims, map[string]any{"exp": 4102444800}), nil), "jwt_signature"},
		"more scopes":                   {changed(head, with(claims, map[string]any{"scope": "orders.read admin"}), nil), "jwt_signature"},
		"another type":                  {changed(with(head, map[string]any{"typ": "JWT"}), claims, nil), "jwt_signature"},
		"a type that is no token's":     {changed(with(head, map[string]any{"typ": "dpop+jwt"}), claims, nil), "jwt_type"},
		"kid of another key":            {changed(with(head, map[string]any{"kid": "RS256-1"}), claims, nil), "jwt_algorithm"},
		"kid of no key":                 {changed(with(head, map[string]any{"kid": "ES256-1 "}), claims, nil), "jwt_key_unknown"},
		"kid of a file":                 {changed(with(head, map[string]any{"kid": "../../../dev/null"}), claims, stolen), "jwt_key_unknown"},
		"kid of SQL":                    {changed(with(head, map[string]any{"kid": "x' UNION SELECT 'key"}), claims, stolen), "jwt_key_unknown"},
		"no kid":                        {changed(map[string]any{"alg": "ES256", "typ": "at+jwt"}, claims, nil), "jwt_header"},
		"alg twice":                     {twice(rawHead, `"alg":"none"`) + "." + part[1] + "." + part[2], "jwt_header"},
		"kid twice":                     {twice(rawHead, `"kid":"x"`) + "." + part[1] + "." + part[2], "jwt_header"},
		"sub twice":                     {part[0] + "." + twice(rawClaims, `"sub":"admin"`) + "." + part[2], "jwt_claims"},
		"another issuer":                {changed(head, with(claims, map[string]any{"iss": p.url + "/"}), nil), "jwt_issuer"},
		"cut":                           {good[:len(good)-2], "jwt_signature"}, // whole bytes of it
		"padded":                        {good + "=", "jwt_malformed"},
		"an opaque one of the provider": {p.token("orders", "opaque", 60, "orders.read"), "jwt_malformed"},
		"for another service":           {p.token("billing", "ES256", 60, "orders.read"), "jwt_audience"},
		"without the scope":             {p.token("orders", "ES256", 60, "orders.write"), "scope_missing"},
	}
	maps.Copy(all, honest(t, p, claims))
	return all
}

// honest are bad tokens that are signed with the provider's own key.
func honest(t *testing.T, p *provider, claims map[string]any) map[string]twin {
	t.Helper()
	with := func(change map[string]any) map[string]any {
		out := maps.Clone(claims)
		for name, v := range change {
			if out[name] = v; v == nil {
				delete(out, name)
			}
		}
		return out
	}
	sign := func(header map[string]any, payload map[string]any) string {
		return p.made(map[string]any{"alg": "ES256", "header": header, "payload": payload})
	}
	now := time.Now().Unix()
	soon := p.token("orders", "ES256", 1, "orders.read")
	time.Sleep(1100 * time.Millisecond)
	return map[string]twin{
		"signed, and as good":      {sign(nil, claims), "allowed"},
		"issued, and expired":      {soon, "jwt_expired"},
		"signed, expired":          {sign(nil, with(map[string]any{"exp": now - 1})), "jwt_expired"},
		"signed, not yet":          {sign(nil, with(map[string]any{"nbf": now + 60})), "jwt_not_yet"},
		"signed, from the future":  {sign(nil, with(map[string]any{"iat": now + 60})), "jwt_not_yet"},
		"signed, no end":           {sign(nil, with(map[string]any{"exp": nil})), "jwt_claims"},
		"signed, no audience":      {sign(nil, with(map[string]any{"aud": nil})), "jwt_claims"},
		"signed, other audience":   {sign(nil, with(map[string]any{"aud": []string{"order", "orders2"}})), "jwt_audience"},
		"signed, one of several":   {sign(nil, with(map[string]any{"aud": []string{"x", "orders"}})), "allowed"},
		"signed, no subject":       {sign(nil, with(map[string]any{"sub": nil})), "jwt_claims"},
		"signed, no type":          {sign(map[string]any{"typ": nil}, claims), "jwt_type"},
		"signed, a logout token":   {sign(map[string]any{"typ": "logout+jwt"}, claims), "jwt_type"},
		"signed, critical":         {sign(map[string]any{"exp": 1, "crit": []string{"exp"}}, claims), "jwt_header"},
		"signed, a JWT inside":     {sign(map[string]any{"cty": "JWT"}, claims), "jwt_header"},
		"signed, bound to a proof": {sign(nil, with(map[string]any{"cnf": map[string]any{"jkt": "x"}})), "jwt_bound"},
		"encrypted":                {p.made(map[string]any{"alg": "ES256", "payload": claims, "encrypt": true}), "jwt_malformed"},
	}
}

// TestProviderThatGoesAndReturns: keys that change, keys that cannot be loaded,
// and a gateway that never had any.
func TestProviderThatGoesAndReturns(t *testing.T) {
	p := newProvider(t)
	p.start("-1")
	e := startTokenEdge(t, p)
	status := func(when, token string, want int, reason string) {
		t.Helper()
		if got, _, event := e.ask(token); got != want || event.Reason != reason {
			t.Errorf("%s: %d, recorded %s; want %d %s", when, got, event.Reason, want, reason)
		}
	}
	old := p.token("orders", "ES256", 600, "orders.read")
	status("with its provider", old, http.StatusOK, "allowed")
	p.stop()
	status("its provider gone, seen before", old, http.StatusOK, "allowed")
	// A load for an unknown kid is due ten seconds after the last one.
	time.Sleep(10 * time.Second)
	p.start("-2")
	fresh := p.token("orders", "RS256", 600, "orders.read")
	status("a new key", fresh, http.StatusOK, "allowed")
	status("the key that is gone", old, http.StatusUnauthorized, "jwt_key_unknown")
	p.stop()
	// Nothing but the data directory's history is left of a gateway that restarts.
	e.running.stop()
	e.launch()
	status("no keys since the start", fresh, http.StatusServiceUnavailable, "jwks_unavailable")
	if said, err := e.parley("status"); err != nil || !strings.Contains(said, "issuer idp") {
		t.Errorf("parley status: %v\n%s", err, said)
	}
	p.start("-3")
	again := p.token("orders", "EdDSA", 600, "orders.read")
	e.until("the keys are loaded", func() bool {
		got, _, _ := e.ask(again)
		return got == http.StatusOK
	})
	e.noCanary(old)
	e.noCanary(fresh)
}

// noCanary looks for parts of a token in everything that Parley wrote.
func (e *tokenEdge) noCanary(token string) {
	e.t.Helper()
	for _, event := range e.list(api.ListEventsParams{}) {
		text, err := audit.Encode(nil, event)
		if err != nil {
			e.t.Fatal(err)
		}
		for part := range strings.SplitSeq(token, ".") {
			if bytes.Contains(text, []byte(part)) {
				e.t.Errorf("a part of the token is in %s", text)
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func text64(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func decoded(t *testing.T, s string) (out map[string]any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text64(t, s)))
	d.UseNumber()
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func encoded(t *testing.T, m map[string]any) string {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}
