package route

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/snapshot"
)

// HTTPSRequired is the code of a request that carried a credential over plaintext
// HTTP to where only the way to HTTPS is told.
const HTTPSRequired = "https_required" // 403

// Client is the address of whoever sent a request, and whether a trusted proxy
// told it. forwarded are the values of X-Forwarded-For, remote the other side of
// the connection.
//
// They are read from the right, where each proxy writes whom it was called by: as
// long as the address at hand is a trusted proxy's, the one that it wrote is
// believed, p.Hops times at most. So nothing counts that a client wrote itself,
// and a request that came with fewer proxies in between has its own address too.
func Client(remote netip.Addr, forwarded []string, p *snapshot.Proxies) (client netip.Addr, told bool) {
	client = remote.Unmap()
	if p == nil {
		return client, false
	}
	at := len(forwarded)
	rest := ""
	for range p.Hops {
		if !trusted(p, client) {
			break
		}
		for rest == "" && at > 0 {
			at--
			rest = forwarded[at]
		}
		entry := rest
		if i := strings.LastIndexByte(rest, ','); i >= 0 {
			entry, rest = rest[i+1:], rest[:i]
		} else {
			rest = ""
		}
		next, ok := forwardedAddr(strings.Trim(entry, " \t"))
		if !ok {
			break
		}
		client, told = next, true
	}
	return client, told
}

// Proto is the scheme that a client used: what the one trusted proxy that is
// connected says, or else what the connection is.
func Proto(remote netip.Addr, forwarded []string, p *snapshot.Proxies, secure bool) string {
	if p != nil && len(forwarded) == 1 && (forwarded[0] == "http" || forwarded[0] == "https") && trusted(p, remote.Unmap()) {
		return forwarded[0]
	}
	if secure {
		return "https"
	}
	return "http"
}

func trusted(p *snapshot.Proxies, a netip.Addr) bool {
	return slices.ContainsFunc(p.From, func(n netip.Prefix) bool { return n.Contains(a) })
}

// forwardedAddr reads one entry: an address, with a port behind it where the proxy
// writes one.
func forwardedAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		a = ap.Addr()
	}
	return a.Unmap(), a.Zone() == ""
}

// HostIn says whether a canonical host is one of patterns: a name, *.name for
// exactly one more label, or an address.
func HostIn(patterns []string, host string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if a, err := netip.ParseAddr(p); err == nil && a.Is6() {
			p = "[" + a.String() + "]"
		}
		return p != "" && matchHost(strings.ToLower(p), host)
	})
}
