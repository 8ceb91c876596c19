package fetch

import (
	"net/netip"
	"slices"
)

// reserved are the address blocks that are nobody's on the open internet, beside
// those that netip knows by name (IANA special-purpose registries, RFC 6890), and
// the ones that carry an IPv4 address inside, which would lead around the check.
var reserved = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "240.0.0.0/4",
	"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// public says that an address belongs to somebody on the open internet.
func public(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && a.Zone() == "" && a.IsGlobalUnicast() && !a.IsPrivate() && !a.IsLoopback() &&
		!slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(a) })
}

// near says that an address is of this host or of a private network: what a host
// that is named for it may lead to. Link-local addresses are not among them, where
// clouds keep credentials for whoever asks (169.254.169.254, fe80::/10), nor is
// their metadata at fd00:ec2::/32.
func near(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && a.Zone() == "" && (a.IsPrivate() || a.IsLoopback() || shared.Contains(a)) && !metadata.Contains(a)
}

var (
	shared   = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598: the inside of some networks
	metadata = netip.MustParsePrefix("fd00:ec2::/32")
)
