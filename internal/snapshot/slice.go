package snapshot

import (
	"slices"

	"github.com/parleymesh/parley/internal/policy"
)

// For is the part of s that the agent on host runs: its services and gateways,
// the rules that it decides by, and who the members are. endpoints says where a
// service is announced for that host, beside those of s; nil adds none. Of other hosts' parts
// it says nothing. s itself is not changed, and shares with the slice what neither
// changes.
//
// A snapshot without hosts is one machine's, and whole for it.
func (s *Snapshot) For(host string, endpoints func(service string) []string) *Snapshot {
	out := *s
	out.Admins, out.Retention = nil, Retention{}
	if len(s.Hosts) > 0 {
		out.Hosts = slices.Collect(filter(s.Hosts, func(h Host) bool { return h.Name == host }))
		runs := func(on []string) bool { return slices.Contains(on, host) }
		out.Services = slices.AppendSeq([]Service{}, filter(s.Services, func(v Service) bool { return runs(v.RunsOn) }))
		out.Gateways = slices.AppendSeq([]Gateway{}, filter(s.Gateways, func(g Gateway) bool { return runs(g.RunsOn) }))
		out.Rules = rulesOf(&out, s.Rules)
		out.Issuers = issuersOf(out.Rules, s.Issuers)
		if len(out.Gateways) == 0 {
			out.APIKeys = []APIKey{}
		}
	}
	if endpoints == nil {
		return &out
	}
	out.Services, out.Gateways = slices.Clone(out.Services), slices.Clone(out.Gateways)
	for i := range out.Services {
		v := &out.Services[i]
		v.Outbound = slices.Clone(v.Outbound)
		for j := range v.Outbound {
			v.Outbound[j].announced(endpoints(v.Outbound[j].To))
		}
	}
	for i := range out.Gateways {
		g := &out.Gateways[i]
		g.Routes = slices.Clone(g.Routes)
		for j := range g.Routes {
			g.Routes[j].announced(endpoints(g.Routes[j].To))
		}
	}
	return &out
}

// announced adds more to the endpoints of p, in a list of its own.
func (p *Places) announced(more []string) {
	p.Endpoints = append(append([]string{}, p.Endpoints...), more...)
	slices.Sort(p.Endpoints)
	p.Endpoints = slices.Compact(p.Endpoints)
}

// rulesOf are those of all that the services and gateways of s decide by.
func rulesOf(s *Snapshot, all []policy.Rule) []policy.Rule {
	targets := map[string]bool{}
	for _, v := range s.Services {
		targets[v.Name] = v.Inbound != nil
	}
	for _, g := range s.Gateways {
		for _, r := range g.Routes {
			targets[r.PolicyTarget] = true
		}
	}
	return slices.AppendSeq([]policy.Rule{}, filter(all, func(r policy.Rule) bool { return targets[r.Target] }))
}

// issuersOf are those of all whose tokens some rule asks for.
func issuersOf(rules []policy.Rule, all []Issuer) []Issuer {
	used := map[string]bool{}
	for _, r := range rules {
		for _, want := range r.Any {
			used[want.Issuer] = true
		}
	}
	return slices.Collect(filter(all, func(i Issuer) bool { return used[i.URL] }))
}

func filter[T any](all []T, keep func(T) bool) func(yield func(T) bool) {
	return func(yield func(T) bool) {
		for _, x := range all {
			if keep(x) && !yield(x) {
				return
			}
		}
	}
}
