package route_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/snapshot"
)

func proxies(hops int, from ...string) *snapshot.Proxies {
	p := &snapshot.Proxies{Hops: hops}
	for _, f := range from {
		p.From = append(p.From, netip.MustParsePrefix(f))
	}
	return p
}

func TestClient(t *testing.T) {
	t.Parallel()
	one, two := proxies(1, "10.0.0.0/24", "fd00::/8"), proxies(2, "10.0.0.0/24", "10.9.0.0/16")
	for _, tt := range []struct {
		name, remote, forwarded string // several values with a | between them
		p                       *snapshot.Proxies
		want                    string
	}{
		{"nobody is trusted", "10.0.0.1", "192.0.2.1", nil, "10.0.0.1"},
		{"one hop", "10.0.0.1", "192.0.2.1", one, "192.0.2.1"},
		{"a client that writes itself", "10.0.0.1", "6.6.6.6, 192.0.2.1", one, "192.0.2.1"},
		{"in a field of its own", "10.0.0.1", "6.6.6.6|192.0.2.1", one, "192.0.2.1"},
		{"posing as a proxy", "10.0.0.1", "6.6.6.6, 10.0.0.2, 192.0.2.1", two, "192.0.2.1"},
		{"posing as all", "10.0.0.1", "6.6.6.6, 10.0.0.2, 10.0.0.3", one, "10.0.0.3"},
		{"not from a proxy", "192.0.2.9", "6.6.6.6", one, "192.0.2.9"},
		{"not from a proxy of these", "10.0.1.1", "6.6.6.6", one, "10.0.1.1"},
		{"two hops", "10.0.0.1", "6.6.6.6, 192.0.2.1, 10.9.1.1", two, "192.0.2.1"},
		{"past the first", "10.0.0.1", "192.0.2.1", two, "192.0.2.1"},
		{"more proxies than hops", "10.0.0.1", "192.0.2.1, 10.9.1.1, 10.9.1.2", two, "10.9.1.1"},
		{"nothing said", "10.0.0.1", "", one, "10.0.0.1"},
		{"empty", "10.0.0.1", ",", one, "10.0.0.1"},
		{"no address", "10.0.0.1", "192.0.2.1, unknown", one, "10.0.0.1"},
		{"no address further on", "10.0.0.1", "unknown, 10.9.1.1", two, "10.9.1.1"},
		{"a name", "10.0.0.1", "localhost", one, "10.0.0.1"},
		{"with a port", "10.0.0.1", "192.0.2.1:5000", one, "192.0.2.1"},
		{"IPv6", "fd00::1", "2001:db8::7", one, "2001:db8::7"},
		{"IPv6 with a port", "fd00::1", "[2001:db8::7]:5000", one, "2001:db8::7"},
		{"with a zone", "10.0.0.1", "fe80::1%eth0", one, "10.0.0.1"},
		{"mapped", "::ffff:10.0.0.1", "::ffff:192.0.2.1", one, "192.0.2.1"},
		{"spaces", "10.0.0.1", " 6.6.6.6 ,\t192.0.2.1 ", one, "192.0.2.1"},
		{"octal", "10.0.0.1", "192.0.02.1", one, "10.0.0.1"},
		{"very long", "10.0.0.1", strings.Repeat("6.6.6.6,", 10_000) + "192.0.2.1", one, "192.0.2.1"},
	} {
		var values []string
		if tt.forwarded != "" {
			values = strings.Split(tt.forwarded, "|")
		}
		got, told := route.Client(netip.MustParseAddr(tt.remote), values, tt.p)
		if got.String() != tt.want || told != (got != netip.MustParseAddr(tt.remote).Unmap()) {
			t.Errorf("%s: %s, %t; want %s", tt.name, got, told, tt.want)
		}
	}
}

func TestProto(t *testing.T) {
	t.Parallel()
	p := proxies(1, "10.0.0.0/24")
	for _, tt := range []struct {
		remote string
		values []string
		p      *snapshot.Proxies
		secure bool
		want   string
	}{
		{"10.0.0.1", []string{"http"}, p, true, "http"},
		{"::ffff:10.0.0.1", []string{"http"}, p, true, "http"},
		{"10.0.0.1", []string{"https"}, p, false, "https"},
		{"10.0.0.1", nil, p, true, "https"},
		{"10.0.0.1", []string{"https", "http"}, p, false, "http"},
		{"10.0.0.1", []string{"https, http"}, p, false, "http"},
		{"10.0.0.1", []string{"HTTPS"}, p, false, "http"},
		{"10.0.0.1", []string{"gopher"}, p, true, "https"},
		{"192.0.2.1", []string{"http"}, p, true, "https"},
		{"10.0.0.1", []string{"http"}, nil, true, "https"},
	} {
		if got := route.Proto(netip.MustParseAddr(tt.remote), tt.values, tt.p, tt.secure); got != tt.want {
			t.Errorf("%q from %s is %s, want %s", tt.values, tt.remote, got, tt.want)
		}
	}
}

func TestHostIn(t *testing.T) {
	t.Parallel()
	patterns := []string{"api.shop.example", "*.SHOP.internal", "", "127.0.0.1", "::1", "0:0::2"}
	for host, want := range map[string]bool{
		"api.shop.example": true, "a.shop.internal": true, "127.0.0.1": true, "[::1]": true, "[::2]": true,
		"shop.example": false, "x.api.shop.example": false, "a.b.shop.internal": false, "shop.internal": false,
		"evil.example": false, "api.shop.example.evil.example": false, "": false, "::1": false,
	} {
		if got := route.HostIn(patterns, host); got != want {
			t.Errorf("%q: %t", host, got)
		}
	}
}

// FuzzClient: whatever is sent, nothing counts that stands left of the first
// address that is no proxy's, and what comes out is an address of the list or the
// connection's own.
func FuzzClient(f *testing.F) {
	f.Add("6.6.6.6, 192.0.2.1", 1)
	f.Add("a,b,,10.0.0.2", 2)
	f.Add("[::1]:5, 10.0.0.9:80", 3)
	p := proxies(1, "10.0.0.0/24")
	remote := netip.MustParseAddr("10.0.0.1")
	f.Fuzz(func(t *testing.T, forwarded string, hops int) {
		p := &snapshot.Proxies{Hops: hops%17 + 1, From: p.From}
		got, told := route.Client(remote, []string{forwarded}, p)
		again, _ := route.Client(remote, []string{"6.6.6.6", forwarded}, &snapshot.Proxies{Hops: min(p.Hops, strings.Count(forwarded, ",")+1), From: p.From})
		if !got.IsValid() || !told && got != remote {
			t.Fatalf("%q gives %s, %t", forwarded, got, told)
		}
		if entries := strings.Count(forwarded, ",") + 1; p.Hops <= entries && forwarded != "" && got != again {
			t.Fatalf("%q gives %s, and %s with more in front of it", forwarded, got, again)
		}
	})
}
