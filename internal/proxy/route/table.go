package route

import (
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A Table is an edge's routes in order. It is immutable.
type Table struct{ routes []snapshot.Route }

// NewTable is the table of g.
func NewTable(g *snapshot.Gateway) *Table {
	t := &Table{routes: slices.Clone(g.Routes)}
	for i := range t.routes {
		t.routes[i].Host = strings.ToLower(t.routes[i].Host)
	}
	return t
}

// Match is the first route for a canonical host and path and a method, nil where
// there is none.
func (t *Table) Match(host, path, method string) *snapshot.Route {
	for i := range t.routes {
		r := &t.routes[i]
		if matchHost(r.Host, host) && (len(r.Methods) == 0 || slices.Contains(r.Methods, method)) &&
			(r.Path == "" || policy.MatchPath(r.Path, path)) {
			return r
		}
	}
	return nil
}

// matchHost: *.name stands for exactly one more label.
func matchHost(pattern, host string) bool {
	if pattern == "" || pattern == host {
		return true
	}
	suffix, ok := strings.CutPrefix(pattern, "*")
	if !ok || !strings.HasSuffix(host, suffix) {
		return false
	}
	label := host[:len(host)-len(suffix)]
	return label != "" && strings.IndexByte(label, '.') < 0
}
