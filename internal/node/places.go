package node

import (
	"cmp"
	"net"
	"slices"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/snapshot"
)

// endpoints are where the service is called: on each of its hosts, and what the mesh
// file lists.
func (s *survey) endpoints(v *snapshot.Service) (all []api.EndpointStatus) {
	own := ""
	if v.Inbound != nil {
		own = v.Inbound.Listen
		if host, port, err := net.SplitHostPort(own); err == nil && host == "" && len(s.snap.Hosts) == 0 {
			own = net.JoinHostPort("127.0.0.1", port)
		}
		for i := range s.hosts {
			h := &s.hosts[i]
			if len(v.RunsOn) > 0 && !slices.Contains(v.RunsOn, h.Name) {
				continue
			}
			at := ""
			for _, e := range h.Endpoints {
				if e.Service == v.Name {
					at = e.Address
				}
			}
			on := s.service(v.Name, "", []string{h.Name})
			st := api.EndpointStatus{Address: cmp.Or(at, own), Host: h.Name, State: api.StateOK}
			switch {
			case at == "" && on.State == api.StateOK:
				st.State, st.Note = api.StateWaiting, "not announced"
			case at == "" || on.State != api.StateOK && len(s.snap.Hosts) == 0:
				st.State, st.Note = on.State, on.Note
			}
			all = append(all, st)
		}
	}
	for _, at := range s.listed(v.Name) {
		if v.Inbound == nil || at != own {
			all = append(all, api.EndpointStatus{Address: at})
		}
	}
	return all
}

// listed are the endpoints of a service that the mesh file lists, as its callers
// know them.
func (s *survey) listed(service string) (all []string) {
	add := func(to string, p snapshot.Places) {
		if to == service {
			all = slices.Concat(all, p.Endpoints, p.Names)
		}
	}
	for _, v := range s.snap.Services {
		for _, o := range v.Outbound {
			add(o.To, o.Places)
		}
	}
	for _, g := range s.snap.Gateways {
		for _, r := range g.Routes {
			add(r.To, r.Places)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
