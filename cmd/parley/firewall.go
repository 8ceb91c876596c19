package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/firewall"
	"github.com/parleymesh/parley/internal/mesh"
)

// A closing is what `parley firewall` is asked to close.
type closing struct {
	file, host, user string
	dryRun, remove   bool
}

func (a *app) firewallCommand() *cobra.Command {
	var c closing
	cmd := &cobra.Command{
		Use: "firewall", Short: "let nobody but the agent reach the ports of applications",
		Long: `By nftables, on the host where the services run: one table, ` + firewall.Table + `, which
looks at new connections to app ports and at nothing else. Those from other
machines are refused, and on this one those of every user but the agent's. The
table stays when the agent ends. An agent that is started with --firewall does
this by itself, and follows every revision.`,
		Example: `  parley firewall --dry-run             print the rules and change nothing
  parley firewall                       put them in, by the newest revision
  parley firewall -f parley.yaml        by a mesh file; no server is asked
  parley firewall --host web1 --user parley
  parley firewall --remove              take them out; asks nobody`,
		Args: arguments(0, 0, "no arguments"),
	}
	f := cmd.Flags()
	f.BoolVarP(&c.dryRun, "dry-run", "n", false, "print the rules and change nothing")
	f.BoolVar(&c.remove, "remove", false, "take the rules out, if they are there")
	f.StringVarP(&c.file, "file", "f", "", "mesh `file`, - for standard input; without it the newest revision")
	f.StringVar(&c.host, "host", "", "`name` of this host in the mesh file (default: as the system has it)")
	f.StringVar(&c.user, "user", "", "`user` of the agent (default: who runs the inbound listeners here)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if c.remove {
			if c.dryRun || c.file != "" || c.host != "" || c.user != "" {
				return usage("parley firewall --remove", "--remove takes the whole table out, and goes with no other flag")
			}
			return a.openPorts(cmd)
		}
		return a.closePorts(cmd, &c)
	}
	return cmd
}

func (a *app) openPorts(cmd *cobra.Command) error {
	if err := (firewall.NFT{}).Remove(cmd.Context()); err != nil {
		return err
	}
	if a.term.JSON() {
		return a.term.Document("firewall", map[string]any{"table": firewall.Table, "in_force": false})
	}
	a.term.Printf("%s  the table %s is not there any more: every user of this host reaches the app ports\n", a.term.Mark(term.OK), firewall.Table)
	a.term.Hintf("An agent that runs with --firewall puts it in again within ten seconds or so.\n")
	return nil
}

func (a *app) closePorts(cmd *cobra.Command, c *closing) error {
	file, err := a.meshOf(cmd, c.file)
	if err != nil {
		return err
	}
	host, err := hostOf(file, c.host)
	if err != nil {
		return err
	}
	ports, err := mesh.AssignPorts(file, nil)
	if err != nil {
		return err
	}
	whole, err := mesh.Compile(file, 1, ports, nil)
	if err != nil {
		return err
	}
	snap := whole.For(host, nil)
	runs, running := firewall.Agent(snap)
	uid, known := runs, running
	if c.user != "" {
		if uid, known = firewall.UserID(c.user); !known {
			return usage("getent passwd", "this host has no user %q", c.user)
		}
		if running && uid != runs {
			return usage("leave --user out, or restart the agent as that user", "the agent here runs as user %s and not as %s: its own calls would be refused", firewall.UserText(runs), firewall.UserText(uid))
		}
	}
	rules, err := firewall.New(snap, firewall.ThisHost(uid))
	if err != nil {
		return err
	}
	if !known && len(rules.Ports) > 0 {
		return usage("name its user: parley firewall --user NAME", "no agent runs the inbound listeners on this host, so whose the ports are to be is not known")
	}
	if !c.dryRun {
		if err := (firewall.NFT{}).Put(cmd.Context(), rules); err != nil {
			return err
		}
	}
	return a.writeRules(rules, rules.Limits(snap), c.dryRun)
}

func (a *app) writeRules(rules firewall.Rules, limits []string, dryRun bool) error {
	t := a.term
	if t.JSON() {
		return t.Document("firewall", map[string]any{
			"table": firewall.Table, "in_force": !dryRun && len(rules.Ports) > 0, "uid": rules.UID,
			"ports": append([]firewall.Port{}, rules.Ports...), "rules": rules.String(), "limits": append([]string{}, limits...),
		})
	}
	if dryRun {
		for _, l := range limits {
			t.Notef("note: %s\n", l)
		}
		return t.Raw([]byte(rules.String()))
	}
	if len(rules.Ports) == 0 {
		t.Printf("%s  nothing to close: no application of this host takes connections by TCP\n", t.Mark(term.OK))
		return nil
	}
	tab := &term.Table{Columns: []term.Column{{}, {Title: "SERVICE"}, {Title: "APP PORT", Right: true}, {Title: "OPEN TO"}}}
	for _, p := range rules.Ports {
		tab.Row(term.OK, p.Service, fmt.Sprint(p.Port), "user "+firewall.UserText(rules.UID)+" of this host")
	}
	t.Table(tab)
	for _, l := range limits {
		t.Printf("\n%s  %s\n", t.Mark(term.Look), t.Folded(l, 6))
	}
	t.Hintf("\nTo open them again:  parley firewall --remove\n")
	return nil
}

// meshOf is the mesh file called name, or the newest revision's.
func (a *app) meshOf(cmd *cobra.Command, name string) (*mesh.File, error) {
	if name != "" {
		text, name, err := readMesh(a.in, name, "name the file: parley firewall -f FILE")
		if err != nil {
			return nil, err
		}
		return mesh.Parse(name, []byte(text))
	}
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r, err := c.Revision(cmd.Context(), 0)
	if err != nil {
		return nil, err
	}
	return mesh.Parse(r.Name, []byte(r.Text))
}

// hostOf is which of the file's hosts this machine is, "" where the file names none.
func hostOf(f *mesh.File, named string) (string, error) {
	hosts := slices.Sorted(maps.Keys(f.Hosts))
	if len(hosts) == 0 {
		if named != "" {
			return "", usage("leave --host out", "the mesh file names no hosts")
		}
		return "", nil
	}
	host := named
	if host == "" {
		system, err := os.Hostname()
		if err != nil {
			return "", err
		}
		host, _, _ = strings.Cut(system, ".")
	}
	if f.Hosts[host] == nil {
		return "", usage("say which it is: --host NAME, of "+strings.Join(hosts, ", "), "the mesh file has no host %q", host)
	}
	return host, nil
}
