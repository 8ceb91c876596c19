package mesh

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// maxEndpoints bounds the list of one service.
const maxEndpoints = 64

// callable says that the service is called at all.
func (s *Service) callable() bool { return s.Inbound != nil || len(s.Endpoints) > 0 }

// protocol is what its callers speak to it.
func (s *Service) protocol() string {
	if s.Inbound != nil {
		return s.Inbound.Protocol
	}
	return cmp.Or(s.Protocol, http)
}

// An endpoint is one entry of endpoints.
type endpoint struct {
	ip   netip.Addr // invalid for a name
	name string
	port uint16
}

// String is the canonical form.
func (e endpoint) String() string {
	if e.ip.IsValid() {
		return netip.AddrPortFrom(e.ip, e.port).String()
	}
	return net.JoinHostPort(e.name, strconv.Itoa(int(e.port)))
}

// parseEndpoint reads host:port, where somebody is called.
func parseEndpoint(s string) (endpoint, *flaw) {
	const like = "write it like 10.0.0.7:9443 or orders.internal:9443"
	bad := func(label, hint, replacement string) (endpoint, *flaw) {
		return endpoint{}, &flaw{code: fault.MeshValue, label: label, hint: hint, replacement: replacement}
	}
	if strings.Contains(s, "://") {
		return bad("a URL", "write host:port alone: the scheme follows from the protocol", "")
	}
	host, digits, err := net.SplitHostPort(s)
	if err != nil {
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is6() || strings.Count(s, ":") > 1 && !strings.Contains(s, "[") {
			return bad("not host:port", "write an IPv6 address in brackets: `[2001:db8::7]:9443`", "")
		}
		return bad("not host:port", like, "")
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 || digits != strconv.FormatUint(port, 10) {
		return bad(fmt.Sprintf("`%s` is not a port", clip(digits)), "a port is a number from 1 to 65535", "")
	}
	if host == "localhost" {
		host = loopback4
	}
	e := endpoint{port: uint16(port)}
	if ip, err := netip.ParseAddr(host); err == nil {
		if e.ip = ip.Unmap(); e.ip.IsUnspecified() || e.ip.IsMulticast() || e.ip.Zone() != "" {
			return bad("nobody can be called there", "write an address of the host where it runs: ip -brief address", "")
		}
		return e, nil
	}
	switch lower := strings.TrimSuffix(strings.ToLower(host), "."); {
	case host == "":
		return bad("no host", like, "")
	case strings.HasPrefix(host, "*") || !validHost(lower):
		return bad(fmt.Sprintf("`%s` is neither an IP address nor a DNS name", clip(host)), like, "")
	case allNumeric(lower):
		return bad(fmt.Sprintf("`%s` is not an IP address", clip(host)), like, "")
	case lower != host:
		better := net.JoinHostPort(lower, digits)
		return bad("names are written in lower case, without a dot at the end", fmt.Sprintf("write `%s`", better), better)
	default:
		e.name = host
	}
	return e, nil
}

// allNumeric says that the last label of a name is a number, as in 10.0.0.300: no
// top-level domain is (RFC 3696 section 2).
func allNumeric(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	return strings.Trim(last, "0123456789") == ""
}

// endpoints checks where else a service is called, and what follows from it.
func (v *validator) endpoints(path, name string, s *Service) {
	if len(s.Endpoints) > maxEndpoints {
		v.at(fmt.Sprintf("%s.endpoints[%d]", path, maxEndpoints), flaw{
			code: fault.MeshTooLarge, message: fmt.Sprintf("%s has %d endpoints, the limit is %d", name, len(s.Endpoints), maxEndpoints), label: "the first too many",
			hint: "give several addresses one DNS name, and list that",
		})
		return
	}
	first := map[string]int{}
	for i, text := range s.Endpoints {
		at := fmt.Sprintf("%s.endpoints[%d]", path, i)
		if text == "" {
			continue
		}
		e, bad := parseEndpoint(text)
		if bad != nil {
			v.malformed(at, text, bad.label, bad.hint, bad.replacement)
			continue
		}
		if line, again := first[e.String()]; again {
			v.at(at, flaw{code: fault.MeshDuplicate, message: fmt.Sprintf("`%s` stands twice in the endpoints of %s", e, name), label: "written twice", hint: "the first is at " + v.src.where(line)})
			continue
		}
		first[e.String()] = v.f.Line(at)
	}
	_, stated := v.f.places[path+".protocol"]
	switch {
	case stated && s.Inbound != nil:
		v.contradicts(path+".protocol", "the protocol of "+name+" stands beside its inbound", "the inbound says it",
			"write it under inbound ("+v.src.where(v.f.Line(path+".inbound"))+")")
	case stated && len(s.Endpoints) == 0:
		v.contradicts(path+".protocol", "a protocol for "+name+", which is not called", "it has no inbound and no endpoints", "remove it, or say where it is called")
	}
	if _, stated := v.f.places[path+".balance"]; stated && !s.callable() {
		v.contradicts(path+".balance", "a balance for "+name+", which is not called", "it has no inbound and no endpoints",
			"write it under the service that is called: it holds for all its callers")
	}
}

// atHome refuses a call over loopback from a host where nothing of the service runs.
func (v *validator) atHome(path, from string, on []string, to string) {
	callee := v.f.Services[to]
	for i, text := range callee.Endpoints {
		e, bad := parseEndpoint(text)
		if bad != nil || !e.ip.IsLoopback() {
			continue
		}
		for _, h := range on {
			if len(callee.RunsOn) > 0 && !slices.Contains(callee.RunsOn, h) {
				v.contradicts(path, fmt.Sprintf("%s on %s would call %s on itself", from, h, to), "an endpoint of it is a loopback address",
					fmt.Sprintf("write an address that %s can reach (%s)", h, v.src.where(v.f.Line(fmt.Sprintf("services.%s.endpoints[%d]", to, i)))))
				return
			}
		}
	}
}

// places are where the service called name is called, and its protocol. In a mesh of
// several hosts, agents announce more.
func (c *compiler) places(name string) (snapshot.Places, string) {
	s := c.f.Services[name]
	if s == nil || !s.callable() {
		c.fail(fmt.Errorf("%s cannot be called", name))
		return snapshot.Places{}, http
	}
	p := snapshot.Places{Endpoints: []string{}, Foreign: s.Inbound == nil}
	if s.Balance == snapshot.BalanceRoundRobin {
		p.Balance = s.Balance
	}
	if s.Inbound != nil && len(c.f.Hosts) == 0 {
		p.Endpoints = append(p.Endpoints, c.address(s.Inbound.Listen).reach())
	}
	for _, text := range s.Endpoints {
		switch e, bad := parseEndpoint(text); {
		case bad != nil:
			c.fail(fmt.Errorf("endpoint %q: %s", text, bad.label))
		case e.ip.IsValid():
			p.Endpoints = append(p.Endpoints, e.String())
		default:
			p.Names = append(p.Names, e.String())
		}
	}
	slices.Sort(p.Endpoints)
	p.Endpoints = slices.Compact(p.Endpoints)
	return p, s.protocol()
}
