package mesh

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Compile makes revision of f into what an agent runs, with every service on its
// host. ports hold a port for every entry of calls without a listener, as
// AssignPorts makes them. The same input gives the same snapshot; it shares
// nothing with f.
//
// Besides the rules that are written, every route of a gateway becomes two of
// one id: who may take the route, and that the gateway may make the calls that
// the route leads to.
func Compile(f *File, revision int64, ports Ports, keys []snapshot.APIKey) (*snapshot.Snapshot, error) {
	td, err := identity.ParseTrustDomain(f.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("compile the mesh file: %w", err)
	}
	c := &compiler{f: f, td: td, ports: ports, taken: f.stated()}
	s := &snapshot.Snapshot{
		Version: snapshot.Version, Revision: revision, TrustDomain: td, Domain: f.TrustDomain, LeafTTL: f.LeafTTL,
		Services: []snapshot.Service{}, Gateways: []snapshot.Gateway{}, Rules: []policy.Rule{},
		APIKeys: append([]snapshot.APIKey{}, keys...), Members: []identity.ID{},
	}
	for _, name := range slices.Sorted(maps.Keys(f.Hosts)) {
		id, err := identity.AgentID(td, name)
		c.fail(err)
		s.Hosts = append(s.Hosts, snapshot.Host{Name: name, ID: id, Advertise: f.Hosts[name].Advertise})
	}
	for _, name := range slices.Sorted(maps.Keys(f.Admins)) {
		id, err := identity.AdminID(td, name)
		c.fail(err)
		s.Admins = append(s.Admins, snapshot.Admin{Name: name, ID: id, Role: f.Admins[name].Role})
	}
	for _, name := range slices.Sorted(maps.Keys(f.Services)) {
		s.Services = append(s.Services, c.service(name, f.Services[name]))
		s.Members = append(s.Members, c.id(name))
	}
	for _, name := range slices.Sorted(maps.Keys(f.Gateways)) {
		s.Gateways = append(s.Gateways, c.gateway(name, f.Gateways[name]))
		s.Members = append(s.Members, c.id("gateway/"+name))
	}
	s.Rules = append(s.Rules, c.rules...)
	s.Issuers = c.issuers()
	s.Retention = f.retention()
	if c.err != nil {
		return nil, c.err
	}
	return s, nil
}

// A compiler keeps the first error: Parse has seen to the others.
type compiler struct {
	f     *File
	td    identity.TrustDomain
	ports Ports
	taken *addresses
	rules []policy.Rule
	err   error
}

func (c *compiler) fail(err error) {
	if c.err == nil && err != nil {
		c.err = fmt.Errorf("compile the mesh file: %w", err)
	}
}

// id is the identity of a service, or of gateway/NAME.
func (c *compiler) id(name string) identity.ID {
	id, err := identity.ServiceID(c.td, name)
	if gateway, ok := strings.CutPrefix(name, "gateway/"); ok {
		id, err = identity.GatewayID(c.td, gateway)
	}
	c.fail(err)
	return id
}

// address is an address of the document in canonical form.
func (c *compiler) address(s string) address {
	a, bad := parseAddress(s, onLoopback)
	if bad != nil {
		c.fail(fmt.Errorf("address %q: %s", s, bad.label))
	}
	return a
}

func (c *compiler) service(name string, s *Service) snapshot.Service {
	out := snapshot.Service{Name: name, ID: c.id(name), RunsOn: slices.Clone(s.RunsOn), Audit: s.Audit.compile()}
	if s.RunsAs != nil {
		out.RunsAs = snapshot.RunsAs(*s.RunsAs)
	}
	if in := s.Inbound; in != nil {
		out.Inbound = &snapshot.Inbound{
			Listen: c.address(in.Listen).String(), App: c.address(in.App).reach(),
			Protocol: in.Protocol, AppHTTP2: in.AppProtocol == "http2", WebSocket: in.webSocket(),
			Probe:          (*snapshot.Probe)(in.Probe.clone()),
			PlaintextUntil: in.plaintextUntil(),
			Health:         in.Health.compile(),
		}
	}
	for _, to := range s.Calls {
		out.Outbound = append(out.Outbound, c.outbound(name, to))
	}
	for i, a := range s.Allow {
		rule := policy.Rule{
			ID: fmt.Sprintf("%s.allow[%d]", name, i), Target: name,
			Methods: slices.Clone(a.Methods), Paths: slices.Clone(a.Paths),
			File: c.f.name, Line: c.f.Line(fmt.Sprintf("services.%s.allow[%d]", name, i)),
		}
		for _, from := range a.From {
			rule.From = append(rule.From, c.id(from))
		}
		c.rules = append(c.rules, rule)
	}
	return out
}

func (c *compiler) outbound(from string, to *Call) snapshot.Outbound {
	places, protocol := c.places(to.To)
	out := snapshot.Outbound{To: to.To, ToID: c.id(to.To), Protocol: protocol, Places: places}
	if s := c.f.Services[to.To]; s != nil {
		out.WebSocket = s.Inbound.webSocket()
	}
	if to.Listen != "" {
		out.Listen = c.address(to.Listen).String()
		return out
	}
	own := address{host: loopback4, port: c.ports[Edge{from, to.To}]}
	switch other, taken := c.taken.find(own); {
	case own.port == 0:
		c.fail(fmt.Errorf("no port is assigned for %s's calls to %s", from, to.To))
	case taken:
		c.fail(fault.List{c.f.portHeld(Edge{from, to.To}, own.port, other)})
	}
	what := fmt.Sprintf("the port assigned for %s's calls to %s", from, to.To)
	c.taken.put(own, holder{what: what})
	out.Listen = own.String()
	return out
}

func (in *Inbound) webSocket() *snapshot.WebSocket {
	if in == nil || in.WebSocket == nil {
		return nil
	}
	return &snapshot.WebSocket{}
}

func (c *compiler) gateway(name string, g *Gateway) snapshot.Gateway {
	out := snapshot.Gateway{Name: name, ID: c.id("gateway/" + name), RunsOn: slices.Clone(g.RunsOn), Listen: c.address(g.Listen).String(), Routes: []snapshot.Route{}, Audit: g.Audit.compile()}
	if t := g.TLS; t != nil {
		out.CertFile, out.KeyFile = t.Cert, t.Key
		if t.MeshCA != nil {
			out.Hosts = slices.Clone(t.MeshCA.Hosts)
		}
	}
	c.front(&out, g)
	for i, r := range g.Routes {
		id := fmt.Sprintf("gateway.%s.routes[%d]", name, i)
		route := snapshot.Route{PolicyTarget: fmt.Sprintf("%s/routes[%d]", name, i), To: r.To, ToID: c.id(r.To), ForwardToken: r.ForwardToken}
		route.Places, _ = c.places(r.To)
		if ws := r.WebSocket; ws != nil {
			route.WebSocket = &snapshot.WebSocket{Origins: slices.Clone(ws.Origins)}
		}
		rule := policy.Rule{ID: id, Target: route.PolicyTarget, File: c.f.name, Line: c.f.Line(id)}
		if m := r.Match; m != nil {
			route.Host, route.Path, route.Methods = m.Host, m.Path, slices.Clone(m.Methods)
			rule.Methods = slices.Clone(m.Methods)
			if m.Path != "" {
				rule.Paths = []string{m.Path}
			}
		}
		onward := rule
		onward.Target, onward.From = r.To, []identity.ID{out.ID}
		rule.Any = requirements(r.Require)
		c.rules = append(c.rules, rule)
		if !route.Foreign { // otherwise no agent decides
			c.rules = append(c.rules, onward)
		}
		out.Routes = append(out.Routes, route)
	}
	return out
}

// requirements are what a route wants; none of them lets nobody in.
func requirements(r *Require) []policy.Requirement {
	if r == nil {
		return nil
	}
	if r.Public {
		return []policy.Requirement{{Kind: policy.Public}}
	}
	var any []policy.Requirement
	for _, c := range r.Any {
		if c.APIKey != nil {
			any = append(any, policy.Requirement{Kind: policy.APIKey, Scopes: slices.Clone(c.APIKey.Scopes)})
		}
		if j := c.JWT; j != nil {
			any = append(any, policy.Requirement{Kind: policy.JWT, Issuer: j.Issuer, Audience: j.Audience, Scopes: slices.Clone(j.Scopes)})
		}
	}
	return any
}
