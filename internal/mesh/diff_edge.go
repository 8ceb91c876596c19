package mesh

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strings"
)

// issuers compares whose tokens are accepted, and how they are judged. Another way
// to tell good tokens from bad makes access wider, unless it plainly does not.
func (d *differ) issuers() {
	for _, name := range keys(d.old.Issuers, d.new.Issuers) {
		old, new := d.old.Issuers[name], d.new.Issuers[name]
		switch {
		case old == nil:
			d.add(Added, "issuer", name, new.Issuer, "")
		case new == nil:
			d.add(Removed, "issuer", name, old.Issuer, "")
		default:
			d.issuer(name, old, new)
		}
	}
}

func (d *differ) issuer(name string, old, new *Issuer) {
	narrower := map[string]bool{
		"types":      all(new.rules().Types, old.rules().Types),
		"clock_skew": new.ClockSkew < old.ClockSkew,
		"max_age":    new.MaxAge > 0 && (old.MaxAge == 0 || new.MaxAge < old.MaxAge),
	}
	was, is := old.facts(), new.facts()
	for i := range was {
		access := Wider
		if narrower[was[i][0]] {
			access = Narrower
		}
		if was[i][1] != is[i][1] {
			d.add(Changed, "issuer", name, fmt.Sprintf("%s: %s -> %s", was[i][0], was[i][1], is[i][1]), access)
		}
	}
	d.changed("issuer", name, "max_stale", short(old.MaxStale), short(new.MaxStale))
}

// facts are what decides about an issuer's tokens, by their keys.
func (i *Issuer) facts() [9][2]string {
	rules, age := i.rules(), "none"
	if i.MaxAge > 0 {
		age = short(i.MaxAge)
	}
	place := cmp.Or(i.JWKSURI, i.JWKSFile, "its metadata")
	if i.Keys != nil {
		var kids []string
		for _, k := range i.Keys {
			kids = append(kids, fmt.Sprintf("%q", k.Kid))
		}
		place = "the keys " + strings.Join(kids, ", ")
	}
	return [9][2]string{
		{"issuer", i.Issuer},
		{"keys", place},
		{"key material", fmt.Sprintf("%.8x", sha256.Sum256(set(i.Keys...)))},
		{"algorithms", strings.Join(rules.Algorithms, ", ")},
		{"types", strings.Join(rules.Types, ", ")},
		{"clock_skew", short(i.ClockSkew)},
		{"max_age", age},
		{"hosts", cmp.Or(strings.Join(append(append([]string{}, i.Hosts...), i.PrivateHosts...), ", "), "its own")},
		{"ca", cmp.Or(i.CA, "the host's")},
	}
}

// front compares what stands in front of a gateway. With other proxies, other
// addresses are believed; that is no change of who may call.
func (d *differ) front(name string, old, new *Gateway) {
	d.changed("gateway", name, "redirect", old.Redirect.String(), new.Redirect.String())
	d.changed("gateway", name, "hsts", old.HSTS.text(), new.HSTS.text())
	d.changed("gateway", name, "trusted_proxies", old.Proxies.String(), new.Proxies.String())
}

// String is the redirect as a person reads it.
func (r *Redirect) String() string {
	switch {
	case r == nil:
		return "none"
	case r.Port == 0:
		return r.Listen
	}
	return fmt.Sprintf("%s to port %d", r.Listen, r.Port)
}

func (h *HSTS) text() string {
	if h == nil {
		return "none"
	}
	return h.String()
}

// String is the proxies as a person reads them.
func (p *TrustedProxies) String() string {
	if p == nil {
		return "none"
	}
	return fmt.Sprintf("%d of %s", p.Hops, strings.Join(p.From, ", "))
}
