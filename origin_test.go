package parley_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/mtls"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
)

// origins are what a handler was told.
type origins struct {
	Caller parley.Caller
	Fields []string // whatever may be taken for an identity
	Sum    string   // a trailer
}

// tells serves what a handler is told of its caller, at the address that it returns.
func tells(t *testing.T, w *parley.Workload) string {
	t.Helper()
	l := listen(t, w)
	srv := &http.Server{Handler: w.Handler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, _ := parley.CallerFrom(r.Context())
		a := origins{Caller: c}
		_, _ = io.Copy(io.Discard, r.Body)
		for _, fields := range []http.Header{r.Header, r.Trailer} {
			for name, values := range fields {
				if strings.Contains(strings.ToLower(name), "identity") {
					a.Fields = append(a.Fields, values...)
				}
			}
		}
		a.Sum = r.Trailer.Get("X-Sum")
		_ = json.NewEncoder(rw).Encode(a)
	}))}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return l.Addr().String()
}

// raw sends fields as they are over a connection of cred's, and reads the answer.
func raw(t *testing.T, ca *mtlstest.CA, cred *identity.Credential, addr, fields string) (int, origins) {
	t.Helper()
	orders := ca.ID(t, "orders")
	d := mtls.NewDialer(mtlstest.NewSource(cred, mtlstest.Trust(1, []*mtlstest.CA{ca}, orders)), orders, clock.System{}, mtls.HTTP1)
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: orders\r\n"+fields+"\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var a origins
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode, a
}

func signed(t *testing.T, cred *identity.Credential, audience identity.ID, change func(*jose.Identity)) string {
	t.Helper()
	i := &jose.Identity{
		Issuer: cred.ID, Audience: audience, Issued: time.Now(), Expires: time.Now().Add(time.Minute), Revision: 3,
		Caller: identity.Caller{
			KeyID: "4fG7hJ9kLmN0", KeyName: "ci", Scopes: []string{"a b"},
			Token: &identity.Token{Issuer: "https://id.example", Subject: "alice", ClientID: "shop", Scopes: []string{"orders.read"}},
		},
	}
	if change != nil {
		change(i)
	}
	token, err := jose.SignIdentity(cred, i)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func alice() *parley.Origin {
	return &parley.Origin{
		Name:  "https://id.example#alice",
		Key:   &parley.OriginKey{ID: "4fG7hJ9kLmN0", Name: "ci", Scopes: []string{"a b"}},
		Token: &parley.OriginToken{Issuer: "https://id.example", Subject: "alice", ClientID: "shop", Scopes: []string{"orders.read"}},
	}
}

func TestOriginOfAGatewaysCaller(t *testing.T) {
	t.Parallel()
	orders, a, log := process(t, nil, "orders", "web", "gateway/edge", "gateway/edge/x")
	addr, to := tells(t, orders), a.CA.ID(t, "orders")
	edge := a.CA.Credential(t, "gateway/edge", time.Hour)
	renewed := a.CA.Credential(t, "gateway/edge", time.Hour)
	web, deep := a.CA.Credential(t, "web", time.Hour), a.CA.Credential(t, "gateway/edge/x", time.Hour)
	good := signed(t, edge, to, nil)
	field := func(tokens ...string) string {
		return "Parley-Identity: " + strings.Join(tokens, "\r\nParley-Identity: ") + "\r\n"
	}
	for _, tt := range []struct {
		name   string
		cred   *identity.Credential
		fields string
		status int
		origin *parley.Origin
	}{
		{"good", edge, field(good), 200, alice()},
		{"again", edge, field(good), 200, alice()},
		{"in small", edge, "parley-identity: " + good + "\r\n", 200, alice()},
		{"public route", edge, "", 200, nil},
		{"of another certificate", renewed, field(good), 403, nil},
		{"for another service", edge, field(signed(t, edge, a.CA.ID(t, "billing"), nil)), 403, nil},
		{"expired", edge, field(signed(t, edge, to, func(i *jose.Identity) {
			i.Issued, i.Expires = i.Issued.Add(-2*time.Minute), i.Expires.Add(-2*time.Minute)
		})), 403, nil},
		{"tampered", edge, field(good[:len(good)-8] + "AAAAAAAA"), 403, nil},
		{"twice", edge, field(good, good), 403, nil},
		{"malformed", edge, field("forged"), 403, nil},
		{"underscore beside it", edge, field(good) + "Parley_Identity: forged\r\n", 403, nil},
		{"of a workload", web, field(good), 200, nil},
		{"made by a workload", web, field(signed(t, web, to, nil)), 200, nil},
		{"of a workload, twice", web, field(good, "x"), 200, nil},
		{"of a workload, with underscore", web, "PARLEY_IDENTITY: " + good + "\r\nparley_identity: x\r\nX-Other: 1\r\n", 200, nil},
		{"of what looks like a gateway", deep, field(signed(t, deep, to, nil)), 200, nil},
	} {
		status, got := raw(t, a.CA, tt.cred, addr, tt.fields)
		if status != tt.status || cmp.Diff(tt.origin, got.Caller.Origin) != "" {
			t.Errorf("%s: %d, %+v", tt.name, status, got.Caller.Origin)
		}
		if tt.origin == nil && len(got.Fields) > 0 || tt.origin != nil && (len(got.Fields) != 1 || got.Fields[0] != good) {
			t.Errorf("%s: the handler saw %q", tt.name, got.Fields)
		}
		if status == 200 && got.Caller.ID != tt.cred.ID.String() {
			t.Errorf("%s: the caller is %s", tt.name, got.Caller.ID)
		}
	}
	for name, trailer := range map[string]string{
		"announced":   "Trailer: X-Sum, Parley-Identity\r\n\r\n0\r\nX-Sum: 1\r\nParley-Identity: " + good + "\r\n",
		"unannounced": "Trailer: X-Sum\r\n\r\n0\r\nX-Sum: 1\r\nParley_Identity: " + good + "\r\nparley-identity: " + good + "\r\n",
	} {
		status, got := raw(t, a.CA, edge, addr, "Transfer-Encoding: chunked\r\n"+trailer)
		if status != 200 || len(got.Fields) > 0 || got.Caller.Origin != nil || got.Sum != "1" {
			t.Errorf("%s trailer: %d, %+v", name, status, got)
		}
	}
	if text := log.String(); strings.Contains(text, good[:60]) || !strings.Contains(text, "identity refused") || strings.Count(text, "identity refused") != 7 {
		t.Errorf("logged %s", text)
	}
}

func TestReadOrigin(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "shop.example")
	good := signed(t, ca.Credential(t, "gateway/edge", time.Hour), ca.ID(t, "orders"), nil)
	for name, tt := range map[string]struct {
		fields []string
		want   *parley.Origin
		err    bool
	}{
		"none": {nil, nil, false}, "one": {[]string{good}, alice(), false}, "two": {[]string{good, good}, nil, true},
		"no token": {[]string{"x"}, nil, true}, "empty": {[]string{""}, nil, true}, "another": {[]string{"e30.e30.AAAA"}, nil, true},
	} {
		got, err := parley.ReadOrigin(http.Header{"Parley-Identity": tt.fields})
		if (err != nil) != tt.err || cmp.Diff(tt.want, got) != "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
