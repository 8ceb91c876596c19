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

// defaultDir is the data directory in which commands look for a mesh by themselves.
const defaultDir = ".parley"

// Command is how this mesh's own parley is called from the current directory.
func (m *Mesh) Command() string {
	cmd := m.shell("bin/parley")
	if m.shell("") != defaultDir {
		cmd += " --api " + m.shell("api.sock")
	}
	return cmd
}

// shell is the path of a file of the data directory, as short as it gets and
// quoted where a shell needs it.
func (m *Mesh) shell(name string) string { return m.here(filepath.Join(m.Dir, name)) }

// here is a path as it is named in the current directory.
func (m *Mesh) here(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
			path = rel
		}
	}
	return shellQuote(path)
}

// shellQuote is a word as a shell takes it.
func shellQuote(word string) string {
	if strings.Trim(word, plain+":,") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// Path is what makes `parley` a command of a shell, and the mesh its own where that
// is not the one in the current directory.
func (m *Mesh) Path() string {
	line := "export PATH=" + shellQuote(binDir(m.Dir)) + `:"$PATH"`
	if m.shell("") != defaultDir {
		line += " PARLEY_API=" + shellQuote(filepath.Join(m.Dir, "api.sock"))
	}
	return line
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
	out := []Command{{"makes `parley` a command of the shell that you paste it into", m.Path()}}
	if !m.Demo || m.changed {
		out = append(out, m.own(p)...)
	} else {
		out = append(out, m.shopCommands(p)...)
	}
	return append(out, []Command{
		{"who talks to whom", p + " status"},
		{"attack every edge, to see that it holds", p + " verify"},
		{"the last calls, both ends of each", p + " audit tail -n 6 --action call"},
		{"every refusal", p + " audit search --outcome denied"},
		{"is the log intact", p + " audit verify"},
		{"the live certificates", p + " cert list"},
		{"how the mesh file came to be", p + " config history"},
		{"change the mesh file, then see what that would do", fmt.Sprintf("%s apply --dry-run -f %s", p, m.here(m.File))},
	}...)
}

func (m *Mesh) shopCommands(p string) []Command {
	curl := fmt.Sprintf("curl -s --cacert %s", m.shell("ca.pem"))
	key := func(name string) string { return fmt.Sprintf(`-H "X-API-Key: $(cat %s)"`, m.shell(name+".key")) }
	return []Command{
		{"an order, through the gateway", fmt.Sprintf("%s %s %s/shop/orders/7", curl, key("reader"), m.GatewayURL())},
		{"a purchase: web, orders, payments and the ledger, each over mTLS", fmt.Sprintf("%s %s -X POST %s/shop/buy", curl, key("buyer"), m.GatewayURL())},
		{"an order, with a token for five minutes", fmt.Sprintf(`%s -H "Authorization: Bearer $(%s)" %s/shop/orders/7`, curl, m.tokenCommand(), m.GatewayURL())},
		{"the purchase without a key: 401", fmt.Sprintf("%s -X POST %s/shop/buy", curl, m.GatewayURL())},
		{"web's own way to orders, used by you: refused, since you are not web", fmt.Sprintf("curl -s http://%s/orders/7", m.Way("web", "orders"))},
		{"why web may not charge, and what would allow it", p + " why web payments POST /charge"},
		{"why web may read an order", p + " why web orders GET /orders/7"},
		{"an API key", p + " key create trial --scope shop.read"},
	}
}
