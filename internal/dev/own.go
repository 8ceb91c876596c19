package dev

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/mesh"
)

// own are the commands that fit a mesh file which is not the built-in shop's: a call
// that it declares, and a way in through its gateway.
func (m *Mesh) own(parley string) (out []Command) {
	names := slices.Sorted(maps.Keys(m.file.Services))
	if i := slices.IndexFunc(names, func(n string) bool { return len(m.file.Services[n].Calls) > 0 }); i >= 0 {
		from, to := names[i], m.file.Services[names[i]].Calls[0].To
		why := fmt.Sprintf("%s why %s %s", parley, from, to)
		if m.file.Services[to].Inbound.Protocol != "tcp" {
			why += " GET /"
			out = append(out, Command{fmt.Sprintf("%s's way to %s: only a process of %s is let through", from, to, from), "curl -s " + plainURL(m.outbound(from, to))})
		}
		out = append(out, Command{fmt.Sprintf("may %s call %s, and by which rule", from, to), why})
	}
	return append(out, m.ownEdge(parley)...)
}

// plainURL is an address as arguments of curl.
func plainURL(addr string) string {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "--unix-socket " + shellQuote(path) + " http://localhost/"
	}
	return "http://" + addr + "/"
}

// ownEdge are an API key for the first route that wants one, and a call with it.
func (m *Mesh) ownEdge(parley string) []Command {
	for _, name := range slices.Sorted(maps.Keys(m.file.Gateways)) {
		g := m.file.Gateways[name]
		for _, r := range g.Routes {
			if r.Require == nil || len(r.Require.Any) == 0 || r.Require.Any[0].APIKey == nil {
				continue
			}
			create := parley + " key create trial"
			if scopes := r.Require.Any[0].APIKey.Scopes; len(scopes) > 0 {
				create += " --scope " + shellQuote(strings.Join(scopes, ","))
			}
			if url := edgeURL(g, r); url != "" {
				return []Command{{
					fmt.Sprintf("an API key for %s, and a call with it through gateway %s", r.To, name),
					fmt.Sprintf(`curl -s --cacert %s -H "X-API-Key: $(%s --quiet)" %s`, m.shell("ca.pem"), create, shellQuote(url)),
				}}
			}
			return []Command{{fmt.Sprintf("an API key that gateway %s takes for %s", name, r.To), create}}
		}
	}
	return nil
}

// edgeURL is a request that a route takes, where one can be made up: by GET, and to
// a name of the mesh's own certificate that a program on this host can reach.
func edgeURL(g *mesh.Gateway, r *mesh.Route) string {
	_, port, err := net.SplitHostPort(g.Listen)
	if err != nil || g.TLS == nil || g.TLS.MeshCA == nil || !slices.Contains(g.TLS.MeshCA.Hosts, "localhost") {
		return ""
	}
	path := "/"
	if m := r.Match; m != nil {
		if m.Host != "" && m.Host != "localhost" || len(m.Methods) > 0 && !slices.Contains(m.Methods, "GET") {
			return ""
		}
		path = strings.ReplaceAll(strings.TrimSuffix(m.Path, "**"), "*", "1")
	}
	return "https://localhost:" + port + path
}
