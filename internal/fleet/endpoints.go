package fleet

import (
	"net"
	"net/netip"
	"slices"

	"github.com/parleymesh/parley/internal/fleet/link"
)

// maxEndpoints bounds how many places one service has.
const maxEndpoints = 1024

// endpoints says where services are reached from host: the places that agents
// announce. Loopback is offered on its own host only. In a mesh without hosts the
// snapshot says it itself, and the result is nil. It requires f.mu.
func (f *Fleet) endpoints(host string) func(service string) []string {
	if len(f.state.snapshot.Hosts) == 0 {
		return nil
	}
	runs := map[string][]string{}
	for _, s := range f.state.snapshot.Services {
		runs[s.Name] = s.RunsOn
	}
	return func(service string) []string {
		all := []string{}
		for _, on := range runs[service] {
			a := f.agents[on]
			if a == nil {
				continue
			}
			for _, e := range a.report.Endpoints {
				if addr, ok := f.reach(on, a, e, host); ok && e.Service == service && len(all) < maxEndpoints {
					all = append(all, addr)
				}
			}
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
}

// reach is the address of an endpoint on the host called on, as seen from another
// one: what is announced without an address of its own is where the host is. It
// requires f.mu.
func (f *Fleet) reach(on string, a *agent, e link.Endpoint, from string) (string, bool) {
	ap, err := netip.ParseAddrPort(e.Address)
	if err != nil {
		return "", false
	}
	port := e.Address[len(e.Address)-portDigits(ap.Port()):]
	switch ip := ap.Addr(); {
	case ip.IsLoopback():
		return e.Address, from == on
	case !ip.IsUnspecified():
		return e.Address, true
	}
	host := f.addressOf(on, a)
	if host == "" {
		return net.JoinHostPort("127.0.0.1", port), from == on
	}
	return net.JoinHostPort(host, port), true
}

func portDigits(p uint16) int {
	n := 1
	for ; p >= 10; p /= 10 {
		n++
	}
	return n
}

// addressOf is where a host is: what the mesh file says, what its agent says, or
// where it connects from. It requires f.mu.
func (f *Fleet) addressOf(name string, a *agent) string {
	for _, h := range f.state.snapshot.Hosts {
		if h.Name == name && h.Advertise != "" {
			return h.Advertise
		}
	}
	if a.advertise != "" {
		return a.advertise
	}
	return a.remote
}

// usable says whether advertise is empty or an IP address that others could call.
func usable(advertise string) bool {
	if advertise == "" {
		return true
	}
	ip, err := netip.ParseAddr(advertise)
	return err == nil && ip.Zone() == "" && !ip.IsUnspecified() && !ip.IsMulticast()
}

func sameEndpoints(a, b []link.Endpoint) bool {
	order := func(x []link.Endpoint) []link.Endpoint {
		x = slices.Clone(x)
		slices.SortFunc(x, func(a, b link.Endpoint) int {
			if a.Service != b.Service {
				if a.Service < b.Service {
					return -1
				}
				return 1
			}
			if a.Address < b.Address {
				return -1
			}
			if a.Address > b.Address {
				return 1
			}
			return 0
		})
		return x
	}
	return slices.Equal(order(a), order(b))
}
