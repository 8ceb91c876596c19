package mesh

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

func (d *differ) hosts() {
	for _, name := range keys(d.old.Hosts, d.new.Hosts) {
		old, new := d.old.Hosts[name], d.new.Hosts[name]
		switch {
		case old == nil:
			d.add(Added, "host", name, "may join", "")
		case new == nil:
			d.add(Removed, "host", name, "is cut off", "")
		default:
			d.changed("host", name, "advertise", cmp.Or(old.Advertise, "as its agent says"), cmp.Or(new.Advertise, "as its agent says"))
		}
	}
}

// roles are those of administrators, each with all of those before it.
var roles = []string{"viewer", "operator", "admin"}

func (d *differ) admins() {
	for _, name := range keys(d.old.Admins, d.new.Admins) {
		old, new := d.old.Admins[name], d.new.Admins[name]
		switch {
		case old == nil:
			d.add(Added, "admin", name, new.Role, Wider)
		case new == nil:
			d.add(Removed, "admin", name, "was "+old.Role, Narrower)
		case old.Role != new.Role:
			access := Wider
			if slices.Index(roles, new.Role) < slices.Index(roles, old.Role) {
				access = Narrower
			}
			d.add(Changed, "admin", name, old.Role+" -> "+new.Role, access)
		}
	}
}

// runsOn compares where a service or gateway runs: on another host, another agent
// gets its certificates. A file without hosts has one machine, which is named when
// hosts are.
func (d *differ) runsOn(kind, name string, old, new []string) {
	if sameSet(old, new) {
		return
	}
	words := func(on []string) string { return cmp.Or(strings.Join(on, ", "), "the one machine") }
	var access Access
	switch {
	case len(old) == 0 || len(new) == 0:
	case subset(new, old):
		access = Narrower
	default:
		access = Wider
	}
	d.add(Changed, kind, name, fmt.Sprintf("runs_on: %s -> %s", words(old), words(new)), access)
}

func subset(a, of []string) bool {
	return !slices.ContainsFunc(a, func(x string) bool { return !slices.Contains(of, x) })
}

func sameSet(a, b []string) bool { return subset(a, b) && subset(b, a) }
