package fleet

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/snapshot"
)

// maxEndpoints bounds how many places one service has on one host.
const maxEndpoints = 4

// endpoints says where services are reached from host: the places that agents
// announce. Loopback is offered on its own host only. In a mesh without hosts the
// snapshot says it itself, and the result is nil. It requires f.mu.
func (f *Fleet) endpoints(host string) func(service string) []string {
	if len(f.state.snapshot.Hosts) == 0 {
		return nil
	}
	named := map[string]*snapshot.Service{}
	for i := range f.state.snapshot.Services {
		named[f.state.snapshot.Services[i].Name] = &f.state.snapshot.Services[i]
	}
	return func(service string) []string {
		all := []string{}
		s := named[service]
		if s == nil || s.Inbound == nil {
			return all
		}
		for _, on := range s.RunsOn {
			a, n := f.agents[on], 0
			if a == nil {
				continue
			}
			for _, e := range a.report.Endpoints {
				if e.Service != service || n == maxEndpoints {
					continue
				}
				if addr, ok := f.reach(on, a, e, host, s.Inbound.Listen); ok {
					all = append(all, addr)
					n++
				}
			}
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
}

// announced are the endpoints of a as people are told of them. It requires f.mu.
func (f *Fleet) announced(host string, a *agent) (all []link.Endpoint) {
	if f.state.snapshot == nil {
		return nil
	}
	for i := range f.state.snapshot.Services {
		s := &f.state.snapshot.Services[i]
		if s.Inbound == nil || len(s.RunsOn) > 0 && !slices.Contains(s.RunsOn, host) {
			continue
		}
		for _, e := range a.report.Endpoints {
			if e.Service != s.Name {
				continue
			}
			for _, from := range []string{"", host} { // some are called from their own host only
				if addr, ok := f.reach(host, a, e, from, s.Inbound.Listen); ok {
					all = append(all, link.Endpoint{Service: s.Name, Address: addr})
					break
				}
			}
		}
	}
	return all
}

// reach is the address of an endpoint on the host called on, as seen from another
// one: what is announced without an address of its own is where the host is. An
// agent is believed about its own host and no other place, where callers would
// connect in its stead: an address of its own is one that the mesh file gives the
// service (listen), or the host's. It requires f.mu.
func (f *Fleet) reach(on string, a *agent, e link.Endpoint, from, listen string) (string, bool) {
	ap, err := netip.ParseAddrPort(e.Address)
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" {
		return "", false
	}
	ip, port := ap.Addr().Unmap(), ap.Port()
	at := func(ip netip.Addr) string { return netip.AddrPortFrom(ip, port).String() }
	home, known := f.addressOf(on)
	switch {
	case ip.IsLoopback():
		return at(ip), from == on
	case ip.IsUnspecified() && !known:
		return at(loopback), from == on
	case ip.IsUnspecified() && home.IsLoopback():
		// The host is the server's own machine: another one that is too may call it.
		caller := f.agents[from]
		return at(home), from == on || caller != nil && isLoopback(caller.remote)
	case ip.IsUnspecified():
		return at(home), true
	}
	stated, err := netip.ParseAddrPort(listen)
	return at(ip), known && ip == home || err == nil && ip == stated.Addr().Unmap()
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func isLoopback(ip string) bool {
	addr, err := netip.ParseAddr(ip)
	return err == nil && addr.IsLoopback()
}

// addressOf is where a host is: what the mesh file says, what its agent says, or
// where it connects from. It requires f.mu.
func (f *Fleet) addressOf(name string) (netip.Addr, bool) {
	var stated, said, seen string
	for _, h := range f.state.snapshot.Hosts {
		if h.Name == name {
			stated = h.Advertise
		}
	}
	if a := f.agents[name]; a != nil {
		said, seen = a.advertise, a.remote
	}
	ip, err := netip.ParseAddr(cmp.Or(stated, said, seen))
	return ip.Unmap(), err == nil
}

// usable says whether advertise, which an agent says of itself, is empty or an IP
// address that others could call. Link-local ones, among them those where clouds
// serve credentials, are named in the mesh file or not at all.
func usable(advertise string) bool {
	if advertise == "" {
		return true
	}
	ip, err := netip.ParseAddr(advertise)
	ip = ip.Unmap()
	return err == nil && ip.Zone() == "" && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast() && ip != broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func sameEndpoints(a, b []link.Endpoint) bool {
	order := func(x []link.Endpoint) []link.Endpoint {
		return slices.SortedFunc(slices.Values(x), func(a, b link.Endpoint) int {
			return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Address, b.Address))
		})
	}
	return slices.Equal(order(a), order(b))
}
