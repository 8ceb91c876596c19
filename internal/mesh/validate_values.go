package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/fault"
)

func (v *validator) runsAs(at string, r *RunsAs) {
	if r == nil {
		return
	}
	written := slices.ContainsFunc(keysOf(reflect.TypeFor[RunsAs]()), func(k key) bool {
		_, ok := v.f.places[at+"."+k.name]
		return ok
	})
	if *r == (RunsAs{}) && !written && !v.strange[at] {
		v.at(at, flaw{code: fault.MeshMissing, message: fmt.Sprintf("`%s` has no selector", at), label: "every process would match", hint: "write at least one of: user, group, systemd, exe, sha256"})
	}
	v.account(at+".user", r.User)
	v.account(at+".group", r.Group)
	unit := r.Systemd
	switch {
	case unit == "":
	case strings.ContainsAny(unit, "/ \t"):
		v.malformed(at+".systemd", unit, "not a systemd unit", "write it like orders.service", "")
	case !strings.HasSuffix(unit, ".service") && !strings.HasSuffix(unit, ".scope"):
		better := unit + ".service"
		v.malformed(at+".systemd", unit, "a unit without its type", fmt.Sprintf("write `%s`", better), better)
	}
	v.filePath(at+".exe", r.Exe)
	sum := r.SHA256
	switch lower := strings.ToLower(sum); {
	case sum == "":
	case len(sum) != 64 || strings.Trim(lower, "0123456789abcdef") != "":
		v.malformed(at+".sha256", sum, "not 64 hexadecimal digits", "take the first column of: sha256sum PATH", "")
	case sum != lower:
		v.malformed(at+".sha256", sum, "digits in upper case", "write it in lower case", lower)
	}
}

// account checks the name or number of a user or group.
func (v *validator) account(at, name string) {
	if name == "" {
		return
	}
	if strings.Trim(name, "0123456789") == "" {
		// The last number means "no change" to the kernel and is nobody's.
		if n, err := strconv.ParseUint(name, 10, 32); err != nil || n == 1<<32-1 {
			v.malformed(at, name, "out of range", "a number is at most 4294967294", "")
		}
		return
	}
	if len(name) > 256 || strings.ContainsAny(name, ":/, \t") {
		v.malformed(at, name, "not a name of a user or group", "write a name as `getent` prints it, or its number", "")
	}
}

// filePath checks the path of a file on the service's or gateway's host.
func (v *validator) filePath(at, p string) {
	switch {
	case p == "":
	case !path.IsAbs(p):
		v.malformed(at, p, "not an absolute path", "begin it with /", "")
	case p == "/":
		v.malformed(at, p, "the root directory", "name a file", "")
	case path.Clean(p) != p:
		v.malformed(at, p, "not in its shortest form", fmt.Sprintf("write `%s`", path.Clean(p)), path.Clean(p))
	}
}

func (v *validator) gateway(name string, g *Gateway) {
	at := "gateway." + name
	v.name(at, name)
	v.runsOn(at, "gateway "+name, g.RunsOn)
	v.address(at+".listen", g.Listen, onAllInterfaces, false)
	v.tls(at+".tls", g.TLS)
	v.front(at, g)
	for i, r := range g.Routes {
		if v.full() {
			return
		}
		v.route(name, fmt.Sprintf("%s.routes[%d]", at, i), r)
	}
}

func (v *validator) tls(at string, t *TLS) {
	if t == nil {
		return
	}
	files := t.Cert != "" || t.Key != ""
	switch {
	case files && t.MeshCA != nil:
		v.contradicts(at+".mesh_ca", "two certificates for one gateway", "cert and key are here too", "keep either cert and key, or mesh_ca")
	case t.MeshCA == nil && !v.strange[at] && (t.Cert == "" || t.Key == ""):
		missing := "`cert` and `key`, or `mesh_ca`"
		if t.Cert != "" {
			missing = "`key`"
		} else if t.Key != "" {
			missing = "`cert`"
		}
		v.at(at, flaw{code: fault.MeshMissing, message: "missing " + missing, label: "`" + at + "` needs a certificate", hint: "write {cert: /path/cert.pem, key: /path/key.pem}, or {mesh_ca: {hosts: [NAME]}}"})
	}
	v.filePath(at+".cert", t.Cert)
	v.filePath(at+".key", t.Key)
	if t.MeshCA == nil {
		return
	}
	for i, h := range t.MeshCA.Hosts {
		if _, err := netip.ParseAddr(h); err != nil {
			v.host(fmt.Sprintf("%s.mesh_ca.hosts[%d]", at, i), h)
		}
	}
}

func (v *validator) route(gateway, at string, r *Route) {
	if s := v.known(at+".to", r.To); s != nil {
		where := v.src.where(v.f.Line("services." + r.To))
		switch {
		case !s.callable():
			v.contradicts(at+".to", r.To+" cannot be called", "it has no inbound and no endpoints", fmt.Sprintf("add under %s (%s): inbound: {listen: \":9443\", app: 127.0.0.1:8080}", r.To, where))
		case s.protocol() == tcp:
			v.contradicts(at+".to", "a route to a tcp service", "a gateway forwards HTTP requests", fmt.Sprintf("write protocol: http there if it speaks HTTP (%s)", where))
		default:
			v.reachable(at+".to", "gateway "+gateway, v.f.Gateways[gateway].RunsOn, r.To)
		}
	}
	if m := r.Match; m != nil {
		v.host(at+".match.host", m.Host)
		v.pattern(at+".match.path", m.Path)
		v.methods(at+".match.methods", m.Methods)
	}
	v.webSocket(at, r)
	if r.Require == nil {
		return
	}
	tokens := false
	for i, c := range r.Require.Any {
		v.credential(fmt.Sprintf("%s.require.any[%d]", at, i), c)
		tokens = tokens || c.JWT != nil
	}
	if r.ForwardToken && !tokens {
		v.contradicts(at+".forward_token", "a token is forwarded that the route does not ask for", "no jwt under require", "remove it: what the gateway does not look at is forwarded anyway")
	}
}

// credential is of one kind; two would be read as both being asked for.
func (v *validator) credential(at string, c *Credential) {
	switch {
	case c.APIKey == nil && c.JWT == nil:
		if !v.strange[at] {
			v.at(at, flaw{code: fault.MeshMissing, message: "a credential without its kind", label: "nothing is asked for", hint: "write {api_key: {}}, or {jwt: {issuer: NAME, audience: NAME}}"})
		}
	case c.APIKey != nil && c.JWT != nil:
		v.contradicts(at, "two kinds of credential in one entry", "one of them would be enough", "write two entries: - api_key: ... and - jwt: ...")
	}
	if c.APIKey != nil {
		v.scopes(at+".api_key", c.APIKey.Scopes)
	}
	if c.JWT != nil {
		v.jwt(at+".jwt", c.JWT)
	}
}

// webSocket checks what a route says of WebSocket.
func (v *validator) webSocket(at string, r *Route) {
	ws := r.WebSocket
	if ws == nil {
		return
	}
	at += ".websocket"
	if s := v.f.Services[r.To]; s != nil && s.Inbound != nil && s.Inbound.Protocol != tcp && s.Inbound.WebSocket == nil {
		v.contradicts(at, "WebSocket to a service that does not allow it", r.To+" refuses it",
			fmt.Sprintf("add under its inbound (%s): websocket: {}", v.src.where(v.f.Line("services."+r.To))))
	}
	if m := r.Match; m != nil && len(m.Methods) > 0 && !slices.Contains(m.Methods, "GET") {
		v.contradicts(at, "WebSocket on a route without GET", "it begins with a GET", "add GET to the methods of match, or leave them out")
	}
	for i, o := range ws.Origins {
		v.origin(fmt.Sprintf("%s.origins[%d]", at, i), o)
	}
}

// origin checks a page's origin as browsers send it (RFC 6454 section 6.2).
func (v *validator) origin(at, o string) {
	if o == "" {
		return
	}
	const like = "write it like https://shop.example"
	lower := strings.ToLower(o)
	scheme, host, ok := strings.Cut(lower, "://")
	name, port, hasPort := strings.Cut(host, ":")
	_, badPort := strconv.ParseUint(port, 10, 16)
	switch {
	case o == "*":
		v.malformed(at, o, "every page of the world", "name the pages that may call: https://shop.example", "")
	case !ok || scheme != "https" && scheme != "http":
		v.malformed(at, o, "not an origin", like, "")
	case strings.HasPrefix(host, "*"):
		v.malformed(at, o, "origins are compared whole", "name each host", "")
	case !validHost(name) || hasPort && badPort != nil:
		v.malformed(at, o, "a scheme, a host and perhaps a port, and nothing else", like, "")
	case scheme == "https" && port == "443", scheme == "http" && port == "80":
		v.malformed(at, o, "browsers leave out the scheme's own port", fmt.Sprintf("write `%s`", scheme+"://"+name), scheme+"://"+name)
	case lower != o:
		v.malformed(at, o, "browsers send it in lower case", fmt.Sprintf("write `%s`", lower), lower)
	}
}

// host checks a host name, which may begin with *.
func (v *validator) host(at, h string) {
	if h == "" {
		return
	}
	if lower := strings.ToLower(h); lower != h && validHost(lower) {
		v.malformed(at, h, "host names are compared in lower case", fmt.Sprintf("write `%s`", lower), lower)
		return
	}
	if validHost(h) {
		return
	}
	hint := "write it like api.shop.example or *.shop.example"
	if name, _, ok := strings.Cut(h, ":"); ok && validHost(name) {
		hint = fmt.Sprintf("write it without the port: `%s`", name)
	}
	v.malformed(at, h, "not a host name", hint, "")
}

func validHost(h string) bool {
	h = strings.TrimPrefix(h, "*.")
	if len(h) > 253 {
		return false
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

// A statement is one address that the document states.
type statement struct {
	address
	holder
	app bool
	on  []string // the hosts where it is one
}

// statements are all addresses of the document that are well formed, in order
// of place, the applications' last.
func (f *File) statements() []statement {
	var all []statement
	put := func(s, what, path string, app bool, on []string) {
		if a, bad := parseAddress(s, onLoopback); s != "" && bad == nil {
			all = append(all, statement{a, holder{what, path}, app, on})
		}
	}
	for name, s := range f.Services {
		if in := s.Inbound; in != nil {
			put(in.Listen, "the inbound listener of "+name, "services."+name+".inbound.listen", false, s.RunsOn)
			put(in.App, "the application of "+name, "services."+name+".inbound.app", true, s.RunsOn)
		}
		for i, c := range s.Calls {
			put(c.Listen, fmt.Sprintf("the listener for %s's calls to %s", name, c.To), fmt.Sprintf("services.%s.calls[%d].listen", name, i), false, s.RunsOn)
		}
	}
	for name, g := range f.Gateways {
		put(g.Listen, "gateway "+name, "gateway."+name+".listen", false, g.RunsOn)
		if g.Redirect != nil {
			at := "gateway." + name + ".redirect"
			if f.places[at+".listen"].mark().line > 0 {
				at += ".listen"
			}
			put(g.Redirect.Listen, "the redirect of gateway "+name, at, false, g.RunsOn)
		}
	}
	slices.SortFunc(all, func(a, b statement) int {
		if a.app != b.app {
			if b.app {
				return -1
			}
			return 1
		}
		x, y := f.places[a.path].mark(), f.places[b.path].mark()
		return cmp.Or(cmp.Compare(x.line, y.line), cmp.Compare(x.col, y.col), cmp.Compare(a.path, b.path))
	})
	return all
}

// stated are the addresses of the document.
func (f *File) stated() *addresses {
	as := &addresses{}
	for _, s := range f.statements() {
		as.put(s.address, s.holder)
	}
	return as
}

// collisions refuses two listeners on one address of one host, and an application
// on a listener's. Two services may share an application.
func (v *validator) collisions() {
	byHost := map[string]*addresses{"": {}} // a file without hosts has one
	for h := range v.f.Hosts {
		byHost[h] = &addresses{}
	}
	for _, s := range v.f.statements() {
		hosts := s.on
		if len(v.f.Hosts) == 0 || len(hosts) == 0 {
			hosts = []string{""}
		}
		for _, h := range hosts {
			listeners := byHost[h]
			if listeners == nil {
				continue // an unknown host is a flaw of its own
			}
			if other, taken := listeners.find(s.address); taken {
				v.at(s.path, flaw{
					code: fault.MeshPortTaken, message: fmt.Sprintf("%s is on the address of %s", s.what, other.what), label: "taken",
					hint: fmt.Sprintf("choose another port or path; the other is at %s", v.src.where(v.f.Line(other.path))),
				})
				break
			}
			if !s.app {
				listeners.put(s.address, s.holder)
			}
		}
	}
}
