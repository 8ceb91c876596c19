package main

import (
	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
)

func (a *app) auditEraseCommand() *cobra.Command {
	var r api.EraseRequest
	var yes bool
	cmd := &cobra.Command{
		Use: "erase --subject SUBJECT", Short: "take a person out of the record, with --yes",
		Long: `Of every event of the person, the subject, the address of the client and the
salt that the hash was made with are destroyed. Which call it was, when, and
what was decided stays, and every hash still verifies. What agents deliver later
of the time before is erased as it arrives. That it was done is recorded,
without the subject. It cannot be undone.`,
		Example: `  parley audit erase --subject alice
  parley audit erase --subject alice --issuer https://id.example.com --yes`,
		Args: arguments(0, 0, "no arguments; name the person with --subject"),
	}
	cmd.Flags().StringVar(&r.Subject, "subject", "", "the `subject` of the person's tokens")
	cmd.Flags().StringVar(&r.Issuer, "issuer", "", "only of tokens of this `issuer`")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if r.Subject == "" {
			return usage("parley audit erase --subject alice", "--subject says who is to be erased")
		}
		return nil
	}
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
		r.DryRun = !yes
		stop := a.term.Progress(cmd.Context(), a.clock, "going through the record")
		done, err := c.Erase(cmd.Context(), r)
		stop()
		if err != nil {
			return err
		}
		if a.term.JSON() {
			return a.term.Document("erasure", done)
		}
		a.writeErasure(done)
		return nil
	})
	return cmd
}

func (a *app) writeErasure(r *api.EraseResult) {
	if len(r.Logs) > 0 {
		tab := &term.Table{Columns: []term.Column{{Title: "LOG", Min: 12}, {Title: "EVENTS", Right: true}, {Title: "FIRST", Right: true}, {Title: "LAST", Right: true}}}
		for _, x := range r.Logs {
			tab.Row(x.Log, term.Number(x.Count), term.Number(x.From), term.Number(x.To))
		}
		a.term.Table(tab)
		a.term.Printf("\n")
	}
	events := plural(int(r.Events), "1 event", term.Number(r.Events)+" events")
	switch {
	case r.Done:
		a.term.Printf("Erased: %s\n", events)
	case r.Events == 0:
		a.term.Printf("There is nothing to erase yet: no event is of that person.\n")
		a.term.Hintf("What arrives later of the time before is erased too:  --yes\n")
	default:
		a.term.Printf("To erase: %s. Nothing was changed.\n", events)
		a.term.Hintf("Do it, for good:  --yes\n")
	}
}
