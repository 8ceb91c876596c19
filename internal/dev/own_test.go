package dev

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/mesh"
)

// What is offered for somebody's own mesh file names what is in it, and nothing of
// the shop.
func TestCommandsFitTheMeshFile(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		file string
		want []string
	}{
		"nothing to call": {"services:\n  web: {runs_as: {user: web}}\n", nil},
		"a call and a gateway with scopes": {`
services:
  web: {runs_as: {user: web}, calls: [orders], inbound: {listen: ":9444", app: "127.0.0.1:8081"}}
  orders: {runs_as: {user: orders}, inbound: {listen: ":9443", app: "127.0.0.1:8080"}, allow: [{from: [web]}]}
gateway:
  edge:
    listen: ":9445"
    tls: {mesh_ca: {hosts: [localhost]}}
    routes:
      - {match: {path: /open}, to: web, require: public}
      - {match: {path: /orders/**}, to: web, require: {any: [{api_key: {scopes: [orders.read, orders.list]}}]}}
`, []string{
			"curl -s http://127.0.0.1:15001/",
			"P why web orders GET /",
			`curl -s --cacert /tmp/p/ca.pem -H "X-API-Key: $(P key create trial --scope orders.read,orders.list --quiet)" https://localhost:9445/orders/`,
		}},
		"a Unix socket, TCP, and a gateway of another name": {`
services:
  web: {runs_as: {user: web}, calls: [{to: db, listen: "unix:/run/it's"}], inbound: {listen: ":9444", app: "127.0.0.1:8081"}}
  db: {runs_as: {user: db}, inbound: {listen: ":9443", app: "127.0.0.1:5432", protocol: tcp}, allow: [{from: [web]}]}
gateway:
  edge: {listen: ":9445", tls: {mesh_ca: {hosts: [api.shop.example]}}, routes: [{to: web, require: {any: [{api_key: {}}]}}]}
`, []string{"P why web db", "P key create trial"}},
		"a listener on a Unix socket": {`
services:
  web: {runs_as: {user: web}, calls: [{to: orders, listen: "unix:/run/it's"}]}
  orders: {runs_as: {user: orders}, inbound: {listen: ":9443", app: "127.0.0.1:8080"}, allow: [{from: [web]}]}
`, []string{`curl -s --unix-socket '/run/it'\''s' http://localhost/`, "P why web orders GET /"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, err := mesh.Parse("parley.yaml", []byte("trust_domain: my.example\n"+tt.file))
			if err != nil {
				t.Fatal(err)
			}
			m := &Mesh{Dir: "/tmp/p", File: "/srv/parley.yaml", file: file, ports: map[[2]string]int{{"web", "orders"}: 15001}}
			var got []string
			for _, c := range m.own("P") {
				got = append(got, c.Line)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			all := m.Commands()
			if first := all[0].Line; first != `export PATH=/tmp/p/bin:"$PATH" PARLEY_API=/tmp/p/api.sock` {
				t.Errorf("the first is %s", first)
			}
			if last := all[len(all)-1].Line; !strings.HasSuffix(last, " apply --dry-run -f /srv/parley.yaml") {
				t.Errorf("the last is %s", last)
			}
		})
	}
}
