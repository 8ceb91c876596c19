package mesh

import (
	"fmt"
	"slices"
	"strings"
)

// maxCompared bounds how many pairs of patterns one Diff or Findings compares.
const maxCompared = 5_000_000

// A comparer says whether one set of calls holds all of another. When its budget
// is spent it says no, which makes a change look wider or narrower than it is,
// never smaller.
type comparer struct{ left int }

func newComparer() *comparer { return &comparer{maxCompared} }

// A grant is some calls: every method and path, or some.
type grant struct{ methods, paths []string }

// String is the grant as a person reads it: "GET, POST /charge".
func (g grant) String() string {
	switch m, p := strings.Join(g.methods, ", "), strings.Join(g.paths, ", "); {
	case m == "" && p == "":
		return "any call"
	case m == "":
		return "any method " + p
	case p == "":
		return m + " any path"
	default:
		return m + " " + p
	}
}

// within says that one of the wider grants holds all of g.
func (c *comparer) within(g grant, wider []grant) bool {
	return slices.ContainsFunc(wider, func(w grant) bool { return c.covers(w, g) })
}

func (c *comparer) covers(wide, narrow grant) bool {
	return c.subset(narrow.methods, wide.methods, func(n, w string) bool { return n == w }) &&
		c.subset(narrow.paths, wide.paths, func(n, w string) bool { return coversPattern(w, n) })
}

// subset says that every narrow value is in a wide one; no values mean all.
func (c *comparer) subset(narrow, wide []string, in func(n, w string) bool) bool {
	if len(wide) == 0 {
		return true
	}
	if len(narrow) == 0 {
		return false
	}
	for _, n := range narrow {
		found := slices.ContainsFunc(wide, func(w string) bool {
			c.left--
			return c.left > 0 && in(n, w)
		})
		if !found {
			return false
		}
	}
	return true
}

// coversPattern says that every path of pattern narrow is one of pattern wide.
func coversPattern(wide, narrow string) bool {
	ws, ns := strings.Split(wide, "/"), strings.Split(narrow, "/")
	for i, w := range ws {
		if w == "**" {
			return true
		}
		if i >= len(ns) || ns[i] == "**" {
			return false
		}
		if w == "*" && ns[i] == "" || w != "*" && w != ns[i] {
			return false
		}
	}
	return len(ws) == len(ns)
}

// coversHost is the same for the host of a route.
func coversHost(wide, narrow string) bool {
	if wide == "" || wide == narrow {
		return true
	}
	suffix, ok := strings.CutPrefix(wide, "*")
	label, rest, _ := strings.Cut(narrow, ".")
	return ok && label != "*" && label != "" && "."+rest == suffix
}

// grant of an allow entry and of a route.
func (a *Allow) grant() grant { return grant{a.Methods, a.Paths} }

func (r *Route) grant() grant {
	if r.Match == nil {
		return grant{}
	}
	g := grant{methods: r.Match.Methods}
	if r.Match.Path != "" {
		g.paths = []string{r.Match.Path}
	}
	return g
}

func (r *Route) host() string {
	if r.Match == nil {
		return ""
	}
	return r.Match.Host
}

// String is the match as a person reads it: "GET api.shop.example/orders/**".
func (r *Route) String() string {
	if r.Match == nil {
		return "every request"
	}
	s := r.Match.Host + r.Match.Path
	if s == "" {
		s = "any path"
	} else if r.Match.Host == "" {
		s = "any host" + s
	}
	if len(r.Match.Methods) > 0 {
		s = strings.Join(r.Match.Methods, ", ") + " " + s
	}
	return s
}

// String is the requirement as a person reads it.
func (r *Require) String() string {
	if r == nil {
		return "nobody"
	}
	if r.Public {
		return "public"
	}
	var ways []string
	for _, c := range r.Any {
		switch {
		case c.JWT != nil:
			ways = append(ways, c.JWT.String())
		case c.APIKey == nil:
		case len(c.APIKey.Scopes) == 0:
			ways = append(ways, "any API key")
		default:
			ways = append(ways, fmt.Sprintf("API key with %s", strings.Join(c.APIKey.Scopes, ", ")))
		}
	}
	return strings.Join(ways, " or ")
}

// covers says that whoever satisfies narrow satisfies r.
func (r *Require) covers(narrow *Require) bool {
	if r.Public || narrow.Public {
		return r.Public
	}
	for _, n := range narrow.Any {
		if !slices.ContainsFunc(r.Any, func(w *Credential) bool { return w.covers(n) }) {
			return false
		}
	}
	return true
}

func (c *Credential) covers(narrow *Credential) bool {
	switch w, n := c.JWT, narrow.JWT; {
	case w != nil && n != nil:
		return w.Issuer == n.Issuer && w.Audience == n.Audience && all(w.Scopes, n.Scopes)
	case c.APIKey != nil && narrow.APIKey != nil:
		return all(c.APIKey.Scopes, narrow.APIKey.Scopes)
	}
	return false
}

// all says that have holds every scope that is wanted.
func all(want, have []string) bool {
	return !slices.ContainsFunc(want, func(s string) bool { return !slices.Contains(have, s) })
}

// String is the requirement as a person reads it.
func (j *JWT) String() string {
	s := fmt.Sprintf("token of %s for %s", j.Issuer, j.Audience)
	if len(j.Scopes) > 0 {
		s += " with " + strings.Join(j.Scopes, ", ")
	}
	return s
}

// String is the selectors as a person reads them.
func (r *RunsAs) String() string {
	if r == nil {
		return "nothing"
	}
	var parts []string
	for _, s := range r.selectors() {
		if s[1] != "" {
			parts = append(parts, s[0]+" "+s[1])
		}
	}
	return strings.Join(parts, ", ")
}

func (r *RunsAs) selectors() [5][2]string {
	return [5][2]string{{"user", r.User}, {"group", r.Group}, {"systemd", r.Systemd}, {"exe", r.Exe}, {"sha256", r.SHA256}}
}

// within says that every process of r is one of wide too, as far as the
// selectors show it.
func (r *RunsAs) within(wide *RunsAs) bool {
	mine := r.selectors()
	for i, s := range wide.selectors() {
		if s[1] != "" && s[1] != mine[i][1] {
			return false
		}
	}
	return true
}
