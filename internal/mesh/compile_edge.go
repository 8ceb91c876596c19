package mesh

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/snapshot"
)

// issuers are those that some route names: nobody else is asked for keys.
func (c *compiler) issuers() (out []snapshot.Issuer) {
	used := c.f.usedIssuers()
	for _, name := range slices.Sorted(maps.Keys(c.f.Issuers)) {
		i := c.f.Issuers[name]
		if !used[i.Issuer] {
			continue
		}
		rules := i.rules()
		s := snapshot.Issuer{
			Name: name, URL: i.Issuer, JWKSURI: i.JWKSURI, JWKSFile: i.JWKSFile,
			Algorithms: rules.Algorithms, Types: rules.Types, Skew: rules.Skew, MaxAge: rules.MaxAge, MaxStale: i.MaxStale,
			Hosts: slices.Clone(i.Hosts), PrivateHosts: slices.Clone(i.PrivateHosts), CAFile: i.CA,
		}
		if i.Keys != nil {
			s.Keys = set(i.Keys...)
		}
		out = append(out, s)
	}
	return out
}

// usedIssuers are the URLs of issuers that some route names.
func (f *File) usedIssuers() map[string]bool {
	used := map[string]bool{}
	for _, g := range f.Gateways {
		for _, r := range g.Routes {
			if r.Require == nil {
				continue
			}
			for _, c := range r.Require.Any {
				if c.JWT != nil {
					used[c.JWT.Issuer] = true
				}
			}
		}
	}
	return used
}

// front is what stands in front of a gateway.
func (c *compiler) front(out *snapshot.Gateway, g *Gateway) {
	if r := g.Redirect; r != nil {
		port := r.Port
		if port == 0 {
			port = c.address(g.Listen).port
		}
		out.Redirect = &snapshot.Redirect{Listen: c.address(r.Listen).String(), Hosts: g.redirected(), Port: port}
	}
	if h := g.HSTS; h != nil {
		out.HSTS = h.String()
	}
	if p := g.Proxies; p != nil {
		out.Proxies = &snapshot.Proxies{Hops: p.Hops}
		for _, s := range p.From {
			network, ok := parseNetwork(s)
			if !ok {
				c.fail(fmt.Errorf("network %q", s))
			}
			out.Proxies.From = append(out.Proxies.From, network)
		}
	}
}

// String is the value of Strict-Transport-Security (RFC 6797 section 6.1).
func (h *HSTS) String() string {
	s := fmt.Sprintf("max-age=%d", h.MaxAge/time.Second)
	if h.IncludeSubdomains {
		s += "; includeSubDomains"
	}
	return s
}
