package proxy_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/mtls"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A desk is a real gate with what it recorded.
type desk struct {
	*gate.Gate
	mu     sync.Mutex // guards events
	events []*audit.Event
}

// Record implements gate.Recorder.
func (d *desk) Record(e *audit.Event) error {
	body, err := audit.Encode(nil, e)
	if err != nil {
		return err
	}
	kept, err := audit.Decode(body)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, kept)
	return nil
}

// last is the newest event, once there are n.
func (d *desk) last(t *testing.T, n int) *audit.Event {
	t.Helper()
	for range 400 {
		d.mu.Lock()
		if len(d.events) >= n {
			defer d.mu.Unlock()
			return d.events[n-1]
		}
		d.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("no event %d", n)
	return nil
}

func (d *desk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.events)
}

// idp is an issuer with one key.
type idp struct {
	key    *ecdsa.PrivateKey
	issuer *jose.Issuer
}

const idpURL = "https://id.example"

func (p *idp) Issuer(url string) (*jose.Issuer, error) {
	if url != idpURL {
		return nil, errors.New("another issuer")
	}
	return p.issuer, nil
}

func (p *idp) Newer(url string, _ *jose.Issuer) (*jose.Issuer, error) { return p.Issuer(url) }

func newIDP(t testing.TB) *idp {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := jose.MarshalKey("k", &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	i, _, err := jose.NewIssuer(jose.Rules{Issuer: idpURL, Algorithms: jose.Algorithms(), Types: []string{jose.TypeAccess}}, set)
	if err != nil {
		t.Fatal(err)
	}
	return &idp{key, i}
}

func (p *idp) token(t testing.TB, subject string) string {
	t.Helper()
	token, err := jose.SignAccess(p.key, "k", identity.Token{
		Issuer: idpURL, Subject: subject, ClientID: "shop", Audiences: []string{"orders"},
		Scopes: []string{"orders.read"}, Expires: time.Now().Add(time.Hour),
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// A chain is a gateway before the sidecars of orders and billing, with real gates.
type chain struct {
	*idp
	ca      *mtlstest.CA
	gateway identity.ID
	source  *mtlstest.Source // of the gateway
	trust   *identity.Trust
	edge    *house
	door    *desk // of the edge
	sidecar *house
	inside  *desk // of the sidecars
	key     string
	url     string // of the edge
	tls     *tls.Config
}

func newChain(t *testing.T, app string, appH2 bool) *chain {
	t.Helper()
	c := &chain{idp: newIDP(t), ca: mtlstest.NewCA(t, "shop.example")}
	var err error
	if c.gateway, err = identity.GatewayID(c.ca.Domain, "edge"); err != nil {
		t.Fatal(err)
	}
	orders, billing, web := c.ca.ID(t, "orders"), c.ca.ID(t, "billing"), c.ca.ID(t, "web")
	c.trust = mtlstest.Trust(1, []*mtlstest.CA{c.ca}, c.gateway, orders, billing, web)
	c.source = mtlstest.NewSource(c.ca.CredentialFor(t, c.gateway, time.Hour), c.trust)
	key, parts, err := authn.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.key = key

	ws := &snapshot.WebSocket{}
	in := &snapshot.Snapshot{Version: snapshot.Version, Revision: 3, Members: []identity.ID{c.gateway, orders, billing, web}}
	for _, id := range []identity.ID{orders, billing} {
		in.Services = append(in.Services, snapshot.Service{Name: id.Name(), ID: id, Inbound: &snapshot.Inbound{
			Listen: "127.0.0.1:0", App: app, Protocol: string(call.HTTP), AppHTTP2: appH2, WebSocket: ws,
		}})
		in.Rules = append(in.Rules, policy.Rule{ID: id.Name() + ".allow[0]", Target: id.Name(), From: []identity.ID{c.gateway, web}})
	}
	c.inside = c.newDesk(t, in, c.trust)
	c.sidecar = newHouseOf(t, c.ca, c.trust, c.inside, 0, "orders", "billing")
	c.sidecar.apply(in)

	route := func(i, prefix string, to identity.ID) snapshot.Route {
		return snapshot.Route{
			PolicyTarget: "edge/routes[" + i + "]", Path: "/" + prefix + "/**", To: to.Name(), ToID: to,
			Places: snapshot.Places{Endpoints: []string{c.sidecar.addr(to.Name() + ".inbound")}}, WebSocket: &snapshot.WebSocket{Origins: []string{"https://shop.example"}},
		}
	}
	jwt := policy.Requirement{Kind: policy.JWT, Issuer: idpURL, Audience: "orders", Scopes: []string{"orders.read"}}
	out := &snapshot.Snapshot{
		Version: snapshot.Version, Revision: 3, Members: in.Members,
		Gateways: []snapshot.Gateway{{Name: "edge", ID: c.gateway, Listen: "127.0.0.1:0", Routes: []snapshot.Route{
			route("0", "public", orders), route("1", "orders", orders), route("2", "billing", billing),
		}}},
		Rules: []policy.Rule{
			{ID: "gateway.edge.routes[0]", Target: "edge/routes[0]", Any: []policy.Requirement{{Kind: policy.Public}}},
			{ID: "gateway.edge.routes[1]", Target: "edge/routes[1]", Any: []policy.Requirement{{Kind: policy.APIKey}, jwt}},
			{ID: "gateway.edge.routes[2]", Target: "edge/routes[2]", Any: []policy.Requirement{{Kind: policy.APIKey}}},
		},
		APIKeys: []snapshot.APIKey{{ID: parts.ID, Name: "ci", Digest: parts.Digest, Scopes: []string{"a", "b c"}}},
	}
	c.door = c.newDesk(t, out, c.trust)
	c.edge = newHouseOf(t, c.ca, c.trust, c.door, 0)
	c.edge.sources[c.gateway] = c.source
	c.edge.apply(out)
	_, port, _ := strings.Cut(c.edge.addr("gateway.edge"), ":")
	c.url = "https://localhost:" + port
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.Root)
	c.tls = &tls.Config{RootCAs: pool, ServerName: "localhost"}
	return c
}

func (c *chain) newDesk(t *testing.T, snap *snapshot.Snapshot, trust *identity.Trust) *desk {
	t.Helper()
	d := &desk{}
	d.Gate = gate.New(gate.Config{
		Host: "host", Recorder: d, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler),
		Metrics: metric.NewRegistry(), Issuers: c.idp,
	})
	if err := d.Apply(snap); err != nil {
		t.Fatal(err)
	}
	d.SetTrust(func() *identity.Trust { return trust })
	return d
}

func (c *chain) client(t *testing.T, h2 bool) *http.Client {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: c.tls.Clone(), ForceAttemptHTTP2: h2}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

// as is a client that calls the sidecar of a service by itself, as who has cred.
func (c *chain) as(t *testing.T, cred *identity.Credential, service string) (*http.Client, string) {
	t.Helper()
	d := mtls.NewDialer(mtlstest.NewSource(cred, c.trust), c.ca.ID(t, service), clock.System{}, mtls.HTTP1)
	tr := &http.Transport{DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return d.DialContext(ctx, network, addr)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}, "https://" + c.sidecar.addr(service+".inbound")
}

// told is what an application was told of who calls, unverified.
type told struct {
	Iss, Aud, Sub string
	Iat, Exp      int64
	Revision      int64
	Key           *struct {
		ID, Name string
		Scopes   []string
	} `json:"api_key"`
	JWT *struct {
		Issuer, Subject string
		ClientID        string `json:"client_id"`
		Scopes          []string
	}
}

func read(t *testing.T, token string) (claims told) {
	t.Helper()
	part := strings.Split(token, ".")
	if len(part) != 3 {
		t.Fatalf("%q is no JWT", token)
	}
	body, err := base64.RawURLEncoding.DecodeString(part[1])
	if err == nil {
		err = json.Unmarshal(body, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// An ear is an application that keeps the headers that it gets.
func ear(t *testing.T) (addr string, seen chan http.Header) {
	t.Helper()
	seen = make(chan http.Header, 64)
	return httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := r.Header.Clone()
		_, _ = io.Copy(io.Discard, r.Body)
		for name, values := range r.Trailer {
			h["Trailer "+name] = values
		}
		seen <- h
		w.Header().Set(call.IdentityField, "forged")
		if strings.HasPrefix(h.Get("Content-Type"), "application/grpc") {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "0")
		}
	})), seen
}

func do(t *testing.T, c *http.Client, method, url string, header http.Header) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp
}

// TestIdentityReachesTheApplication: whom the gateway let in is told to the
// application in one field that its sidecar has verified, and recorded at both ends.
func TestIdentityReachesTheApplication(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		app, seen := ear(t)
		c := newChain(t, app, h2)
		forged := http.Header{"Parley-Identity": {"forged"}, "parley-identity": {"forged"}, "PARLEY-IDENTITY": {"forged"}, "X-Parley-Identity": {"forged"}}
		calls := 0
		call := func(path string, header http.Header) (http.Header, *audit.Event) {
			h := forged.Clone()
			for name, values := range header {
				h[name] = values
			}
			resp := do(t, c.client(t, h2), "GET", c.url+path, h)
			calls++
			in := c.inside.last(t, calls)
			if resp.StatusCode != 200 || resp.Header.Get("Parley-Identity") != "" || (resp.ProtoMajor == 2) != h2 {
				t.Fatalf("%s: %s %s %v; recorded %s %s", path, resp.Proto, resp.Status, resp.Header, in.Reason, in.Message)
			}
			if e := c.door.last(t, calls); e.Caller.KeyID != in.Caller.KeyID || e.Subject() != in.Subject() || e.Caller.Issuer != in.Caller.Issuer {
				t.Errorf("%s: the edge recorded %+v, the sidecar %+v", path, e.Caller, in.Caller)
			}
			got := <-seen
			for name, values := range got {
				if strings.Contains(strings.Join(values, " "), "forged") {
					t.Errorf("%s: the application got %s: %q", path, name, values)
				}
			}
			return got, in
		}

		got, event := call("/public/1", nil)
		if got.Get("Parley-Identity") != "" || event.Caller.ID != c.gateway || event.Caller.KeyID+event.Subject() != "" {
			t.Errorf("nobody is %q, recorded %+v", got.Get("Parley-Identity"), event.Caller)
		}

		got, event = call("/orders/1", http.Header{"X-Api-Key": {c.key}})
		i := read(t, got.Get("Parley-Identity"))
		if len(got["Parley-Identity"]) != 1 || i.Iss != c.gateway.String() || i.Aud != "spiffe://shop.example/orders" || i.Revision != 3 || i.JWT != nil ||
			i.Key == nil || i.Key.Name != "ci" || i.Sub != "api_key:"+i.Key.ID || !slices.Equal(i.Key.Scopes, []string{"a", "b c"}) || i.Exp-i.Iat > 60 {
			t.Errorf("the key's holder is %+v", i)
		}
		if event.Caller.ID != c.gateway || event.Caller.Service != "gateway/edge" || event.Caller.KeyName != "ci" || event.Caller.KeyID != i.Key.ID {
			t.Errorf("recorded %+v", event.Caller)
		}

		got, event = call("/orders/1", http.Header{"Authorization": {"Bearer " + c.token(t, "alice")}})
		i = read(t, got.Get("Parley-Identity"))
		if i.Sub != "https://id.example#alice" || i.Key != nil || i.JWT == nil || i.JWT.Issuer != idpURL || i.JWT.Subject != "alice" || i.JWT.ClientID != "shop" || !slices.Equal(i.JWT.Scopes, []string{"orders.read"}) {
			t.Errorf("alice is %+v", i)
		}
		if event.Caller.ID != c.gateway || event.Subject() != "alice" || event.Caller.Issuer != idpURL || event.Caller.ClientID != "shop" || got.Get("Authorization") != "" {
			t.Errorf("recorded %+v", event.Caller)
		}
		leaf, err := c.source.Credential()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := jose.VerifyIdentity(got.Get("Parley-Identity"), leaf.Chain[0]); err != nil {
			t.Error(err)
		}
	}
}

// TestIdentityOfGRPC: it is metadata there.
func TestIdentityOfGRPC(t *testing.T) {
	t.Parallel()
	app, seen := ear(t)
	c := newChain(t, app, true)
	_, _, status := rpc(t, c.client(t, true), c.url+"/orders/Get", strings.NewReader("\x00\x00\x00\x00\x00"),
		"X-Api-Key", c.key, "Parley-Identity", "forged")
	if got := <-seen; status != "0" || read(t, got.Get("Parley-Identity")).Key == nil {
		t.Errorf("status %s, %v", status, got)
	}
}

// TestIdentityOfWebSocket: the handshake has it.
func TestIdentityOfWebSocket(t *testing.T) {
	t.Parallel()
	app, seen := wsApp(t, switched+"\r\n", echo)
	c := newChain(t, app, false)
	_, addr, _ := strings.Cut(c.url, "//")
	ask := strings.Replace(asks, "GET /chat?a=b", "GET /orders/chat", 1)
	ask = strings.Replace(ask, "Host: orders", "Host: localhost", 1)
	w := open(t, strings.Replace(addr, "localhost", "127.0.0.1", 1), ask+"Origin: https://shop.example\r\nParley-Identity: forged\r\nX-API-Key: "+c.key+"\r\n\r\n", c.tls)
	if w.head.StatusCode != 101 {
		t.Fatal(w.head.Status)
	}
	w.say(t, "hello")
	r := <-seen
	if got := r.Header["Parley-Identity"]; len(got) != 1 || read(t, got[0]).Key == nil {
		t.Errorf("the handshake has %v", got)
	}
}

// TestIdentityCannotBeSentToAnEdge: in any spelling and place, what a client says
// of itself is dropped or refused.
func TestIdentityCannotBeSentToAnEdge(t *testing.T) {
	t.Parallel()
	app, seen := ear(t)
	c := newChain(t, app, false)
	_, addr, _ := strings.Cut(c.url, "//")
	for name, tt := range map[string]struct {
		fields string
		status string
	}{
		"usual":              {"Parley-Identity: x\r\n", "200"},
		"small":              {"parley-identity: x\r\n", "200"},
		"mixed":              {"pArLeY-iDeNtItY: x\r\n", "200"},
		"twice":              {"Parley-Identity: x\r\nParley-Identity: y\r\n", "200"},
		"with X":             {"X-Parley-Identity: x\r\n", "200"},
		"underscore":         {"Parley_Identity: x\r\n", "400"},
		"underscores":        {"PARLEY_IDENTITY: x\r\n", "400"},
		"HTTP_":              {"HTTP_PARLEY_IDENTITY: x\r\n", "400"},
		"space before colon": {"Parley-Identity : x\r\n", "400"},
		"by Connection":      {"Connection: Parley-Identity\r\n", "400"},
		"announced trailer":  {"Transfer-Encoding: chunked\r\nTrailer: Parley-Identity\r\n\r\n0\r\nParley-Identity: x\r\n", "400"},
		"trailer":            {"Transfer-Encoding: chunked\r\n\r\n0\r\nParley-Identity: x\r\n", "200"},
		"trailer, small":     {"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n0\r\nx-sum: 1\r\nparley-identity: x\r\n", "200"},
	} {
		conn, err := tls.Dial("tcp", strings.Replace(addr, "localhost", "127.0.0.1", 1), c.tls)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, "GET /public/1 HTTP/1.1\r\nHost: localhost\r\n"+tt.fields+"\r\n")
		line, err := bufio.NewReader(conn).ReadString('\n')
		_ = conn.Close()
		if err != nil || !strings.Contains(line, " "+tt.status+" ") {
			t.Errorf("%s: %q, %v", name, line, err)
		}
		if tt.status != "200" {
			continue
		}
		for field := range <-seen {
			if strings.Contains(strings.ToLower(field), "identity") {
				t.Errorf("%s: the application got %s", name, field)
			}
		}
	}
}

// TestIdentityIsBoundToItsConnection: a token that the application was given is
// worth nothing to anybody who sends it on: to a workload it is a field that is
// dropped, and of a gateway a false one is refused and recorded.
func TestIdentityIsBoundToItsConnection(t *testing.T) {
	t.Parallel()
	app, seen := ear(t)
	c := newChain(t, app, false)
	key := http.Header{"X-Api-Key": {c.key}}
	if resp := do(t, c.client(t, true), "GET", c.url+"/orders/1", key); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	good := (<-seen).Get("Parley-Identity")
	if resp := do(t, c.client(t, true), "GET", c.url+"/billing/1", key); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	forBilling := (<-seen).Get("Parley-Identity")
	n := c.inside.count()

	web, url := c.as(t, c.ca.Credential(t, "web", time.Hour), "orders")
	resp := do(t, web, "GET", url+"/1", http.Header{"Parley-Identity": {good}})
	if got := <-seen; resp.StatusCode != 200 || got.Get("Parley-Identity") != "" {
		t.Errorf("a workload's: %s, the application got %v", resp.Status, got)
	}
	n++
	if e := c.inside.last(t, n); e.Caller.Service != "web" || e.Caller.KeyID != "" {
		t.Errorf("recorded %+v", e.Caller)
	}

	own, err := c.source.Credential()
	if err != nil {
		t.Fatal(err)
	}
	// The same gateway with another certificate, as after a renewal or on another host.
	other := c.ca.CredentialFor(t, c.gateway, time.Hour)
	sign := func(cred *identity.Credential, change func(*jose.Identity)) string {
		i := &jose.Identity{
			Issuer: c.gateway, Audience: c.ca.ID(t, "orders"), Issued: time.Now(), Expires: time.Now().Add(time.Minute),
			Caller: identity.Caller{KeyID: "root", KeyName: "root"},
		}
		change(i)
		token, err := jose.SignIdentity(cred, i)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	stay := func(*jose.Identity) {}
	part := strings.Split(good, ".")
	tampered := part[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+c.gateway.String()+`","sub":"api_key:root"}`)) + "." + part[2]
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"parley-identity+jwt","x5t#S256":"a"}`)) + "." + part[1] + "." + part[2]
	for name, tt := range map[string]struct {
		cred   *identity.Credential
		tokens []string
		reason string
	}{
		"its own":         {own, []string{good}, "allowed"},
		"made by it":      {other, []string{sign(other, stay)}, "allowed"},
		"none":            {own, nil, "allowed"},
		"of another leaf": {other, []string{good}, "identity_key"},
		"by another key":  {own, []string{sign(other, stay)}, "identity_key"},
		"tampered":        {own, []string{tampered}, "identity_signature"},
		"alg none":        {own, []string{none}, "identity_header"},
		"for billing":     {own, []string{forBilling}, "identity_audience"},
		"expired": {own, []string{sign(own, func(i *jose.Identity) {
			i.Issued, i.Expires = i.Issued.Add(-2*time.Minute), i.Expires.Add(-2*time.Minute)
		})}, "identity_expired"},
		"from the future": {own, []string{sign(own, func(i *jose.Identity) {
			i.Issued, i.Expires = i.Issued.Add(2*time.Minute), i.Expires.Add(2*time.Minute)
		})}, "identity_not_yet"},
		"twice":             {own, []string{good, good}, "identity_several"},
		"two in one":        {own, []string{good + ", " + good}, "identity_malformed"},
		"empty":             {own, []string{""}, "identity_malformed"},
		"no JWT":            {own, []string{"forged"}, "identity_malformed"},
		"an access token":   {own, []string{c.token(t, "alice")}, "identity_header"},
		"longer than it is": {own, []string{good + strings.Repeat("A", 9000)}, "identity_malformed"},
	} {
		cl, url := c.as(t, tt.cred, "orders")
		resp := do(t, cl, "GET", url+"/1", http.Header{"Parley-Identity": tt.tokens})
		n++
		e := c.inside.last(t, n)
		want := http.StatusForbidden
		if tt.reason == "allowed" {
			want = http.StatusOK
			got := <-seen
			if len(tt.tokens) > 0 && got.Get("Parley-Identity") != tt.tokens[0] {
				t.Errorf("%s: the application got %v", name, got)
			}
		}
		if resp.StatusCode != want || e.Reason != tt.reason || e.Caller.ID != c.gateway || tt.reason != "allowed" && e.Caller.KeyID != "" {
			t.Errorf("%s: %s, recorded %s %q of %+v", name, resp.Status, e.Reason, e.Message, e.Caller)
		}
	}
	select {
	case h := <-seen:
		t.Errorf("a refused request reached the application: %v", h)
	default:
	}
}

// TestIdentityAcrossRenewal: each connection has tokens of the certificate that it
// was made with, while certificates change under way.
func TestIdentityAcrossRenewal(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") }))
	c := newChain(t, app, false)
	var wg sync.WaitGroup
	for range 4 {
		cl := c.client(t, true)
		wg.Go(func() {
			for range 50 {
				if resp := do(t, cl, "GET", c.url+"/orders/1", http.Header{"X-Api-Key": {c.key}}); resp.StatusCode != 200 {
					t.Error(resp.Status)
				}
			}
		})
	}
	for range 20 {
		time.Sleep(3 * time.Millisecond)
		c.source.SetCredential(c.ca.CredentialFor(t, c.gateway, time.Hour))
	}
	wg.Wait()
	c.inside.mu.Lock()
	defer c.inside.mu.Unlock()
	for _, e := range c.inside.events {
		if e.Reason != "allowed" || e.Caller.KeyName != "ci" {
			t.Fatalf("recorded %s %s of %+v", e.Reason, e.Message, e.Caller)
		}
	}
}

// TestUnverifiedIdentityStaysOutside: what the gate has not verified is not handed
// to the application, whatever it decided.
func TestUnverifiedIdentityStaysOutside(t *testing.T) {
	t.Parallel()
	app, seen := ear(t)
	e := newEdge(t, app, true)
	e.gw.gate.Vouching(func(*call.Request, *identity.Credential, identity.ID) (string, error) { return "said", nil })
	for _, verified := range []bool{false, true} {
		e.orders.gate.Decide(func(r *call.Request) call.Verdict {
			if got := r.Header.Values(call.IdentityField); len(got) != 1 || got[0] != "said" {
				t.Errorf("the gate sees %q", got)
			}
			if verified {
				r.Caller.Origin = &identity.Caller{KeyID: "k"}
			}
			return call.Verdict{Allow: true}
		})
		if resp := do(t, e.c, "GET", e.url+"/orders/7", nil); resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		if got := (<-seen).Get(call.IdentityField); (got == "said") != verified {
			t.Errorf("verified %t: the application got %q", verified, got)
		}
	}
}
