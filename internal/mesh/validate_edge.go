package mesh

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/jose"
)

// Limits of issuers and of what stands in front of a gateway.
const (
	maxSkew      = 5 * time.Minute
	minMaxAge    = time.Minute
	minMaxStale  = time.Minute
	maxMaxStale  = 168 * time.Hour
	maxHSTS      = 17520 * time.Hour
	maxHops      = 16
	maxURL       = 2048
	maxAudience  = 512
	issuerExpect = "write it like https://id.shop.example, without user, query and fragment"
)

func (v *validator) issuers() {
	first := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(v.f.Issuers)) {
		if v.full() {
			return
		}
		i, at := v.f.Issuers[name], "issuers."+name
		if !validName(name) {
			v.add(v.f.places[at].key, flaw{
				code: fault.MeshValue, message: fmt.Sprintf("`%s` cannot be a name", clip(name)), label: "not a name",
				hint: "a name is 1 to 63 characters of a-z, 0-9 and hyphen, without one at its ends; the URL is its issuer",
			})
		}
		if other, again := first[i.Issuer]; again && i.Issuer != "" {
			v.at(at+".issuer", flaw{
				code: fault.MeshDuplicate, message: fmt.Sprintf("the issuer %s stands there twice", clip(i.Issuer)), label: "written twice",
				hint: "the first is at " + v.src.where(v.f.Line("issuers."+other+".issuer")),
			})
		}
		first[i.Issuer] = name
		v.issuer(at, i)
	}
}

func (v *validator) issuer(at string, i *Issuer) {
	u := v.url(at+".issuer", i.Issuer)
	if u != nil && len(i.Issuer) > jose.MaxName {
		v.malformed(at+".issuer", i.Issuer, fmt.Sprintf("an issuer is at most %d bytes long", jose.MaxName), issuerExpect, "")
	}
	if u != nil && (u.RawQuery != "" || u.ForceQuery) {
		v.malformed(at+".issuer", i.Issuer, "an issuer has no query", issuerExpect, "")
	}
	v.url(at+".jwks_uri", i.JWKSURI)
	v.filePath(at+".jwks_file", i.JWKSFile)
	v.filePath(at+".ca", i.CA)
	v.span(at+".clock_skew", i.ClockSkew, 0, maxSkew)
	if _, written := v.f.places[at+".max_age"]; written {
		v.span(at+".max_age", i.MaxAge, minMaxAge, maxHSTS)
	}
	v.span(at+".max_stale", i.MaxStale, minMaxStale, maxMaxStale)
	v.oneOf(at+".algorithms", i.Algorithms, jose.Algorithms(), "an asymmetric algorithm of RFC 7518 or EdDSA")
	v.oneOf(at+".types", i.Types, []string{jose.TypeAccess, jose.TypeJWT, jose.TypeAbsent}, "at+jwt, JWT or absent")
	for key, hosts := range map[string][]string{"hosts": i.Hosts, "private_hosts": i.PrivateHosts} {
		for j, h := range hosts {
			v.exactHost(fmt.Sprintf("%s.%s[%d]", at, key, j), h)
		}
	}
	v.keySource(at, i)
}

// keySource refuses two places of keys, and hosts that nobody is asked at.
func (v *validator) keySource(at string, i *Issuer) {
	var sources []string
	for key, said := range map[string]bool{"jwks_uri": i.JWKSURI != "", "jwks_file": i.JWKSFile != "", "keys": i.Keys != nil} {
		if said {
			sources = append(sources, key)
		}
	}
	slices.Sort(sources)
	if len(sources) > 1 {
		v.contradicts(at+"."+sources[1], "two places of one issuer's keys", sources[0]+" is here too", "keep one of "+strings.Join(sources, ", "))
		return
	}
	if i.JWKSFile != "" || i.Keys != nil {
		for _, key := range []string{"hosts", "private_hosts", "ca"} {
			if _, written := v.f.places[at+"."+key]; written {
				v.contradicts(at+"."+key, key+" of an issuer that is not asked for its keys", sources[0]+" has them", "remove one of the two")
			}
		}
	}
	for j, k := range i.Keys {
		if _, refused, err := jose.NewIssuer(i.rules(), k.set()); err != nil && k.Kid != "" && k.Kty != "" {
			label := err.Error()
			if len(refused) > 0 {
				label = refused[0].Why
			}
			v.at(fmt.Sprintf("%s.keys[%d]", at, j), flaw{code: fault.MeshValue, message: fmt.Sprintf("the key %q cannot be used", clip(k.Kid)), label: label, hint: "write the public key as its JWK set has it"})
		}
		if n := slices.IndexFunc(i.Keys[:j], func(o *JWK) bool { return o.Kid == k.Kid }); n >= 0 && k.Kid != "" {
			v.at(fmt.Sprintf("%s.keys[%d].kid", at, j), flaw{
				code: fault.MeshDuplicate, message: fmt.Sprintf("two keys have the kid %q", clip(k.Kid)), label: "written twice",
				hint: "the first is at " + v.src.where(v.f.Line(fmt.Sprintf("%s.keys[%d].kid", at, n))),
			})
		}
	}
}

// rules are how the issuer's tokens are judged, with the defaults.
func (i *Issuer) rules() jose.Rules {
	r := jose.Rules{Issuer: i.Issuer, Algorithms: slices.Clone(i.Algorithms), Types: slices.Clone(i.Types), Skew: i.ClockSkew, MaxAge: i.MaxAge}
	if r.Algorithms == nil {
		r.Algorithms = jose.Algorithms()
	}
	if r.Types == nil {
		r.Types = []string{jose.TypeAccess, jose.TypeJWT}
	}
	return r
}

// set is keys as a JWK set.
func set(keys ...*JWK) []byte {
	out, err := json.Marshal(map[string][]*JWK{"keys": keys})
	if err != nil {
		return nil // texts and lists of texts: it cannot fail
	}
	return out
}

func (k *JWK) set() []byte { return set(k) }

// url checks a URL that is asked for keys, and is nil where it is none.
func (v *validator) url(at, s string) *url.URL {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	switch {
	case len(s) > maxURL:
		v.malformed(at, s, fmt.Sprintf("longer than %d bytes", maxURL), issuerExpect, "")
	case err == nil && u.Scheme == "http":
		v.malformed(at, s, "without TLS anybody on the way could exchange the keys", "write https", "https"+s[len("http"):])
	case err != nil, u.Scheme != "https", u.Opaque != "", u.User != nil, strings.Contains(s, "#"), u.Hostname() == "",
		strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || c == '\\' }):
		v.malformed(at, s, "not an https URL", issuerExpect, "")
	case strings.ToLower(u.Host) != u.Host:
		better := strings.Replace(s, u.Host, strings.ToLower(u.Host), 1)
		v.malformed(at, s, "host names are compared in lower case", fmt.Sprintf("write `%s`", clip(better)), better)
	default:
		return u
	}
	return nil
}

// exactHost checks a host that may be asked: a name or an address.
func (v *validator) exactHost(at, h string) {
	if _, err := netip.ParseAddr(h); err == nil {
		return
	}
	if strings.HasPrefix(h, "*") {
		v.malformed(at, h, "a host that is asked is named in full", "write each name", "")
		return
	}
	v.host(at, h)
}

// oneOf checks each of a list against the values that there are.
func (v *validator) oneOf(at string, list, known []string, what string) {
	for i, s := range list {
		if slices.Contains(known, s) {
			continue
		}
		hint, replacement := "the values are: "+strings.Join(known, ", "), ""
		if near := nearest(s, known); near != "" {
			hint, replacement = fmt.Sprintf("there is a value with a similar name: `%s`", near), near
		}
		if strings.HasPrefix(s, "HS") || s == "none" {
			hint, replacement = "whoever can verify an HMAC can forge one, and none proves nothing: "+hint, ""
		}
		v.malformed(fmt.Sprintf("%s[%d]", at, i), s, "not "+what, hint, replacement)
	}
}

// span checks a duration.
func (v *validator) span(at string, d, least, most time.Duration) {
	if d < least || d > most {
		v.malformed(at, d.String(), "out of range", fmt.Sprintf("write %s to %s", short(least), short(most)), "")
	}
}

// jwt checks a route's requirement, and makes its issuer the URL.
func (v *validator) jwt(at string, j *JWT) {
	if j.Issuer != "" {
		if i := v.f.Issuers[j.Issuer]; i != nil {
			j.Issuer = i.Issuer
		} else if !v.declared(j.Issuer) {
			v.unknownIssuer(at+".issuer", j.Issuer)
		}
	}
	if a := j.Audience; len(a) > maxAudience || strings.ContainsFunc(a, func(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 }) {
		v.malformed(at+".audience", a, "not an audience", fmt.Sprintf("it is text of at most %d bytes, compared exactly", maxAudience), "")
	}
	v.scopes(at, j.Scopes)
}

func (v *validator) declared(url string) bool {
	for _, i := range v.f.Issuers {
		if i.Issuer == url {
			return true
		}
	}
	return false
}

func (v *validator) unknownIssuer(at, said string) {
	f := flaw{code: fault.MeshUnknownName, message: fmt.Sprintf("unknown issuer `%s`", clip(said)), label: "not declared under `issuers`"}
	f.hint = "declare it at the top: issuers: {id: {issuer: " + clip(said) + "}}"
	near := nearest(said, slices.Sorted(maps.Keys(v.f.Issuers)))
	for _, i := range v.f.Issuers {
		if strings.EqualFold(strings.TrimSuffix(i.Issuer, "/"), strings.TrimSuffix(said, "/")) {
			near = i.Issuer
		}
	}
	if near != "" {
		f.hint, f.replacement = fmt.Sprintf("there is an issuer with a similar name: `%s`", clip(near)), near
	}
	v.at(at, f)
}

// scopes checks RFC 6749 section 3.3.
func (v *validator) scopes(at string, list []string) {
	for i, s := range list {
		if strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }) {
			v.malformed(fmt.Sprintf("%s.scopes[%d]", at, i), s, "not a scope", "a scope is visible ASCII without space, quote and backslash", "")
		}
	}
}

// front checks what stands in front of a gateway.
func (v *validator) front(at string, g *Gateway) {
	if r := g.Redirect; r != nil {
		v.address(v.redirectAt(at), r.Listen, onAllInterfaces, false)
		if _, written := v.f.places[at+".redirect.port"]; written && (r.Port < 1 || r.Port > maxPort) {
			v.malformed(at+".redirect.port", fmt.Sprint(r.Port), "not a port", fmt.Sprintf("a port is a number from 1 to %d", maxPort), "")
		}
		if len(g.redirected()) == 0 && r.Listen != "" {
			v.contradicts(at+".redirect", "a redirect without a host", "no route names a host that it could lead to", "name the host: match: {host: api.shop.example}")
		}
	}
	if g.HSTS != nil {
		v.span(at+".hsts.max_age", g.HSTS.MaxAge, 0, maxHSTS)
	}
	if p := g.Proxies; p != nil {
		if p.Hops < 1 || p.Hops > maxHops {
			v.malformed(at+".trusted_proxies.hops", fmt.Sprint(p.Hops), "out of range", fmt.Sprintf("write 1 to %d", maxHops), "")
		}
		for i, s := range p.From {
			v.network(fmt.Sprintf("%s.trusted_proxies.from[%d]", at, i), s)
		}
	}
}

// redirectAt is the path of a redirect's address: of its short form the entry.
func (v *validator) redirectAt(gateway string) string {
	if p := gateway + ".redirect.listen"; v.f.places[p].mark().line > 0 {
		return p
	}
	return gateway + ".redirect"
}

// network checks the addresses of proxies.
func (v *validator) network(at, s string) {
	p, ok := parseNetwork(s)
	switch {
	case s == "":
	case !ok:
		v.malformed(at, s, "not a network", "write it like 10.0.0.0/24, or one address", "")
	case p.Bits() == 0:
		v.malformed(at, s, "everybody", "whoever is believed can say to be anybody: name the proxies", "")
	case p.Masked() != p:
		v.malformed(at, s, "an address within its network", fmt.Sprintf("write `%s`, or the address alone", p.Masked()), p.Masked().String())
	}
}

// parseNetwork reads a prefix or an address, as a prefix.
func parseNetwork(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p, err == nil && !p.Addr().Is4In6()
}

// redirected are the hosts that plaintext HTTP is redirected for: those that the
// routes name, and those of the mesh's own certificate.
func (g *Gateway) redirected() []string {
	var hosts []string
	for _, r := range g.Routes {
		if r.Match != nil && r.Match.Host != "" {
			hosts = append(hosts, r.Match.Host)
		}
	}
	if g.TLS != nil && g.TLS.MeshCA != nil {
		hosts = append(hosts, g.TLS.MeshCA.Hosts...)
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}
