package mesh

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/policy"
)

// SuggestRoute is, in the form of Suggest, a route with which a gateway takes the
// one request that none of its routes takes. It leads to where the nearest of them
// leads, and wants what that wants: of those for the host the one whose path has
// most in common. It is empty where a route takes the request, or where there is
// none to be near to.
func SuggestRoute(f *File, gateway, host, method, path string) string {
	g := f.Gateways[gateway]
	if g == nil || !validHost(host) || strings.HasPrefix(host, "*") || method == "" || policy.ValidPath(path) != nil {
		return ""
	}
	var near *Route
	best := -1
	for _, r := range g.Routes {
		if r.takes(host, method, path) {
			return ""
		}
		if n := r.nearness(host, path); n > best {
			near, best = r, n
		}
	}
	if near == nil {
		return ""
	}
	line := fmt.Sprintf("{match: {host: %s, path: %s, methods: %s}, to: %s, require: %s}",
		scalar(host), scalar(path), flowList([]string{method}), scalar(near.To), near.Require.yaml())
	at := "gateway." + gateway + ".routes"
	list := f.places[at]
	if f.flow(at) {
		return fmt.Sprintf("# %s, in the list routes of %s\n%s\n", f.src.where(list.key.line), gateway, line)
	}
	last := fmt.Sprintf("%s[%d]", at, len(g.Routes)-1)
	return fmt.Sprintf("# %s, under routes of %s, as the last\n%s- %s\n", f.src.where(list.key.line), gateway, strings.Repeat(" ", f.dash(last)), line)
}

// takes says that the route is one for the request; it may still be another's,
// which comes first.
func (r *Route) takes(host, method, path string) bool {
	m := r.Match
	return m == nil || (m.Host == "" || coversHost(m.Host, host)) &&
		(len(m.Methods) == 0 || slices.Contains(m.Methods, method)) && (m.Path == "" || policy.MatchPath(m.Path, path))
}

func (r *Route) nearness(host, path string) int {
	m, n := r.Match, 0
	if m == nil {
		return 0
	}
	if m.Host == "" || coversHost(m.Host, host) {
		n = maxPath
	}
	for i := 0; i < len(m.Path) && i < len(path) && m.Path[i] == path[i]; i++ {
		n++
	}
	return n
}

// maxPath is above what two paths have in common.
const maxPath = 1 << 20

// yaml is the requirement as it is written on one line.
func (r *Require) yaml() string {
	if r.Public {
		return "public"
	}
	var ways []string
	for _, c := range r.Any {
		if c.APIKey != nil && len(c.APIKey.Scopes) > 0 {
			ways = append(ways, "{api_key: {scopes: "+flowList(c.APIKey.Scopes)+"}}")
		} else {
			ways = append(ways, "{api_key: {}}")
		}
	}
	return "{any: [" + strings.Join(ways, ", ") + "]}"
}

// WantedScopes are those of which an API key must carry all to pass the route that
// is policy's target, as the compiler names it: where there are several ways the
// one that misses the fewest of have. ok is false where no key would do.
func WantedScopes(f *File, target string, have []string) (scopes []string, ok bool) {
	gateway, rest, found := strings.Cut(target, "/routes[")
	n, err := strconv.Atoi(strings.TrimSuffix(rest, "]"))
	g := f.Gateways[gateway]
	if !found || err != nil || g == nil || n < 0 || n >= len(g.Routes) {
		return nil, false
	}
	fewest := 0
	for _, c := range g.Routes[n].Require.Any {
		if c.APIKey == nil {
			continue
		}
		missing := 0
		for _, s := range c.APIKey.Scopes {
			if !slices.Contains(have, s) {
				missing++
			}
		}
		if !ok || missing < fewest {
			scopes, fewest, ok = c.APIKey.Scopes, missing, true
		}
	}
	return scopes, ok
}

// SuggestRunsAs is, in the form of Suggest, a runs_as with which a process of that
// user and executable is the service: its selectors, with what the process has. It
// is empty where they select it already, and where one of them is of what is not
// known here, or of an executable's digest, which another program cannot have.
func SuggestRunsAs(f *File, service string, user, exe string) string {
	s := f.Services[service]
	if s == nil || s.RunsAs == nil || s.RunsAs.Group != "" || s.RunsAs.Systemd != "" || s.RunsAs.SHA256 != "" {
		return ""
	}
	next := *s.RunsAs
	if next.User != "" {
		next.User = user
	}
	if next.Exe != "" {
		next.Exe = exe
	}
	if next == *s.RunsAs || s.RunsAs.User != "" && user == "" || s.RunsAs.Exe != "" && exe == "" {
		return ""
	}
	var parts []string
	for _, p := range next.selectors() {
		if p[1] != "" {
			parts = append(parts, p[0]+": "+selector(p[0], p[1]))
		}
	}
	at := "services." + service + ".runs_as"
	text := "runs_as: {" + strings.Join(parts, ", ") + "}"
	if !f.flow("services." + service) {
		text = strings.Repeat(" ", f.places[at].key.col-1) + text
	}
	return fmt.Sprintf("# %s, in place of what runs_as of %s says\n%s\n", f.src.where(f.places[at].key.line), service, text)
}

// selector is the value of one; a user may be written as a number.
func selector(name, value string) string {
	if _, err := strconv.Atoi(value); err == nil && name == "user" {
		return value
	}
	return scalar(value)
}
