package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/mesh"
)

func (a *app) applyCommand() *cobra.Command {
	var file string
	var c changeFlags
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "make a mesh file the desired state, or show what would change",
		Example: `  parley apply                        ./parley.yaml
  parley apply --dry-run              what would change; nothing does
  parley apply -f mesh.yaml --message "orders may charge"
  render | parley apply -f -          from standard input`,
		Args: arguments(0, 0, "no arguments; name the file with --file"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, name, err := readMesh(a.in, file, "name the file: parley apply -f FILE")
			if err != nil {
				return err
			}
			r := api.ApplyRequest{Name: name, Text: text, Message: c.message, DryRun: c.dryRun}
			if cmd.Flags().Changed("expect") {
				r.Expect = &c.expect
			}
			result, err := a.apply(cmd, r)
			if err != nil {
				return withSource(orFaults(err, r), name, text)
			}
			return a.showResult(result, c, local(name), "parley apply -f "+quoted(file))
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "parley.yaml", "mesh `file`, - for standard input")
	c.add(cmd)
	return cmd
}

func (a *app) apply(cmd *cobra.Command, r api.ApplyRequest) (*api.ApplyResult, error) {
	client, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	defer a.term.Progress(cmd.Context(), a.clock, "applying "+local(r.Name))()
	return client.Apply(cmd.Context(), r)
}

// orFaults is what is wrong with the file where no server was there to say it. A
// server that answers is the judge: it may know keys that this program does not.
func orFaults(err error, r api.ApplyRequest) error {
	known := fault.All(err)
	if len(known) == 0 || known[0].Code != fault.Unreachable {
		return err
	}
	if _, bad := mesh.Parse(r.Name, []byte(r.Text)); bad != nil {
		return bad
	}
	known[0].Hint += "\nthe file by itself has no errors"
	return err
}

// changeFlags are those of the commands that make a revision.
type changeFlags struct {
	dryRun, exitCode bool
	message          string
	expect           int64
}

func (c *changeFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&c.dryRun, "dry-run", "n", false, "show what would change and change nothing")
	f.BoolVar(&c.exitCode, "exit-code", false, "with --dry-run: exit 1 if something would change")
	f.StringVar(&c.message, "message", "", "a note for the history")
	f.Int64Var(&c.expect, "expect", 0, "only if this `revision` is still the newest")
}

// withSource gives faults in the file that was sent the text for their excerpts.
func withSource(err error, name, text string) error {
	lines := strings.Split(text, "\n")
	for _, f := range fault.All(err) {
		if local(f.File) == local(name) && f.Line >= 1 && f.Line <= len(lines) {
			f.Source = lines[max(0, f.Line-2):f.Line]
		}
	}
	return err
}

// showResult says what a change did or would do. again is the command that would
// do it, without its flags.
func (a *app) showResult(r *api.ApplyResult, c changeFlags, name, again string) error {
	differs := len(r.Changes) > 0 && c.dryRun && c.exitCode
	if a.term.JSON() {
		if err := a.term.Document("apply", r); err != nil {
			return err
		}
	} else {
		a.writeResult(r, name, again)
	}
	if r.Fault.Code != "" {
		if a.term.JSON() {
			return said{r.Fault.Fault()}
		}
		return r.Fault.Fault()
	}
	if differs {
		return errNo
	}
	return nil
}

func (a *app) writeResult(r *api.ApplyResult, name, again string) {
	t := a.term
	against := "the empty mesh"
	if r.Previous > 0 {
		against = "revision " + decimal(r.Previous)
	}
	if !a.flags.quiet || r.DryRun { // where something was done, that is the answer
		t.Printf("%s compared with %s\n\n", name, against)
		a.writeChanges(r.Changes, r.Access)
		a.writeFindings(r.Findings)
	}
	switch {
	case r.Unchanged:
		t.Printf("Nothing changed: revision %d is this file already.\n", r.Revision)
	case r.DryRun && len(r.Changes) == 0:
		t.Printf("Nothing would change.\n")
	case r.DryRun:
		t.Printf("Nothing was changed. Apply exactly this:  %s --expect %d\n", again, r.Previous)
	case r.Running && r.Fault.Code != "":
		t.Printf("Revision %d runs, but not in full.\n", r.Revision)
	case r.Running:
		t.Printf("Revision %d runs.\n", r.Revision)
		t.Hintf("Undo it:  parley config rollback %d\n", r.Previous)
	default:
		t.Printf("Revision %d is accepted and does not run yet.\n", r.Revision)
	}
}
