package mesh

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Change is one difference between two mesh files.
type Change struct {
	// Op is Added, Changed or Removed.
	Op string `json:"op"`
	// Kind is trust_domain, setting, host, admin, service, call, allow, issuer, gateway or route.
	Kind string `json:"kind"`
	// Name is what changed: "orders", "web -> payments".
	Name string `json:"name"`
	// Detail is how: "POST /charge".
	Detail string `json:"detail"`
	// Access is what it does to who may call, or administer.
	Access Access `json:"access,omitempty"`
}

// The values of Change.Op.
const (
	Added   = "+"
	Changed = "~"
	Removed = "-"
)

// Access is what a change does to who may call, or administer; empty means that it
// stays.
type Access string

// The kinds of Access. Both is one that lets in whom it did not, and no longer whom
// it did: another user in the place of one, another credential of a route.
const (
	Wider    Access = "wider"
	Narrower Access = "narrower"
	Both     Access = "wider and narrower"
)

// A Summary counts changes.
type Summary struct {
	Added    int `json:"added"`
	Changed  int `json:"changed"`
	Removed  int `json:"removed"`
	Wider    int `json:"wider"`
	Narrower int `json:"narrower"`
}

// Summarize counts changes; one that does both to access counts in each.
func Summarize(changes []Change) Summary {
	var s Summary
	for _, c := range changes {
		switch c.Op {
		case Added:
			s.Added++
		case Changed:
			s.Changed++
		case Removed:
			s.Removed++
		}
		switch c.Access {
		case Wider:
			s.Wider++
		case Narrower:
			s.Narrower++
		case Both:
			s.Wider++
			s.Narrower++
		}
	}
	return s
}

// Diff says what changes from old, which may be nil, to new. A rule that is
// written anew and allows nothing that an old one did not is a change without
// effect on Access. The order is by kind and name.
func Diff(old, new *File) []Change {
	d := &differ{old: old, new: new, c: newComparer()}
	if old == nil {
		d.old = &File{}
		d.add(Added, "trust_domain", new.TrustDomain, "", "")
	} else {
		d.settings()
	}
	d.hosts()
	d.admins()
	d.services()
	d.calls()
	d.allows()
	d.issuers()
	d.gateways()
	return d.changes
}

type differ struct {
	old, new *File
	c        *comparer
	changes  []Change
}

func (d *differ) add(op, kind, name, detail string, a Access) {
	d.changes = append(d.changes, Change{op, kind, name, detail, a})
}

// changed adds a change where two texts differ; what is empty where the name
// says it.
func (d *differ) changed(kind, name, what, from, to string) {
	if from == to {
		return
	}
	detail := from + " -> " + to
	if what != "" {
		detail = what + ": " + detail
	}
	d.add(Changed, kind, name, detail, "")
}

func (d *differ) settings() {
	if d.old.TrustDomain != d.new.TrustDomain {
		d.add(Changed, "trust_domain", d.new.TrustDomain, fmt.Sprintf("was %s: every identity changes", d.old.TrustDomain), "")
	}
	d.changed("setting", "leaf_ttl", "", short(d.old.LeafTTL), short(d.new.LeafTTL))
	d.changed("setting", "outbound_ports", "", fmt.Sprint(d.old.OutboundPorts), fmt.Sprint(d.new.OutboundPorts))
	d.retention()
}

// keys are the keys of two maps, in order.
func keys[K cmp.Ordered, V any](a, b map[K]V) []K {
	all := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(all)
	return slices.Compact(all)
}

func (d *differ) services() {
	for _, name := range keys(d.old.Services, d.new.Services) {
		old, new := d.old.Services[name], d.new.Services[name]
		switch {
		case old == nil:
			d.add(Added, "service", name, fmt.Sprintf("new identity spiffe://%s/%s", d.new.TrustDomain, name), "")
			d.plaintext(name, nil, new.Inbound)
		case new == nil:
			d.add(Removed, "service", name, fmt.Sprintf("identity spiffe://%s/%s is gone", d.old.TrustDomain, name), "")
		default:
			d.runsOn("service", name, old.RunsOn, new.RunsOn)
			d.runsAs(name, old.RunsAs, new.RunsAs)
			d.inbound(name, old.Inbound, new.Inbound)
			d.changed("service", name, "endpoints", list(old.Endpoints), list(new.Endpoints))
			if old.Inbound == nil && new.Inbound == nil {
				d.changed("service", name, "protocol", old.protocol(), new.protocol())
			}
			d.changed("service", name, "balance", old.Balance, new.Balance)
			d.changed("service", name, "audit.when_full", old.Audit.whenFull(), new.Audit.whenFull())
		}
	}
}

// runsAs compares who is a service: with other processes, others may call.
func (d *differ) runsAs(name string, old, new *RunsAs) {
	if *old == *new {
		return
	}
	access := Both
	switch {
	case new.within(old):
		access = Narrower
	case old.within(new):
		access = Wider
	}
	d.add(Changed, "service", name, fmt.Sprintf("runs_as: %s -> %s", old, new), access)
}

func (d *differ) inbound(name string, old, new *Inbound) {
	switch {
	case old == nil && new == nil:
	case old == nil:
		d.add(Changed, "service", name, fmt.Sprintf("inbound: new on %s for %s", new.Listen, new.App), "")
		d.plaintext(name, nil, new)
	case new == nil:
		d.add(Changed, "service", name, fmt.Sprintf("inbound: %s is gone", old.Listen), "")
		d.plaintext(name, old, nil)
	default:
		d.plaintext(name, old, new)
		d.changed("service", name, "listen", old.Listen, new.Listen)
		d.changed("service", name, "app", old.App, new.App)
		d.changed("service", name, "protocol", old.Protocol, new.Protocol)
		if a, b := old.WebSocket, new.WebSocket; (a == nil) != (b == nil) {
			d.webSocket("service", name, a.String(), b.String(), b == nil)
		}
		d.changed("service", name, "probe", old.Probe.String(), new.Probe.String())
		d.changed("service", name, "health", old.Health.String(), new.Health.String())
		d.changed("service", name, "app_protocol", cmp.Or(old.AppProtocol, "http1"), cmp.Or(new.AppProtocol, "http1"))
	}
}

// list is some texts, in order, as a person reads them.
func list(texts []string) string {
	return cmp.Or(strings.Join(slices.Sorted(slices.Values(texts)), ", "), "none")
}

// edges are all calls with their listener, by "from -> to".
func (f *File) edges() map[string]string {
	all := map[string]string{}
	for from, s := range f.Services {
		for _, c := range s.Calls {
			all[from+" -> "+c.To] = cmp.Or(c.Listen, "an assigned port")
		}
	}
	return all
}

func (d *differ) calls() {
	old, new := d.old.edges(), d.new.edges()
	for _, name := range keys(old, new) {
		switch from, to := old[name], new[name]; {
		case from == "":
			d.add(Added, "call", name, "on "+to, "")
		case to == "":
			d.add(Removed, "call", name, "was on "+from, "")
		default:
			d.changed("call", name, "listen", from, to)
		}
	}
}

// grants are what the allow entries grant, by "from -> to".
func (f *File) grants() map[string][]grant {
	all := map[string][]grant{}
	for to, s := range f.Services {
		for _, a := range s.Allow {
			for _, from := range a.From {
				pair := from + " -> " + to
				all[pair] = append(all[pair], a.grant())
			}
		}
	}
	return all
}

func (d *differ) allows() {
	old, new := d.old.grants(), d.new.grants()
	for _, pair := range keys(old, new) {
		d.granted(Removed, pair, old[pair], new[pair], Narrower)
		d.granted(Added, pair, new[pair], old[pair], Wider)
	}
}

// granted adds what is in mine and, by its text, not in theirs.
func (d *differ) granted(op, pair string, mine, theirs []grant, effect Access) {
	same := map[string]bool{}
	for _, g := range theirs {
		same[g.String()] = true
	}
	for _, g := range mine {
		text := g.String()
		if same[text] {
			continue
		}
		same[text] = true
		access := effect
		if d.c.within(g, theirs) {
			access = ""
		}
		d.add(op, "allow", pair, text, access)
	}
}

func (d *differ) gateways() {
	for _, name := range keys(d.old.Gateways, d.new.Gateways) {
		old, new := d.old.Gateways[name], d.new.Gateways[name]
		switch {
		case old == nil:
			d.add(Added, "gateway", name, "on "+new.Listen, "")
			old = &Gateway{}
		case new == nil:
			d.add(Removed, "gateway", name, "was on "+old.Listen, "")
			new = &Gateway{}
		default:
			d.runsOn("gateway", name, old.RunsOn, new.RunsOn)
			d.changed("gateway", name, "listen", old.Listen, new.Listen)
			d.changed("gateway", name, "certificate", old.TLS.String(), new.TLS.String())
			d.front(name, old, new)
			d.changed("gateway", name, "audit.when_full", old.Audit.whenFull(), new.Audit.whenFull())
		}
		d.routes(name, old.Routes, new.Routes)
	}
}

// webSocket compares what is let become a WebSocket connection. Pages that may open
// one instead of others make access wider.
func (d *differ) webSocket(kind, name, old, new string, within bool) {
	if old == new {
		return
	}
	access := Wider
	if within {
		access = Narrower
	}
	d.add(Changed, kind, name, "websocket: "+old+" -> "+new, access)
}

const refused = "refused"

// String is the request, or that there is none.
func (p *Probe) String() string {
	if p == nil {
		return "none"
	}
	return p.Method + " " + p.Path
}

// String says whether WebSocket connections are let through.
func (w *WebSocket) String() string {
	if w == nil {
		return refused
	}
	return "allowed"
}

// within says that wide lets through whatever w does.
func (w *EdgeWebSocket) within(wide *EdgeWebSocket) bool {
	if w == nil || wide == nil {
		return w == nil
	}
	return len(w.Origins) > 0 && !slices.ContainsFunc(w.Origins, func(o string) bool { return !slices.Contains(wide.Origins, o) })
}

// String says for which pages WebSocket connections are let through.
func (w *EdgeWebSocket) String() string {
	switch {
	case w == nil:
		return refused
	case len(w.Origins) == 0:
		return "for its own pages"
	}
	return "for pages of " + strings.Join(slices.Sorted(slices.Values(w.Origins)), ", ")
}

// String is the certificate as a person reads it.
func (t *TLS) String() string {
	switch {
	case t == nil:
		return "none"
	case t.MeshCA != nil:
		return "of the mesh's CA for " + strings.Join(t.MeshCA.Hosts, ", ")
	}
	return t.Cert + " with key " + t.Key
}

func (d *differ) routes(gateway string, old, new []*Route) {
	oldBy, oldNames := routesBy(gateway, old)
	newBy, newNames := routesBy(gateway, new)
	for _, name := range keys(oldBy, newBy) {
		switch was, is := oldBy[name], newBy[name]; {
		case was == nil:
			d.add(Added, "route", name, is.Require.String(), Wider)
		case is == nil:
			d.add(Removed, "route", name, was.Require.String(), Narrower)
		case was.Require.String() != is.Require.String():
			var access Access
			switch more, less := !was.Require.covers(is.Require), !is.Require.covers(was.Require); {
			case more && less:
				access = Both
			case more:
				access = Wider
			case less:
				access = Narrower
			}
			d.add(Changed, "route", name, was.Require.String()+" -> "+is.Require.String(), access)
		}
		if was, is := oldBy[name], newBy[name]; was != nil && is != nil {
			d.changed("route", name, "forward_token", fmt.Sprint(was.ForwardToken), fmt.Sprint(is.ForwardToken))
			ws, wsNow := was.WebSocket, is.WebSocket
			d.webSocket("route", name, ws.String(), wsNow.String(), wsNow.within(ws))
		}
	}
	both := func(names []string) []string {
		return slices.DeleteFunc(names, func(n string) bool { return oldBy[n] == nil || newBy[n] == nil })
	}
	if !slices.Equal(both(oldNames), both(newNames)) {
		d.add(Changed, "gateway", gateway, "the order of its routes", "")
	}
}

// routesBy names routes by what they match and where they lead.
func routesBy(gateway string, routes []*Route) (by map[string]*Route, names []string) {
	by = map[string]*Route{}
	for _, r := range routes {
		name := fmt.Sprintf("%s: %s -> %s", gateway, r, r.To)
		if by[name] == nil {
			by[name] = r
			names = append(names, name)
		}
	}
	return by, names
}
