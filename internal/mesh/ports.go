package mesh

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/parleymesh/parley/internal/fault"
)

// An Edge is one entry of a service's calls.
type Edge struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Ports are the assigned outbound ports on 127.0.0.1, by edge.
type Ports map[Edge]int

// assignable are the edges of f without a listener of their own, in order.
func (f *File) assignable() []Edge {
	var edges []Edge
	for from, s := range f.Services {
		for _, c := range s.Calls {
			if c.Listen == "" {
				edges = append(edges, Edge{from, c.To})
			}
		}
	}
	slices.SortFunc(edges, func(a, b Edge) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return edges
}

// AssignPorts gives every entry of calls without a listener a port: the one that
// it has in prev, or else the lowest free one from outbound_ports on. Entries
// that are gone lose theirs. A listener or application that f puts on a port
// which an entry already holds is a fault: applications have that port in their
// configuration, so it does not move by itself.
func AssignPorts(f *File, prev Ports) (Ports, error) {
	taken := f.stated()
	edges := f.assignable()
	ports := make(Ports, len(edges))
	var faults fault.List
	for _, e := range edges {
		port, held := prev[e]
		if !held || port < 1 || port > maxPort {
			continue
		}
		own := address{host: loopback4, port: port}
		if other, ok := taken.find(own); ok {
			faults = append(faults, f.portHeld(e, port, other))
			continue
		}
		ports[e] = port
		taken.put(own, holder{what: fmt.Sprintf("the port assigned for %s's calls to %s", e.From, e.To)})
	}
	next := f.OutboundPorts
	for _, e := range edges {
		if ports[e] != 0 || len(faults) > 0 {
			continue
		}
		for next <= maxPort && taken.holds(address{host: loopback4, port: next}) {
			next++
		}
		if next > maxPort {
			return nil, fault.List{{
				Code: fault.MeshValue, Message: fmt.Sprintf("no port is left for %s's calls to %s from `outbound_ports` %d on", e.From, e.To, f.OutboundPorts),
				File: f.name, Line: f.Line("outbound_ports"), Hint: "begin with a lower port, or state ports in `calls`",
			}}
		}
		ports[e] = next
		next++
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return ports, nil
}

// portHeld says that a stated listener wants the port that e already has.
func (f *File) portHeld(e Edge, port int, other holder) *fault.Fault {
	var at span
	if other.path != "" { // assigned ones stand nowhere
		at = f.places[other.path].mark()
	}
	return &fault.Fault{
		Source: f.src.excerpt(at.line),
		Code:   fault.MeshPortTaken, File: f.name, Line: at.line, Column: at.col, EndColumn: at.end,
		Message: fmt.Sprintf("%s is on port %d, which is assigned for %s's calls to %s", other.what, port, e.From, e.To),
		Label:   "taken since an earlier revision",
		Hint:    fmt.Sprintf("use another port here, or move the call: calls: [{to: %s, listen: 127.0.0.1:PORT}] under %s", e.To, e.From),
	}
}

// Clone is a copy.
func (p Ports) Clone() Ports { return maps.Clone(p) }
