package main

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/mesh"
)

func (a *app) configCommand() *cobra.Command {
	return group("config", "the revisions of the mesh file: list, show, compare, go back",
		`  parley config history
  parley config show 3 > parley.yaml
  parley config diff 3 5
  parley config rollback 3 --dry-run
  parley config check -f parley.yaml`,
		a.historyCommand(), a.showCommand(), a.diffCommand(), a.rollbackCommand(), a.checkCommand(), a.schemaCommand())
}

func (a *app) historyCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "history", Short: "the revisions, newest first",
		Example: "  parley config history\n  parley config history --limit 5 --json",
		Args:    arguments(0, 0, "no arguments"),
	}
	cmd.Flags().IntVar(&limit, "limit", 20, "how many at most, up to 1000")
	cmd.PreRunE = func(*cobra.Command, []string) error { return between("limit", limit, 1, 1000) }
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
		list, err := c.Revisions(cmd.Context(), api.ListRevisionsParams{Limit: limit})
		if err != nil {
			return err
		}
		if a.term.JSON() {
			return a.term.Document("revisions", list)
		}
		if len(list.Items) == 0 {
			a.term.Printf("No revision yet.\n")
			a.term.Hintf("Make the first:  parley apply -f parley.yaml\n")
			return nil
		}
		now := a.clock.Now()
		tab := &term.Table{Columns: []term.Column{
			{Title: "REVISION", Right: true}, {Title: "APPLIED"}, {Title: "BY", Min: 8, Drop: 3}, {Title: "FILE", Min: 12, Drop: 2}, {Title: "NOTE", Min: 16, Drop: 1},
		}}
		for _, r := range list.Items {
			note := r.Message
			if r.RollbackOf > 0 {
				note = joined(note, "back to "+decimal(r.RollbackOf))
			}
			tab.Row(r.Number, term.Relative(r.Applied, now), r.Actor, local(r.Name), note)
		}
		a.term.Table(tab)
		if list.Next != "" {
			a.term.Hintf("There are older ones:  parley config history --limit %d\n", min(2*limit, 1000))
		}
		return nil
	})
	return cmd
}

func joined(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ", " + b
}

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show [REVISION]", Short: "the text of a revision, the newest one's without a number",
		Example: "  parley config show\n  parley config show 3 > parley.yaml",
		Args:    revisions(0, 1, "a REVISION or none"), ValidArgsFunction: a.live(1, revisionNumbers),
		RunE: a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
			r, err := c.Revision(cmd.Context(), revision(args, 0, 0))
			if err != nil {
				return err
			}
			if a.term.JSON() {
				return a.term.Document("revision", r)
			}
			return a.term.Raw([]byte(r.Text))
		}),
	}
}

// revisions checks that all arguments are revisions.
func revisions(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for _, arg := range args {
			if n, err := strconv.ParseInt(arg, 10, 64); err != nil || n < 1 {
				return usage("parley config history", "`%s` is no revision: it is a number from 1", arg)
			}
		}
		return arguments(least, most, what)(cmd, args)
	}
}

// revision is the argument at i, which revisions has checked, or missing where it
// is not there.
func revision(args []string, i int, missing int64) int64 {
	if i >= len(args) {
		return missing
	}
	n, _ := strconv.ParseInt(args[i], 10, 64)
	return n
}

func (a *app) diffCommand() *cobra.Command {
	var exitCode bool
	cmd := &cobra.Command{
		Use: "diff [FROM [TO]]", Short: "what changed between two revisions",
		Example: `  parley config diff          the newest against the one before
  parley config diff 3        the newest against 3
  parley config diff 3 5      5 against 3`,
		Args: revisions(0, 2, "FROM and TO, or FROM, or nothing"), ValidArgsFunction: a.live(2, revisionNumbers),
	}
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit 1 if they differ")
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		to := revision(args, 1, 0)
		if to == 0 {
			head, err := c.Revision(cmd.Context(), 0)
			if err != nil {
				return err
			}
			to = head.Number
		}
		d, err := c.Diff(cmd.Context(), revision(args, 0, to-1), to)
		if err != nil {
			return err
		}
		if a.term.JSON() {
			err = a.term.Document("diff", d)
		} else {
			a.term.Printf("revision %d compared with %s\n\n", d.To, orEmpty(d.From))
			a.writeChanges(d.Changes, d.Access)
		}
		if err == nil && exitCode && len(d.Changes) > 0 {
			return errNo
		}
		return err
	})
	return cmd
}

func orEmpty(n int64) string {
	if n == 0 {
		return "the empty mesh"
	}
	return "revision " + decimal(n)
}

func (a *app) rollbackCommand() *cobra.Command {
	var c changeFlags
	cmd := &cobra.Command{
		Use: "rollback REVISION", Short: "apply the text of an earlier revision as a new one",
		Example: "  parley config rollback 3 --dry-run\n  parley config rollback 3 --message \"orders cannot charge\"",
		Args:    revisions(1, 1, "a REVISION; list them with parley config history"), ValidArgsFunction: a.live(1, revisionNumbers),
	}
	c.add(cmd)
	cmd.RunE = a.ask(func(cmd *cobra.Command, client *api.Client, args []string) error {
		r := api.RollbackRequest{To: revision(args, 0, 0), Message: c.message, DryRun: c.dryRun}
		if cmd.Flags().Changed("expect") {
			r.Expect = &c.expect
		}
		result, err := client.Rollback(cmd.Context(), r)
		if err != nil {
			return err
		}
		return a.showResult(result, c, "revision "+args[0], "parley config rollback "+args[0])
	})
	return cmd
}

func (a *app) checkCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "check", Short: "all that is wrong with a mesh file by itself; offline",
		Long: `It needs no server, and so cannot say what would change, nor whether a port is
free: that is parley apply --dry-run.`,
		Example: `  parley config check
  parley config check -f mesh.yaml
  render | parley config check -f -`,
		Args: arguments(0, 0, "no arguments; name the file with --file"),
		RunE: func(*cobra.Command, []string) error {
			text, name, err := readMesh(a.in, file, "name the file: parley config check -f FILE")
			if err != nil {
				return err
			}
			f, err := mesh.Parse(name, []byte(text))
			if err != nil {
				return err
			}
			now := a.clock.Now()
			if err := mesh.CheckDates(f, now); err != nil {
				return err
			}
			found := []api.Finding{}
			for _, x := range mesh.Findings(f, now) {
				found = append(found, api.Finding{Code: x.Kind, File: x.File, Line: x.Line, Message: x.Message, Help: x.Hint})
			}
			if a.term.JSON() {
				return a.term.Document("check", map[string]any{
					"file": name, "trust_domain": f.TrustDomain, "services": len(f.Services), "gateways": len(f.Gateways), "findings": found,
				})
			}
			a.writeFindings(found)
			a.term.Printf("%s  %s has no errors: %s, %s, %s\n", a.term.Mark(term.OK), local(name), f.TrustDomain,
				term.Count(len(f.Services), "service"), term.Count(len(f.Gateways), "gateway"))
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", defaultMesh, "mesh `file`, - for standard input")
	return cmd
}

func (a *app) schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "the JSON Schema of the mesh file, for editors; offline",
		Example: "  parley config schema > parley.schema.json",
		Args:    arguments(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if a.term.JSON() {
				return a.term.Document("schema", json.RawMessage(mesh.Schema()))
			}
			return a.term.Raw(append(bytes.TrimRight(mesh.Schema(), "\n"), '\n'))
		},
	}
}

// ask is a command that asks the server.
func (a *app) ask(do func(*cobra.Command, *api.Client, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		return do(cmd, c, args)
	}
}
