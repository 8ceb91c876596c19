package mesh

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
)

// A validator checks what the types cannot say. A part that the decoder already
// reported is zero here and passes.
type validator struct {
	*reporter
	f *File
	// strange is the decoder's.
	strange map[string]bool
}

// at places a flaw at the value of path, unless something is wrong there already.
func (v *validator) at(path string, f flaw) {
	mark := v.f.places[path].mark()
	if !v.blamed(mark) {
		v.add(mark, f)
	}
}

func (v *validator) blamed(at span) bool {
	return slices.ContainsFunc(v.faults, func(f *fault.Fault) bool { return f.Line == at.line && f.Column == at.col })
}

// malformed places a flaw of a value's form.
func (v *validator) malformed(path, value, label, hint, replacement string) {
	v.at(path, flaw{
		code: fault.MeshValue, message: fmt.Sprintf("malformed `%s`: `%s`", path, clip(value)),
		label: label, hint: hint, replacement: scalar(replacement),
	})
}

// contradicts places a flaw of a value that is well formed and cannot hold here.
func (v *validator) contradicts(path, message, label, hint string) {
	v.at(path, flaw{code: fault.MeshContradicts, message: message, label: label, hint: hint})
}

func (v *validator) file() {
	f := v.f
	if _, err := identity.ParseTrustDomain(f.TrustDomain); f.TrustDomain != "" && err != nil {
		hint, better := "write it like a domain name: shop.example", strings.ToLower(f.TrustDomain)
		if _, err := identity.ParseTrustDomain(better); err == nil {
			hint = fmt.Sprintf("write `%s`", better)
		} else {
			better = ""
		}
		v.malformed("trust_domain", f.TrustDomain, identity.ErrTrustDomain.Error(), hint, better)
	}
	if ttl := f.LeafTTL; ttl < minLeafTTL || ttl > maxLeafTTL {
		v.malformed("leaf_ttl", ttl.String(), "out of range", fmt.Sprintf("a certificate lives %s to %s", short(minLeafTTL), short(maxLeafTTL)), "")
	}
	if p := f.OutboundPorts; p < minPort || p > maxPort {
		v.malformed("outbound_ports", fmt.Sprint(p), "out of range", fmt.Sprintf("choose a port from %d to %d", minPort, maxPort), "")
	}
	for _, name := range slices.Sorted(maps.Keys(f.Hosts)) {
		v.hostEntry(name, f.Hosts[name])
	}
	for _, name := range slices.Sorted(maps.Keys(f.Admins)) {
		v.entryName("admins."+name, name)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Services)) {
		if v.full() {
			return
		}
		v.service(name, f.Services[name])
	}
	for _, name := range slices.Sorted(maps.Keys(f.Gateways)) {
		v.gateway(name, f.Gateways[name])
	}
	v.issuers()
	v.retention()
	v.collisions()
	if len(v.faults) > 0 {
		return
	}
	if _, err := AssignPorts(f, nil); err != nil {
		for _, x := range fault.All(err) {
			v.add(f.places["outbound_ports"].mark(), flaw{code: x.Code, message: x.Message, label: "too few ports from here to 65535", hint: x.Hint})
		}
	}
}

// name checks the key of a service or gateway.
func (v *validator) name(path, name string) {
	at := v.f.places[path].key
	bad := func(code fault.Code, message, label, hint string) {
		v.add(at, flaw{code: code, message: message, label: label, hint: hint})
	}
	switch _, gateway := v.f.Gateways[name]; {
	case !validName(name):
		bad(fault.MeshValue, fmt.Sprintf("`%s` cannot be a name", clip(name)), "not a name", "a name is 1 to 63 characters of a-z, 0-9 and hyphen, without one at its ends")
	case name == "gateway":
		bad(fault.MeshValue, "`gateway` cannot be a name", "reserved", "it stands for the gateways: choose another")
	case gateway && v.f.Services[name] != nil && strings.HasPrefix(path, "gateway."):
		bad(fault.MeshDuplicate, fmt.Sprintf("`%s` is a service and a gateway", name), "used twice", "the service is at "+v.src.where(v.f.Line("services."+name)))
	}
}

func validName(name string) bool {
	return len(name) >= 1 && len(name) <= 63 && name[0] != '-' && name[len(name)-1] != '-' &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func (v *validator) service(name string, s *Service) {
	path := "services." + name
	v.name(path, name)
	v.runsOn(path, name, s.RunsOn)
	v.runsAs(path+".runs_as", s.RunsAs)
	v.endpoints(path, name, s)
	if in := s.Inbound; in != nil {
		v.address(path+".inbound.listen", in.Listen, onAllInterfaces, false)
		v.address(path+".inbound.app", in.App, onLoopback, true)
		v.plaintext(path+".inbound", in)
		v.health(path+".inbound.health", in)
		if in.Protocol == tcp && in.WebSocket != nil {
			v.contradicts(path+".inbound.websocket", "WebSocket for a tcp service", "the protocol is tcp", "remove it, since a tcp service relays whatever comes, or write protocol: http")
		}
		v.probe(path+".inbound.probe", in)
		if in.Protocol == tcp && in.AppProtocol != "" {
			v.contradicts(path+".inbound.app_protocol", "an HTTP version for a tcp service", "the protocol is tcp", "remove it, or write protocol: http")
		}
	}
	first := map[string]int{}
	for i, c := range s.Calls {
		at := fmt.Sprintf("%s.calls[%d]", path, i)
		v.call(at, name, c)
		if line, again := first[c.To]; again && c.To != "" {
			v.at(v.to(at), flaw{code: fault.MeshDuplicate, message: fmt.Sprintf("%s calls %s twice", name, c.To), label: "written twice", hint: "the first is at " + v.src.where(line)})
		}
		first[c.To] = v.f.Line(at)
	}
	if len(s.Allow) > 0 && s.Inbound == nil && len(s.Endpoints) > 0 {
		v.contradicts(path+".allow", name+" allows calls and has no inbound", "no agent is in front of it to ask",
			"remove it: the program of "+name+" decides itself who may call it")
	} else if len(s.Allow) > 0 && s.Inbound == nil {
		v.at(path+".allow", flaw{code: fault.MeshContradicts, message: fmt.Sprintf("%s allows calls and has no inbound", name), label: "nobody can call it", hint: "add under " + name + ": inbound: {listen: \":9443\", app: 127.0.0.1:8080}"})
	}
	for i, a := range s.Allow {
		v.allow(fmt.Sprintf("%s.allow[%d]", path, i), s, a)
	}
}

// to is the path of a call's callee: of its short form the entry itself.
func (v *validator) to(call string) string {
	if p := call + ".to"; v.f.places[p].mark().line > 0 {
		return p
	}
	return call
}

func (v *validator) call(path, from string, c *Call) {
	switch callee := v.known(v.to(path), c.To); {
	case c.To == from:
		v.contradicts(v.to(path), from+" calls itself", "the service that this stands under", "remove it: a service reaches itself without the mesh")
	case callee != nil && !callee.callable():
		v.contradicts(v.to(path), c.To+" cannot be called", "it has no inbound and no endpoints",
			fmt.Sprintf("add under %s (%s): inbound: {listen: \":9443\", app: 127.0.0.1:8080}; or endpoints: [HOST:PORT], where its program speaks mutual TLS itself", c.To, v.src.where(v.f.Line("services."+c.To))))
	case callee != nil && v.f.Services[from] != nil:
		v.reachable(v.to(path), from, v.f.Services[from].RunsOn, c.To)
	}
	if a, ok := v.address(path+".listen", c.Listen, onLoopback, true); ok && !a.local() {
		better := onLoopback(fmt.Sprint(a.port))
		v.at(path+".listen", flaw{
			code: fault.MeshValue, message: "an outbound listener that other hosts can reach", label: "what arrives here is plaintext",
			hint: fmt.Sprintf("write `%s`, or unix:/path", better), replacement: better,
		})
	}
}

// known is the service called name, or nil after a fault where there is none.
func (v *validator) known(path, name string) *Service {
	if name == "" {
		return nil
	}
	if s := v.f.Services[name]; s != nil {
		return s
	}
	v.unknown(path, "service", name, "services", slices.Sorted(maps.Keys(v.f.Services)))
	return nil
}

func (v *validator) unknown(path, kind, name, section string, candidates []string) {
	f := flaw{code: fault.MeshUnknownName, message: fmt.Sprintf("unknown %s `%s`", kind, clip(name)), label: fmt.Sprintf("not declared under `%s`", section)}
	if near := nearest(name, candidates); near != "" {
		f.hint = fmt.Sprintf("there is a %s with a similar name: `%s` (%s)", kind, near, v.src.where(v.f.Line(section+"."+near)))
		if f.replacement = near; kind == "gateway" {
			f.replacement = "gateway/" + near
		}
	} else if _, isGateway := v.f.Gateways[name]; isGateway && kind == "service" {
		f.hint, f.replacement = fmt.Sprintf("a gateway is written `gateway/%s`", name), "gateway/"+name
	} else if kind == "service" && slices.Contains([]string{"*", "any", "all", "everyone", "everybody"}, name) {
		f.hint = "there is no word for everybody: name each service"
	} else if kind == "host" && validName(name) {
		f.hint = fmt.Sprintf("add it, if it is to join: hosts: {%s: {}}", name)
	}
	v.at(path, f)
}

func (v *validator) allow(path string, s *Service, a *Allow) {
	for i, from := range a.From {
		at := fmt.Sprintf("%s.from[%d]", path, i)
		if name, ok := strings.CutPrefix(from, "gateway/"); ok {
			if v.f.Gateways[name] == nil {
				v.unknown(at, "gateway", name, "gateway", slices.Sorted(maps.Keys(v.f.Gateways)))
			}
			continue
		}
		if id, ok := strings.CutPrefix(from, "spiffe://"); ok {
			_, name, _ := strings.Cut(id, "/")
			v.malformed(at, from, "not a name", "name the service or gateway, not its identity", name)
			continue
		}
		v.known(at, from)
	}
	v.methods(path+".methods", a.Methods)
	for i, p := range a.Paths {
		v.pattern(fmt.Sprintf("%s.paths[%d]", path, i), p)
	}
	if s.Inbound == nil || s.Inbound.Protocol != tcp {
		return
	}
	for key, n := range map[string]int{"methods": len(a.Methods), "paths": len(a.Paths)} {
		if n > 0 {
			v.contradicts(path+"."+key, key+" for a tcp service", "a tcp connection has none",
				"remove them, or write protocol: http under inbound if it speaks HTTP")
		}
	}
}

func (v *validator) methods(path string, methods []string) {
	for i, m := range methods {
		at := fmt.Sprintf("%s[%d]", path, i)
		upper := strings.ToUpper(m)
		switch valid := strings.Trim(upper, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""; {
		case m == "":
		case !valid:
			v.malformed(at, m, "not an HTTP method", "leave methods out to allow any", "")
		case m != upper:
			v.malformed(at, m, "methods are compared exactly", fmt.Sprintf("write `%s`", upper), upper)
		case m == "CONNECT":
			v.malformed(at, m, "Parley opens no tunnels", "call a tcp service instead", "")
		}
	}
}

// probe checks the request that reaches the application of in.
func (v *validator) probe(at string, in *Inbound) {
	p := in.Probe
	if p == nil {
		return
	}
	if in.Protocol == tcp {
		v.contradicts(at, "a request for a tcp service", "the protocol is tcp", "remove it, or write protocol: http")
		return
	}
	const hint = "write one path in full: /healthz"
	switch err := policy.ValidPattern(p.Path); {
	case p.Path == "": // said already
	case strings.ContainsRune(p.Path, '*'):
		v.malformed(at+".path", p.Path, "a pattern, not a path", hint, "")
	case strings.ContainsAny(p.Path, "?#"):
		v.malformed(at+".path", p.Path, "the path alone, without query and fragment", hint, "")
	case err != nil:
		v.malformed(at+".path", p.Path, flawOf(err), hint, "")
	}
	switch upper := strings.ToUpper(p.Method); {
	case p.Method == "" || slices.Contains(harmless, p.Method):
	case slices.Contains(harmless, upper):
		v.malformed(at+".method", p.Method, "methods are compared exactly", fmt.Sprintf("write `%s`", upper), upper)
	default:
		v.malformed(at+".method", p.Method, "a method that may change something", "use GET, HEAD or OPTIONS", "")
	}
}

// harmless are the safe methods (RFC 9110 section 9.2.1) that are forwarded.
var harmless = []string{"GET", "HEAD", "OPTIONS"}

// flawOf is what policy.ValidPattern has against a pattern.
func flawOf(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, policy.ErrPattern.Error()+": "); i >= 0 {
		text = text[i+len(policy.ErrPattern.Error())+2:]
	}
	return text
}

func (v *validator) pattern(path, pattern string) {
	if pattern == "" {
		return
	}
	err := policy.ValidPattern(pattern)
	if err == nil {
		return
	}
	hint, replacement := "write it like /orders, /orders/* or /orders/**", ""
	if !strings.HasPrefix(pattern, "/") && policy.ValidPattern("/"+pattern) == nil {
		replacement = "/" + pattern
		hint = fmt.Sprintf("write `%s`", replacement)
	}
	v.at(path, flaw{code: fault.MeshValue, message: fmt.Sprintf("`%s` is not a path pattern", clip(pattern)), label: flawOf(err), hint: hint, replacement: replacement})
}

// address checks one address; ok says that it is there and well formed.
func (v *validator) address(path, s string, instead func(string) string, socket bool) (a address, ok bool) {
	if s == "" {
		return address{}, false
	}
	a, bad := parseAddress(s, instead)
	switch {
	case bad != nil:
		v.malformed(path, s, bad.label, bad.hint, bad.replacement)
	case a.unix != "" && !socket:
		v.malformed(path, s, "a Unix socket", fmt.Sprintf("other hosts must reach it: write it like `%s`", instead("9443")), "")
	default:
		return a, true
	}
	return address{}, false
}

func onAllInterfaces(port string) string { return ":" + port }
func onLoopback(port string) string      { return loopback4 + ":" + port }

// short is a duration without its zero minutes and seconds.
func short(d time.Duration) string {
	s := d.String()
	s = strings.TrimSuffix(s, "0s")
	if s = strings.TrimSuffix(s, "0m"); s == "" || strings.ContainsAny(s[len(s)-1:], "0123456789") {
		return d.String()
	}
	return s
}
