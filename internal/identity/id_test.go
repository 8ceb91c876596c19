package identity_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/identity"
)

func TestParseID(t *testing.T) {
	t.Parallel()
	longTD := strings.Repeat("a", 255)
	longPath := "/" + strings.Repeat("b", 2048-len("spiffe://td/"))
	tests := []struct {
		name, uri string
		want      error
	}{
		// SPIFFE-ID.md sections 2.1 and 2.2.
		{"service", "spiffe://staging.example.com/payments/mysql", nil},
		{"web-fe", "spiffe://staging.example.com/payments/web-fe", nil},
		{"kubernetes", "spiffe://k8s-west.example.com/ns/staging/sa/default", nil},
		{"opaque", "spiffe://example.com/9eebccd2-12bf-40a6-b262-65fe0487d453", nil},
		{"trust domain", "spiffe://example.org", nil},
		{"IPv4 is a name", "spiffe://1.2.3.4/service", nil},
		{"underscore", "spiffe://trust_domain_name.example.com/p_q", nil},
		{"dots in a segment", "spiffe://td/...", nil},
		{"case of the path", "spiffe://td/Path/pATH", nil},
		{"longest trust domain", "spiffe://" + longTD + "/x", nil},
		{"longest", "spiffe://td" + longPath, nil},

		{"empty", "", identity.ErrScheme},
		{"no scheme", "td/path", identity.ErrScheme},
		{"other scheme", "http://td/path", identity.ErrScheme},
		{"scheme in capitals", "SPIFFE://td/path", identity.ErrScheme},
		{"one slash", "spiffe:/td/path", identity.ErrScheme},
		{"leading space", " spiffe://td/path", identity.ErrScheme},
		{"no trust domain", "spiffe://", identity.ErrTrustDomain},
		{"no trust domain but a path", "spiffe:///path", identity.ErrTrustDomain},
		{"trust domain in capitals", "spiffe://Example.org/path", identity.ErrTrustDomain},
		{"user", "spiffe://user@td/path", identity.ErrTrustDomain},
		{"empty user", "spiffe://@td/path", identity.ErrTrustDomain},
		{"port", "spiffe://td:8443/path", identity.ErrTrustDomain},
		{"empty port", "spiffe://td:/path", identity.ErrTrustDomain},
		{"IPv6", "spiffe://[::1]/path", identity.ErrTrustDomain},
		{"encoded trust domain", "spiffe://t%64/path", identity.ErrTrustDomain},
		{"query on a trust domain", "spiffe://td?q=1", identity.ErrTrustDomain},
		{"international name", "spiffe://bücher.example/path", identity.ErrTrustDomain},
		{"trust domain too long", "spiffe://" + longTD + "a/x", identity.ErrTrustDomain},
		{"root path", "spiffe://td/", identity.ErrEmptySeg},
		{"trailing slash", "spiffe://td/path/", identity.ErrEmptySeg},
		{"empty segment", "spiffe://td//path", identity.ErrEmptySeg},
		{"empty segment inside", "spiffe://td/a//b", identity.ErrEmptySeg},
		{"dot", "spiffe://td/./a", identity.ErrDotSegment},
		{"dot at the end", "spiffe://td/a/.", identity.ErrDotSegment},
		{"dot dot", "spiffe://td/a/../b", identity.ErrDotSegment},
		{"dot dot at the end", "spiffe://td/a/..", identity.ErrDotSegment},
		{"encoded letter", "spiffe://td/p%61th", identity.ErrPath},
		{"encoded slash", "spiffe://td/a%2fb", identity.ErrPath},
		{"encoded dot dot", "spiffe://td/%2e%2e/b", identity.ErrPath},
		{"query", "spiffe://td/path?q=1", identity.ErrPath},
		{"empty query", "spiffe://td/path?", identity.ErrPath},
		{"fragment", "spiffe://td/path#f", identity.ErrPath},
		{"empty fragment", "spiffe://td/path#", identity.ErrPath},
		{"backslash", `spiffe://td/a\b`, identity.ErrPath},
		{"space", "spiffe://td/a b", identity.ErrPath},
		{"tilde", "spiffe://td/~a", identity.ErrPath},
		{"NUL", "spiffe://td/a\x00", identity.ErrPath},
		{"line end", "spiffe://td/a\n", identity.ErrPath},
		{"not ASCII", "spiffe://td/ä", identity.ErrPath},
		{"too long", "spiffe://td" + longPath + "b", identity.ErrTooLong},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			id, err := identity.ParseID(tt.uri)
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Fatalf("ParseID(%q) = %v, want %v", tt.uri, err, tt.want)
			}
			want := tt.uri
			if tt.want != nil {
				want = ""
			}
			if id.String() != want {
				t.Errorf("String() = %q, want %q", id, want)
			}
		})
	}
}

func TestIDParts(t *testing.T) {
	t.Parallel()
	td := trustDomain(t, "shop.example")
	tests := []struct {
		name           string
		id             identity.ID
		uri, path, svc string
	}{
		{"service", must(identity.ServiceID(td, "orders")), "spiffe://shop.example/orders", "/orders", "orders"},
		{"gateway", must(identity.GatewayID(td, "edge")), "spiffe://shop.example/gateway/edge", "/gateway/edge", "gateway/edge"},
		{"domain", td.ID(), "spiffe://shop.example", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.id.String() != tt.uri || tt.id.Path() != tt.path || tt.id.Name() != tt.svc || tt.id.TrustDomain() != td {
				t.Errorf("got %q %q %q %q", tt.id, tt.id.Path(), tt.id.Name(), tt.id.TrustDomain())
			}
			if parsed := must(identity.ParseID(tt.uri)); parsed != tt.id {
				t.Errorf("%q parsed is another value", tt.uri)
			}
		})
	}
}

func TestZeroID(t *testing.T) {
	t.Parallel()
	var id identity.ID
	var td identity.TrustDomain
	if !id.IsZero() || !td.IsZero() || !td.ID().IsZero() || id.TrustDomain() != td || id.Path() != "" || id.Name() != "" {
		t.Error("the zero values are not nothing")
	}
	if _, err := identity.NewID(td, "/x"); !errors.Is(err, identity.ErrTrustDomain) {
		t.Errorf("NewID in no trust domain: %v", err)
	}
	if _, err := identity.ServiceID(trustDomain(t, "td"), "../x"); err == nil {
		t.Error("a service may be called ../x")
	}
}

func TestIDText(t *testing.T) {
	t.Parallel()
	type box struct {
		ID identity.ID `json:"id,omitzero"`
	}
	var b box
	if err := json.Unmarshal([]byte(`{"id":"spiffe://td/a"}`), &b); err != nil || b.ID.String() != "spiffe://td/a" {
		t.Fatalf("got %q, %v", b.ID, err)
	}
	if out := must(json.Marshal(b)); string(out) != `{"id":"spiffe://td/a"}` {
		t.Errorf("got %s", out)
	}
	if err := json.Unmarshal([]byte(`{"id":""}`), &b); err != nil || !b.ID.IsZero() {
		t.Errorf("empty text: %q, %v", b.ID, err)
	}
	if err := json.Unmarshal([]byte(`{"id":"spiffe://td/%61"}`), &b); err == nil || !b.ID.IsZero() {
		t.Errorf("bad text: %q, %v", b.ID, err)
	}
}

func TestErrorsRepeatLittle(t *testing.T) {
	t.Parallel()
	_, err := identity.ParseID("spiffe://td/" + strings.Repeat("%", 2000))
	if err == nil || len(err.Error()) > 300 {
		t.Errorf("got %d bytes: %v", len(err.Error()), err)
	}
}

// FuzzParseID: what is accepted is the same bytes again, made of known parts, and
// never more than one spelling of an ID.
func FuzzParseID(f *testing.F) {
	for _, s := range []string{
		"spiffe://td/a", "spiffe://td", "spiffe://td/", "spiffe://td/../a", "spiffe://td/%2e", "SPIFFE://TD/a",
		"spiffe://1.2.3.4/a.b-c_D/e", "spiffe://td:80/a", "spiffe://u@td/a", "spiffe://td/a?#", "", "spiffe:///", "spiffe://td/a//b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.ParseID(s)
		if err != nil {
			if !id.IsZero() {
				t.Fatalf("an ID beside the error %v", err)
			}
			return
		}
		if id.String() != s || "spiffe://"+id.TrustDomain().String()+id.Path() != s || len(s) > 2048 {
			t.Fatalf("%q became %q", s, id)
		}
		if strings.ContainsAny(s, "%?#@ \\") || strings.Contains(s[len("spiffe://"):], "//") || strings.HasSuffix(s, "/") {
			t.Fatalf("%q was accepted", s)
		}
		// A trust domain may be any of its characters, dots included (SPIFFE-ID.md 2.1).
		if path := id.Path() + "/"; strings.Contains(path, "/../") || strings.Contains(path, "/./") {
			t.Fatalf("%q was accepted", s)
		}
		if td, err := identity.ParseTrustDomain(id.TrustDomain().String()); err != nil || td != id.TrustDomain() {
			t.Fatalf("the trust domain of %q: %v", s, err)
		}
		if again, err := identity.NewID(id.TrustDomain(), id.Path()); err != nil || again != id {
			t.Fatalf("NewID of %q's parts: %q, %v", s, again, err)
		}
	})
}

func trustDomain(t testing.TB, name string) identity.TrustDomain {
	t.Helper()
	td, err := identity.ParseTrustDomain(name)
	if err != nil {
		t.Fatal(err)
	}
	return td
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
