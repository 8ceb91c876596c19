package mesh

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/parleymesh/parley/internal/fault"
)

// hostEntry checks one entry of hosts.
func (v *validator) hostEntry(name string, h *Host) {
	path := "hosts." + name
	v.entryName(path, name)
	if h.Advertise == "" {
		return
	}
	switch ip, err := netip.ParseAddr(h.Advertise); {
	case err != nil:
		v.malformed(path+".advertise", h.Advertise, "not an IP address", "write the address alone, without a port: what a name leads to can change", "")
	case ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast():
		v.malformed(path+".advertise", h.Advertise, "nobody can call it there", "write an address of that host: ip -brief address", "")
	}
}

// entryName checks the key of a host or administrator.
func (v *validator) entryName(path, name string) {
	if !validName(name) {
		v.add(v.f.places[path].key, flaw{
			code: fault.MeshValue, message: fmt.Sprintf("`%s` cannot be a name", clip(name)), label: "not a name",
			hint: "a name is 1 to 63 characters of a-z, 0-9 and hyphen, without one at its ends",
		})
	}
}

// runsOn checks where a service or gateway runs, and that it says so where the
// file names hosts: whoever may run anywhere could be impersonated from anywhere.
func (v *validator) runsOn(path, name string, hosts []string) {
	if len(hosts) == 0 {
		// A list that is there and empty is refused already.
		if _, written := v.f.places[path+".runs_on"]; len(v.f.Hosts) > 0 && !written && !v.strange[path] {
			v.at(path, flaw{
				code: fault.MeshMissing, message: fmt.Sprintf("%s does not say on which host it runs", name), label: "no `runs_on`",
				hint: fmt.Sprintf("add: runs_on: [%s]", slices.Min(slices.Collect(maps.Keys(v.f.Hosts)))),
			})
		}
		return
	}
	for i, h := range hosts {
		at := fmt.Sprintf("%s.runs_on[%d]", path, i)
		switch {
		case h == "":
		case v.f.Hosts[h] == nil:
			v.unknown(at, "host", h, "hosts", slices.Sorted(maps.Keys(v.f.Hosts)))
		case slices.Contains(hosts[:i], h):
			v.at(at, flaw{code: fault.MeshDuplicate, message: fmt.Sprintf("%s runs on %s twice", name, h), label: "written twice", hint: "remove it"})
		}
	}
}

// reachable refuses a call to a service that listens on loopback only, from a
// host where none of it runs.
func (v *validator) reachable(path, from string, on []string, to string) {
	callee := v.f.Services[to]
	v.atHome(path, from, on, to)
	if callee.Inbound == nil || len(callee.Endpoints) > 0 {
		return
	}
	a, bad := parseAddress(callee.Inbound.Listen, onAllInterfaces)
	if bad != nil || callee.Inbound.Listen == "" || !a.local() {
		return
	}
	for _, h := range on {
		if len(callee.RunsOn) > 0 && !slices.Contains(callee.RunsOn, h) {
			v.contradicts(path, fmt.Sprintf("%s on %s cannot reach %s", from, h, to), "it listens on loopback, on another host",
				fmt.Sprintf("let %s (%s) listen on all interfaces: listen: \":%d\"", to, v.src.where(v.f.Line("services."+to+".inbound.listen")), a.port))
			return
		}
	}
}
