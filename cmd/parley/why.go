package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
)

func (a *app) whyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "why DECISION | FROM TO [METHOD PATH]", Short: "why a call was allowed or denied, or how one would be",
		Long: `A decision id stands in every refusal, in the caller's and the callee's log and
in the audit log. Without one, the question is about a call that nobody made.`,
		Example: `  parley why 01K3Q8Z4M7QK2V9D3B6H8N5R1T       this refusal
  parley why web payments POST /charge         may web do this?
  parley why payments ledger                   a TCP connection`,
		Args: whyArguments, ValidArgsFunction: a.live(2, services),
	}
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		e, err := c.Why(cmd.Context(), question(args))
		if err != nil {
			return err
		}
		if a.term.JSON() {
			err = a.term.Document("explanation", e)
		} else {
			a.writeExplanation(e)
		}
		if err == nil && !answer(e) {
			return errNo
		}
		return err
	})
	return cmd
}

// decisionID is how many characters a decision id has: it is a ULID.
const decisionID = 26

func whyArguments(cmd *cobra.Command, args []string) error {
	switch len(args) {
	case 1:
		if len(args[0]) != decisionID {
			return usage("a question names both sides: parley why "+args[0]+" TO [METHOD PATH]", "`%s` is no decision id: one has %d letters and digits", args[0], decisionID)
		}
		return nil
	case 2:
		return nil
	case 4:
		if strings.HasPrefix(args[3], "/") {
			return nil
		}
		return usage("parley why "+args[0]+" "+args[1]+" "+args[2]+" /"+args[3], "the path `%s` does not start with a slash", args[3])
	}
	return usage("parley why --help", "parley why wants a DECISION, or FROM TO, or FROM TO METHOD PATH")
}

func question(args []string) api.ExplainParams {
	if len(args) == 1 {
		return api.ExplainParams{Decision: args[0]}
	}
	p := api.ExplainParams{From: args[0], To: args[1]}
	if len(args) == 4 {
		p.Method, p.Path = strings.ToUpper(args[2]), args[3]
	}
	return p
}

// answer is whether the call was allowed then, or for a question would be now.
func answer(e *api.Explanation) bool {
	if e.Decision.ID != "" {
		return e.Decision.Allow
	}
	return e.Allow
}

func (a *app) writeExplanation(e *api.Explanation) {
	t := a.term
	verdict := t.Paint(term.Good, "ALLOWED")
	if !answer(e) {
		verdict = t.Paint(term.Bad, "DENIED")
	}
	t.Printf("%s   %s\n\n", verdict, title(a, e))
	for i, s := range e.Steps {
		t.Printf("%3d  %-11s %s  %s\n", i+1, s.Name, stepState(t, s.State), s.Text)
		if s.Help != "" {
			t.Printf("     %-11s       %s\n", "", s.Help)
		}
	}
	rule(t, e)
	if e.Decision.ID != "" && e.Decision.Replayed && !e.Decision.Same {
		t.Printf("\nThat was revision %d. Revision %d, which runs now, decides differently: %s.\n", e.Decision.Revision, e.Revision, allowedWord(e.Allow))
	}
	if !e.Allow && e.Suggestion.Command != "" {
		t.Printf("\nIf this call is meant to work, make a key for it:  %s\n", e.Suggestion.Command)
	}
	if !e.Allow && e.Suggestion.Text != "" {
		suggest(t, e.Suggestion)
	}
	t.Hintf("\nWhat the reason means:  parley explain %s\n", reason(e))
}

// suggest shows what would allow a call, and the commands that see to it.
func suggest(t *term.Terminal, s api.Suggestion) {
	file, first := local(s.File), ""
	switch file {
	case "":
		file = "the mesh file"
	case stdin:
		file, first = defaultMesh, "parley config show > "+defaultMesh
	}
	t.Printf("\nIf this call is meant to work, add this in %s:\n\n", file)
	for line := range strings.Lines(strings.ReplaceAll(s.Text, "# "+s.File+":", "# "+file+":")) {
		t.Printf("%s\n", strings.TrimRight(line, "\n")) // indented as it must be in the file
	}
	apply := "parley apply --dry-run"
	if s.File != "" && file != defaultMesh {
		apply += " -f " + quoted(file)
	}
	if first != "" {
		t.Printf("\nIt came through standard input; get it back first:  %s", first)
	}
	t.Printf("\nThen see what it would change:  %s\n", apply)
}

func title(a *app, e *api.Explanation) string {
	words := []string{from(e.From) + " -> " + e.To}
	if e.Method != "" || e.Path != "" {
		words = append(words, strings.TrimSpace(e.Method+" "+e.Path))
	}
	if e.Decision.ID != "" {
		words = append(words, "decision "+e.Decision.ID, term.Relative(e.Decision.Time, a.clock.Now()))
	} else {
		words = append(words, fmt.Sprintf("by revision %d", e.Revision))
	}
	return strings.Join(words, "   ")
}

func stepState(t *term.Terminal, s api.StepState) any {
	style := term.Plain
	if s == api.StepNo {
		style = term.Bad
	}
	return t.Paint(style, fmt.Sprintf("%-4s", s))
}

// rule names the rule that allowed, or else the nearest.
func rule(t *term.Terminal, e *api.Explanation) {
	name, r := "rule", e.Rule
	if r.ID == "" {
		name, r = "near", e.Nearest
	}
	if r.ID == "" {
		return
	}
	words := []string{r.ID}
	if r.File != "" {
		words = append(words, fmt.Sprintf("%s:%d", local(r.File), r.Line))
	}
	for _, part := range [][]string{r.From, r.Methods, r.Paths} {
		if len(part) > 0 {
			words = append(words, strings.Join(part, ","))
		}
	}
	if r.Why != "" {
		words = append(words, r.Why)
	}
	t.Printf("     %-11s       %s\n", name, strings.Join(words, "   "))
}

func allowedWord(allow bool) string {
	if allow {
		return "allowed"
	}
	return "denied"
}

func reason(e *api.Explanation) string {
	if e.Decision.Error != "" {
		return e.Decision.Error
	}
	if e.Decision.ID != "" {
		return e.Decision.Reason
	}
	return e.Reason
}
