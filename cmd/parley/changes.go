package main

import (
	"fmt"
	"strconv"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
)

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

var opMarks = map[api.ChangeOp]term.Mark{api.Added: term.Added, api.Changed: term.Changed, api.Removed: term.Removed}

// writeChanges lists changes and sums them up.
func (a *app) writeChanges(changes []api.Change, access api.Access) {
	t := a.term
	if len(changes) == 0 {
		t.Printf("  no difference\n\n")
		return
	}
	tab := &term.Table{Columns: []term.Column{{}, {Title: "KIND"}, {Title: "NAME", Min: 16}, {Title: "DETAIL", Min: 20, Drop: 1}}}
	count := map[api.ChangeOp]int{}
	for _, c := range changes {
		count[c.Op]++
		tab.Row(opMarks[c.Op], c.Kind, c.Name, c.Detail)
	}
	t.Table(tab)
	t.Printf("\nPlan: %d added, %d changed, %d removed. %s\n",
		count[api.Added], count[api.Changed], count[api.Removed], accessWords(access))
}

func accessWords(x api.Access) string {
	switch {
	case x.Wider == 0 && x.Narrower == 0:
		return "Access stays as it is."
	case x.Narrower == 0:
		return fmt.Sprintf("Access gets wider in %s.", term.Count(x.Wider, "place"))
	case x.Wider == 0:
		return fmt.Sprintf("Access gets narrower in %s.", term.Count(x.Narrower, "place"))
	}
	return fmt.Sprintf("Access gets wider in %s, narrower in %d.", term.Count(x.Wider, "place"), x.Narrower)
}

// writeFindings lists what somebody should look at, each with its place.
func (a *app) writeFindings(findings []api.Finding) {
	t := a.term
	for _, f := range findings {
		place := ""
		if f.File != "" {
			place = fmt.Sprintf("%s:%d  ", local(f.File), f.Line)
		}
		t.Printf("  %s  %s%s\n", t.Mark(term.Look), place, f.Message)
		if f.Help != "" {
			t.Printf("      help: %s\n", f.Help)
		}
	}
	if len(findings) > 0 {
		t.Printf("\n")
	}
}
