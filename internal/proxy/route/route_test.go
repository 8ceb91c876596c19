package route_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/snapshot"
)

func TestCanonicalPath(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ raw, want string }{
		{"/", "/"},
		{"/orders/7", "/orders/7"},
		{"/orders/", "/orders/"},
		{"/a.b/..c/.d", "/a.b/..c/.d"},
		{"/...", "/..."},
		{"/%41%7e", "/A~"},
		{"/%c3%a9", "/%C3%A9"},
		{"/a%20b", "/a%20b"},
		{"/a|b", "/a%7Cb"},
		{"/[1]", "/%5B1%5D"},
		{"/a:b@c!$&'()*+,=", "/a:b@c!$&'()%2A%2B,="},
		{"/a%3Ab%40c%21%24%26%27%28%29%2A%2B%2c%3d", "/a:b@c!$&'()%2A%2B,="},
		{"/v1/keys%3arotate", "/v1/keys:rotate"},
		{"/%2E%62", "/.b"},
		{"", ""},
		{"a", ""},
		{"*", ""},
		{"/a//b", ""},
		{"//", ""},
		{"/.", ""},
		{"/..", ""},
		{"/a/./b", ""},
		{"/a/..", ""},
		{"/%2e", ""},
		{"/%2E%2e/", ""},
		{"/a/.%2e", ""},
		{"/a%2fb", ""},
		{"/a%2Fb", ""},
		{"/a%5cb", ""},
		{"/a\\b", ""},
		{"/a%00", ""},
		{"/a\x00", ""},
		{"/a;b", ""},
		{"/a%3bb", ""},
		{"/a%25b", ""},
		{"/a%3fb", ""},
		{"/a%23", ""},
		{"/a#b", ""},
		{"/a b", ""},
		{"/a\tb", ""},
		{"/%0a", ""},
		{"/%7f", ""},
		{"/é", ""},
		{"/%ff", ""},
		{"/%c3", ""},
		{"/%", ""},
		{"/%4", ""},
		{"/%zz", ""},
		{"/..;/admin", ""},
	} {
		got, err := route.CanonicalPath(tt.raw)
		if (err == nil) != (tt.want != "") || err == nil && got != tt.want {
			t.Errorf("%q gives %q, %v; want %q", tt.raw, got, err, tt.want)
		}
	}
}

func TestTarget(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ raw, path, query string }{
		{"/a?b=%2F;c", "/a", "?b=%2F;c"},
		{"/a?", "/a", "?"},
		{"/?a?b", "/", "?a?b"},
		{"/?%zz", "/", "?%zz"},
		{"/?a b", "", ""},
		{"/?a#b", "", ""},
		{"/?\x7f", "", ""},
		{"/?é", "", ""},
		{"http://a/", "", ""},
		{"/" + strings.Repeat("a", 20<<10), "", ""},
	} {
		path, query, err := route.Target(tt.raw)
		if (err == nil) != (tt.path != "") || err == nil && (path != tt.path || query != tt.query) {
			t.Errorf("%.20q gives %q %q, %v", tt.raw, path, query, err)
		}
	}
}

func TestCanonicalHost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ raw, want string }{
		{"orders", "orders"},
		{"API.Shop.Example:443", "api.shop.example"},
		{"127.0.0.1:80", "127.0.0.1"},
		{"[::1]:80", "[::1]"},
		{"[0:0:0:0:0:0:0:1]", "[::1]"},
		{"my_app", "my_app"},
		{"", ""},
		{":80", ""},
		{"a.", ""},
		{"a.:80", ""},
		{".a", ""},
		{"a..b", ""},
		{"a:", ""},
		{"a:0", ""},
		{"a:99999", ""},
		{"a:8o", ""},
		{"a:1:2", ""},
		{"::1", ""},
		{"[::1", ""},
		{"[::1]x", ""},
		{"[fe80::1%25eth0]", ""},
		{"[1.2.3.4]", ""},
		{"a b", ""},
		{"a/b", ""},
		{"a@b", ""},
		{"é", ""},
		{"a,b", ""},
		{"a\x00", ""},
		{strings.Repeat("a", 254), ""},
	} {
		got, err := route.CanonicalHost(tt.raw)
		if (err == nil) != (tt.want != "") || got != tt.want {
			t.Errorf("%q gives %q, %v; want %q", tt.raw, got, err, tt.want)
		}
	}
}

func TestCheckHeader(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		h    http.Header
		code string
	}{
		"ordinary":      {http.Header{"Accept": {"a", "b"}, "Connection": {"keep-alive, TE", "close"}, "Te": {"trailers"}, "X-Bytes": {"\xff\t"}}, ""},
		"underscore":    {http.Header{"X_forwarded_for": {"1"}}, route.HeaderRefused},
		"space":         {http.Header{"A b": {"1"}}, route.HeaderRefused},
		"empty name":    {http.Header{"": {"1"}}, route.HeaderRefused},
		"newline":       {http.Header{"A": {"b\r\nc: d"}}, route.HeaderRefused},
		"NUL":           {http.Header{"A": {"\x00"}}, route.HeaderRefused},
		"authorization": {http.Header{"Authorization": {"a", "a"}}, route.HeaderRefused},
		"host":          {http.Header{"Host": {"a", "a"}}, route.HeaderRefused},
		"length":        {http.Header{"Content-Length": {"1", "1"}}, route.HeaderRefused},
		"connection":    {http.Header{"Connection": {"close, X-Api-Key"}}, route.HeaderRefused},
		"other method":  {http.Header{"X-Http-Method-Override": {"DELETE"}}, route.HeaderRefused},
		"other method2": {http.Header{"X-Method-Override": {"DELETE"}}, route.HeaderRefused},
		"other method3": {http.Header{"X-Http-Method": {"DELETE"}}, route.HeaderRefused},
		"websocket":     {http.Header{"Connection": {"keep-alive, UpGrade"}, "Upgrade": {"WebSocket"}}, ""}, // see AsksUpgrade
		"h2c":           {http.Header{"Upgrade": {"h2c"}}, route.UpgradeRefused},
		"two":           {http.Header{"Upgrade": {"websocket", "websocket"}}, route.UpgradeRefused},
		"either":        {http.Header{"Upgrade": {"websocket, h2c"}}, route.UpgradeRefused},
		"settings":      {http.Header{"Http2-Settings": {"AAMAAABk"}}, route.UpgradeRefused},
	} {
		err := route.CheckHeader(tt.h)
		var code string
		if r, ok := err.(*route.Refusal); ok { //nolint:errorlint // what it returns
			code = r.Code
		}
		if code != tt.code || (err == nil) != (tt.code == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCleanRequest(t *testing.T) {
	t.Parallel()
	in := http.Header{
		"Accept": {"a"}, "Connection": {"te"}, "Te": {"gzip, Trailers"}, "Keep-Alive": {"1"}, "X-Forwarded-For": {"1.1.1.1"}, "X-Forwarded-Host": {"a", "b"},
		"X-Forwarded-Client-Cert": {"x"}, "Parley-Caller": {"x"}, "Parley-Probe": {"forwarded"}, "Forwarded": {"x"}, "X-Real-Ip": {"x"}, "X-Spiffe-Id": {"x"}, "Host": {"x"}, "Content-Length": {"1"}, "Authorization": {"x"},
	}
	want := http.Header{"Accept": {"a"}, "Te": {"trailers"}, "Authorization": {"x"}}
	if d := cmp.Diff(want, route.CleanRequest(in, false)); d != "" {
		t.Error(d)
	}
	want["X-Forwarded-For"] = []string{"1.1.1.1"}
	if d := cmp.Diff(want, route.CleanRequest(in, true)); d != "" {
		t.Errorf("from a gateway: %s", d)
	}
}

func TestCleanResponse(t *testing.T) {
	t.Parallel()
	in := http.Header{"Server": {"a"}, "Connection": {"x-private"}, "X-Private": {"1"}, "Parley-Decision": {"ID"}, "Parley-Probe": {"answered"}, "Set-Cookie": {"a", "b"}, "Transfer-Encoding": {"chunked"}}
	app, mesh := http.Header{}, http.Header{}
	route.CleanResponse(app, in, false)
	route.CleanResponse(mesh, in, true)
	want := http.Header{"Server": {"a"}, "Set-Cookie": {"a", "b"}}
	if d := cmp.Diff(want, app); d != "" {
		t.Error(d)
	}
	want["Parley-Decision"], want["Parley-Probe"] = []string{"ID"}, []string{"answered"}
	if d := cmp.Diff(want, mesh); d != "" {
		t.Error(d)
	}
}

func TestResponseTrailers(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"Grpc-Status": true, "X-Request-Id": true, "X_metadata-Bin": true, "Traceparent": true,
		"Parley-Decision": false, "Parley-Probe": false, "X-Forwarded-For": false, "Connection": false, "Transfer-Encoding": false, "Content-Length": false, "Set-Cookie": false,
	} {
		if got := route.ResponseTrailerAllowed(name, false); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if !route.ResponseTrailerAllowed("Parley-Decision", true) || route.ResponseTrailerAllowed("Parley-Caller", true) {
		t.Error("of the mesh's own, the decision passes and nothing else")
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	table := route.NewTable(&snapshot.Gateway{Routes: []snapshot.Route{
		{PolicyTarget: "0", Host: "API.shop.example", Path: "/orders/**", Methods: []string{"GET"}},
		{PolicyTarget: "1", Host: "*.shop.example", Path: "/orders/*"},
		{PolicyTarget: "2", Path: "/any"},
		{PolicyTarget: "3", Host: "last.example"},
	}})
	for _, tt := range []struct{ host, path, method, want string }{
		{"api.shop.example", "/orders/1/2", "GET", "0"},
		{"api.shop.example", "/orders/1", "POST", "1"},
		{"api.shop.example", "/orders/1/2", "POST", ""},
		{"www.shop.example", "/orders/1", "GET", "1"},
		{"a.b.shop.example", "/orders/1", "GET", ""},
		{"shop.example", "/orders/1", "GET", ""},
		{".shop.example", "/orders/1", "GET", ""},
		{"x", "/any", "GET", "2"},
		{"last.example", "/", "PUT", "3"},
		{"x", "/", "GET", ""},
	} {
		var got string
		if r := table.Match(tt.host, tt.path, tt.method); r != nil {
			got = r.PolicyTarget
		}
		if got != tt.want {
			t.Errorf("%s %s%s goes to %q, want %q", tt.method, tt.host, tt.path, got, tt.want)
		}
	}
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/", "/a%2e%2e/b?c", "/%c3%a9|", "//", "/a;b", "/?%zz", "*", "http://a/b", "/\x00", "/%25", "/a/../b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		path, query, err := route.Target(raw)
		if err != nil {
			return
		}
		if again, q, err := route.Target(path + query); err != nil || again != path || q != query {
			t.Fatalf("%q gives %q, which gives %q %v", raw, path, again, err)
		}
		decoded, err := url.PathUnescape(path)
		if err != nil || !utf8.ValidString(decoded) || strings.ContainsAny(decoded, "\\;%?#\x00\r\n") || strings.Contains(decoded, "//") {
			t.Fatalf("%q is accepted as %q", raw, decoded)
		}
		if strings.Count(decoded, "/") != strings.Count(path, "/") {
			t.Fatalf("%q hides a slash", path)
		}
		for _, s := range strings.Split(decoded, "/") {
			if s == "." || s == ".." {
				t.Fatalf("%q has a dot segment", path)
			}
		}
		// What is forwarded are these bytes, by way of net/url.
		u := url.URL{Path: decoded, RawPath: path, RawQuery: strings.TrimPrefix(query, "?"), ForceQuery: query == "?"}
		if u.RequestURI() != path+query {
			t.Fatalf("%q is forwarded as %q", path+query, u.RequestURI())
		}
		if err := policy.ValidPath(path); err != nil {
			t.Fatalf("no rule can name %q: %v", path, err)
		}
	})
}

// spellings are decoded in every way in which a byte can be written; a bit of
// choice says whether it is encoded, another in which case.
func spelling(decoded string, choice []byte) string {
	var b strings.Builder
	for i := range len(decoded) {
		var how byte
		if len(choice) > 0 {
			how = choice[i%len(choice)]
		}
		switch c := decoded[i]; {
		case how&1 == 0 && c != '%':
			b.WriteByte(c)
		case how&2 == 0:
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}

// Two paths that an application decodes alike are one canonical path, or refused.
func FuzzSpelling(f *testing.F) {
	f.Add("/v1/keys:rotate", []byte{0, 1}, []byte{0})
	f.Add("/a!$&'()*+,=:@b", []byte{1}, []byte{0})
	f.Add("/a/b", []byte{0, 0, 1}, []byte{0})
	f.Add("/\u00e9 |[]\"<>^`{}", []byte{1}, []byte{3})
	f.Add("/a%2Fb", []byte{0}, []byte{1})
	f.Fuzz(func(t *testing.T, decoded string, one, other []byte) {
		first, err := route.CanonicalPath(spelling(decoded, one))
		if err != nil {
			return
		}
		if got, err := url.PathUnescape(first); err != nil || got != decoded {
			t.Fatalf("%q stands for %q, not for %q", first, got, decoded)
		}
		if second, err := route.CanonicalPath(spelling(decoded, other)); err == nil && second != first {
			t.Fatalf("%q is both %q and %q", decoded, first, second)
		}
		// What a rule can name is what a path can be.
		if policy.ValidPath(first) != nil {
			t.Fatalf("no rule can name %q", first)
		}
	})
}

// A literal pattern is one that some path has as its canonical form.
func FuzzPattern(f *testing.F) {
	for _, s := range []string{"/a", "/%3A", "/a+b", "/a;b", "/%2A", "/%C3%A9", "/%25", "/[", "/a/", "/%FF"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		canonical, err := route.CanonicalPath(pattern)
		if is := err == nil && canonical == pattern; is != (policy.ValidPath(pattern) == nil) {
			t.Fatalf("%q: %v, but its canonical form is %q, %v", pattern, policy.ValidPath(pattern), canonical, err)
		}
	})
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"a", "A.b:80", "[::1]:1", "a.", "a..b", "[", "]", "::", "a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		host, err := route.CanonicalHost(raw)
		if err != nil {
			return
		}
		if again, err := route.CanonicalHost(host); err != nil || again != host || strings.ToLower(host) != host || strings.HasSuffix(host, ".") {
			t.Fatalf("%q gives %q, which gives %q %v", raw, host, again, err)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add("X-A", "b", "close")
	f.Add("x_a", "b\r\nc", "x-api-key")
	f.Add("PARLEY-Caller", "b", "upgrade")
	f.Fuzz(func(t *testing.T, name, value, connection string) {
		h := http.Header{name: {value}, "Connection": {connection}}
		if route.CheckHeader(h) != nil {
			return
		}
		if strings.ContainsAny(name, "_ \r\n\x00:") || strings.ContainsAny(value, "\r\n\x00") {
			t.Fatalf("accepted %q: %q", name, value)
		}
		for kept := range route.CleanRequest(h, false) {
			l := strings.ToLower(kept)
			if strings.HasPrefix(l, "parley-") || strings.HasPrefix(l, "x-forwarded-") || l == "connection" || l == "forwarded" {
				t.Fatalf("%q travels", kept)
			}
		}
	})
}

func TestCanonicalAllocs(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		_, _, _ = route.Target("/orders/7/items?x=1")
		_, _ = route.CanonicalHost("orders.shop.example:80")
		_ = route.CheckMethod("GET")
		_ = route.Reserved("X-Api-Key")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCanonical(b *testing.B) {
	h := http.Header{"Accept": {"*/*"}, "User-Agent": {"x"}, "X-Request-Id": {"abc"}, "Content-Type": {"application/json"}}
	b.ReportAllocs()
	for b.Loop() {
		_, _, _ = route.Target("/orders/7/items?x=1")
		_, _ = route.CanonicalHost("orders.shop.example:80")
		_ = route.CheckHeader(h)
	}
}
