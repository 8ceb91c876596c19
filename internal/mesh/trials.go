package mesh

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/policy"
)

// A Trial is one edge that the file allows, as `parley verify` tries it.
type Trial struct {
	// Caller and Callee are services; a calling gateway is gateway/NAME.
	Caller, Callee string
	// CallerHosts and CalleeHosts are those that they run on, none in a mesh on one
	// machine.
	CallerHosts, CalleeHosts []string
	Protocol                 string // http, tcp
	// App is the callee's application, as written.
	App string
	// Allowed is a request that the caller may make, and Forbidden one that it may
	// not, nil where it may make every one. Of tcp both are nil.
	Allowed, Forbidden *Probe
	// Forwarded says that Allowed is the request that reaches the application.
	Forwarded bool
	// Sidecar says that the caller calls by its sidecar.
	Sidecar bool
	// Observed is until when the callee lets plaintext in, zero for never.
	Observed time.Time
	// Line is where the edge is allowed, counted from 1.
	Line int
}

// Trials are the edges of f with what is tried of each, in order of caller and
// callee. What is allowed is read from the file itself and not asked of policy,
// which is what is on trial.
func Trials(f *File) []Trial {
	all := map[Edge]*Trial{}
	for name, s := range f.Services {
		if s.Inbound == nil {
			continue
		}
		for _, g := range f.callers(name) {
			edge := Edge{g.from, name}
			t := all[edge]
			if t == nil {
				t = &Trial{
					Caller: g.from, Callee: name, CallerHosts: f.runsOn(g.from), CalleeHosts: slices.Clone(s.RunsOn),
					Protocol: s.Inbound.Protocol, App: s.Inbound.App, Sidecar: f.calls(edge), Observed: s.Inbound.plaintextUntil(), Line: g.line,
				}
				all[edge] = t
			}
		}
	}
	out := make([]Trial, 0, len(all))
	for edge, t := range all {
		f.sample(t, f.grantsOf(edge))
		out = append(out, *t)
	}
	slices.SortFunc(out, func(a, b Trial) int { return cmp.Or(cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Callee, b.Callee)) })
	return out
}

// A granted is one entry that lets one caller make calls; empty lists are any.
type granted struct {
	from           string
	methods, paths []string
	line           int
}

// callers are who may call the service called name, in the order of the file.
func (f *File) callers(name string) (all []granted) {
	for i, a := range f.Services[name].Allow {
		for _, from := range a.From {
			all = append(all, granted{from, a.Methods, a.Paths, f.Line(fmt.Sprintf("services.%s.allow[%d]", name, i))})
		}
	}
	for _, gw := range slices.Sorted(maps.Keys(f.Gateways)) {
		for i, r := range f.Gateways[gw].Routes {
			if r.To != name {
				continue
			}
			g := granted{from: "gateway/" + gw, line: f.Line(fmt.Sprintf("gateway.%s.routes[%d]", gw, i))}
			if m := r.Match; m != nil {
				g.methods = m.Methods
				if m.Path != "" {
					g.paths = []string{m.Path}
				}
			}
			all = append(all, g)
		}
	}
	return all
}

func (f *File) grantsOf(e Edge) []granted {
	return slices.DeleteFunc(f.callers(e.To), func(g granted) bool { return g.from != e.From })
}

func (f *File) runsOn(caller string) []string {
	if name, ok := strings.CutPrefix(caller, "gateway/"); ok {
		return slices.Clone(f.Gateways[name].RunsOn)
	}
	return slices.Clone(f.Services[caller].RunsOn)
}

// calls says that there is a listener by which the caller of e calls.
func (f *File) calls(e Edge) bool {
	s := f.Services[e.From]
	return s == nil || slices.ContainsFunc(s.Calls, func(c *Call) bool { return c.To == e.To })
}

// oddSegment is in no path that anybody has.
const oddSegment = "parley-verify"

// sample chooses the requests of t.
func (f *File) sample(t *Trial, grants []granted) {
	if t.Protocol == tcp {
		return
	}
	if p := f.Services[t.Callee].Inbound.Probe; p != nil && allows(grants, p.Method, p.Path) {
		t.Allowed, t.Forwarded = p.clone(), true
	} else {
		first := grants[0]
		t.Allowed = &Probe{Method: "GET", Path: "/"}
		if len(first.methods) > 0 {
			t.Allowed.Method = first.methods[0]
		}
		if len(first.paths) > 0 {
			t.Allowed.Path = example(first.paths[0])
		}
	}
	for _, path := range append([]string{"/" + oddSegment + "/0/1/2", t.Allowed.Path}, oddPaths(grants)...) {
		for _, method := range []string{"GET", "DELETE", "PARLEY-VERIFY"} {
			if !allows(grants, method, path) {
				t.Forbidden = &Probe{Method: method, Path: path}
				return
			}
		}
	}
}

// maxOdd bounds the segments of a path that is made up.
const maxOdd = 32

// oddPaths are paths of nothing but odd segments, one of each form that the patterns of
// grants can tell from another. A literal holds for none of them: where all of them are
// allowed, by a method that nobody names, everything is.
func oddPaths(grants []granted) (paths []string) {
	depth := 0
	for _, g := range grants {
		for _, p := range g.paths {
			depth = max(depth, strings.Count(p, "/"))
		}
	}
	for n := range min(depth+1, maxOdd) + 1 {
		path := strings.Repeat("/"+oddSegment, n)
		if n > 0 {
			paths = append(paths, path)
		}
		paths = append(paths, path+"/")
	}
	return paths
}

// allows says that one of grants lets the request through.
func allows(grants []granted, method, path string) bool {
	return slices.ContainsFunc(grants, func(g granted) bool {
		return (len(g.methods) == 0 || slices.Contains(g.methods, method)) &&
			(len(g.paths) == 0 || slices.ContainsFunc(g.paths, func(p string) bool { return policy.MatchPath(p, path) }))
	})
}

// example is a path that pattern stands for.
func example(pattern string) string {
	path := strings.TrimSuffix(pattern, "/**")
	path = strings.ReplaceAll(path, "*", oddSegment)
	return cmp.Or(path, "/")
}

func (p *Probe) clone() *Probe {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}
