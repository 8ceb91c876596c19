package dev

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// A Command is something to paste into a shell while the mesh runs.
type Command struct {
	What string `json:"what"`
	Line string `json:"line"`
}

// Command is how this mesh's own parley is called from the current directory.
func (m *Mesh) Command() string {
	cmd := m.shell("bin/parley")
	if m.shell("") != ".parley" {
		cmd += " --api " + m.shell("api.sock")
	}
	return cmd
}

// shell is the path of a file of the data directory, as short as it gets and
// quoted where a shell needs it.
func (m *Mesh) shell(name string) string {
	path := filepath.Join(m.Dir, name)
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
			path = rel
		}
	}
	if strings.Trim(path, plain) != "" {
		path = "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
	}
	return path
}

// tokenCommand makes a token of this mesh's issuer.
func (m *Mesh) tokenCommand() string {
	cmd := m.shell("bin/parley") + " dev token"
	if m.shell("") != ".parley" {
		cmd += " --dir " + m.shell("")
	}
	return cmd
}

// Commands are what to try. Those of the shop need curl.
func (m *Mesh) Commands() []Command {
	p := m.Command()
	var out []Command
	if m.Demo {
		curl := fmt.Sprintf("curl -s --cacert %s", m.shell("ca.pem"))
		key := func(name string) string { return fmt.Sprintf(`-H "X-API-Key: $(cat %s)"`, m.shell(name+".key")) }
		out = []Command{
			{"an order, through the gateway", fmt.Sprintf("%s %s %s/shop/orders/7", curl, key("reader"), m.GatewayURL())},
			{"a purchase: web, orders, payments and the ledger, each over mTLS", fmt.Sprintf("%s %s -X POST %s/shop/buy", curl, key("buyer"), m.GatewayURL())},
			{"an order, with a token for five minutes", fmt.Sprintf(`%s -H "Authorization: Bearer $(%s)" %s/shop/orders/7`, curl, m.tokenCommand(), m.GatewayURL())},
			{"the purchase without a key: 401", fmt.Sprintf("%s -X POST %s/shop/buy", curl, m.GatewayURL())},
			{"web's own way to orders, used by you: refused, since you are not web", fmt.Sprintf("curl -s http://%s/orders/7", m.Way("web", "orders"))},
			{"why web may not charge, and what would allow it", p + " why web payments POST /charge"},
			{"why web may read an order", p + " why web orders GET /orders/7"},
		}
	}
	out = append(out, []Command{
		{"who talks to whom", p + " status"},
		{"the last calls, both ends of each", p + " audit tail -n 6 --action call"},
		{"every refusal", p + " audit search --outcome denied"},
		{"is the log intact", p + " audit verify"},
		{"the live certificates", p + " cert list"},
		{"an API key", p + " key create trial --scope shop.read"},
		{"how the mesh file came to be", p + " config history"},
	}...)
	if m.Demo {
		out = append(out, Command{"change the mesh file, then see what that would do", fmt.Sprintf("%s apply --dry-run -f %s", p, m.shell("parley.yaml"))})
	}
	return out
}
