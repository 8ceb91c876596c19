package policy_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/policy"
)

func TestMatchPath(t *testing.T) {
	t.Parallel()
	tests := []struct {
		pattern string
		yes, no []string
	}{
		{"/", []string{"/"}, []string{"", "//", "/a", "*"}},
		{"/orders", []string{"/orders"}, []string{"/orders/", "/orders/7", "/ordersx", "/order", "/Orders", "/order%73", "//orders", "orders", ""}},
		{"/orders/", []string{"/orders/"}, []string{"/orders", "/orders//", "/orders/7"}},
		{"/orders/*", []string{"/orders/7", "/orders/*", "/orders/%2A"}, []string{"/orders", "/orders/", "/orders/7/", "/orders/7/x", "/x/7"}},
		{"/orders/**", []string{"/orders", "/orders/", "/orders/7", "/orders/7/items", "/orders//", "/orders/**"}, []string{"/ordersx", "/order", "/", ""}},
		{"/*/items", []string{"/a/items"}, []string{"//items", "/items", "/a/b/items", "/a/items/"}},
		{"/*/**", []string{"/a", "/a/", "/a/b/c"}, []string{"/", "//a", ""}},
		{"/**", []string{"/", "//", "/a", "/a/b/"}, []string{"", "*", "a"}},
		{"/a/**/b", nil, []string{"/a/b", "/a/x/b", "/a/**/b", "/a"}},
		{"", nil, []string{"", "/", "/a"}},
		{"**", nil, []string{"", "/", "/a", "**"}},
		{"/a.c", []string{"/a.c"}, []string{"/abc"}},
	}
	for _, tt := range tests {
		for _, path := range tt.yes {
			if !policy.MatchPath(tt.pattern, path) {
				t.Errorf("%q does not match %q", tt.pattern, path)
			}
		}
		for _, path := range tt.no {
			if policy.MatchPath(tt.pattern, path) {
				t.Errorf("%q matches %q", tt.pattern, path)
			}
		}
	}
}

func TestValidPattern(t *testing.T) {
	t.Parallel()
	for _, p := range []string{
		"/", "/a", "/a/", "/a/b", "/*", "/**", "/a/*/b/**", "/a.b", "/...", "/caf%C3%A9", "/~u/:id/@x", "/%2A", "/c%2B%2B", "/a!$&'(),=:@", "/a%20%22%5B",
	} {
		if err := policy.ValidPattern(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range []string{
		"", "a", "*", "**", "/a*", "/*a", "/***", "/a/**/b", "/**/", "//", "/a//b", "//a", "/.", "/a/..", "/../a", "/a?b", "/a#b", `/a\b`,
		"/a b", "/a\x00", "/caf\u00e9", "/\x7f", "/%", "/%4", "/%zz", "/%c3%a9", "/%41", "/%2e%2e", "/%2E", "/" + strings.Repeat("a", 4096),
		"/a;v=1", "/a%2Fb", "/%3B", "/%25", "/%00", "/%5C", "/%3A", "/%40", "/%21", "/%24", "/%26", "/%27", "/%28", "/%29", "/%2C", "/%3D", "/c++", "/a|b", "/[1]", `/"`, "/%FF", "/%C3",
	} {
		if err := policy.ValidPattern(p); !errors.Is(err, policy.ErrPattern) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func TestValidPath(t *testing.T) {
	t.Parallel()
	for _, p := range []string{"/", "/a/", "/keys:rotate", "/%2A", "/" + strings.Repeat("a", 5000)} {
		if err := policy.ValidPath(p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, p := range []string{"", "a", "/*", "/**", "/a*", "//", "/keys%3Arotate", "/a?b", "/a+b"} {
		if err := policy.ValidPath(p); !errors.Is(err, policy.ErrPath) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

// reference is MatchPath said in another way.
func reference(pattern, path string) bool {
	if !strings.HasPrefix(path, "/") {
		return false
	}
	want, got := strings.Split(pattern, "/")[1:], strings.Split(path, "/")[1:]
	if n := len(want) - 1; want[n] == "**" {
		want = want[:n]
		if len(got) < len(want) {
			return false
		}
		got = got[:len(want)]
	}
	return slices.EqualFunc(want, got, func(w, g string) bool { return w == g || w == "*" && g != "" })
}

func FuzzMatchPath(f *testing.F) {
	for _, p := range []string{"/", "/**", "/*", "/orders/**", "/a/*/b", "/a/**/b", "/%2F", "**", ""} {
		for _, s := range []string{"", "/", "/orders", "/orders/7", "/a/x/b", "//", "*"} {
			f.Add(p, s)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		got := policy.MatchPath(pattern, path)
		if policy.ValidPattern(pattern) != nil {
			return
		}
		if want := reference(pattern, path); got != want {
			t.Errorf("MatchPath(%q, %q) = %v", pattern, path, got)
		}
		if !strings.Contains(pattern, "*") && got != (pattern == path) {
			t.Errorf("literal %q and %q: %v", pattern, path, got)
		}
	})
}
