package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
)

func (a *app) statusCommand() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use: "status", Short: "who talks to whom, how it is protected, and what needs you",
		Long: "Of each connection PROTECTION says what was seen in the last hour: observed,\nunknown, MIXED or EXPOSED. What each means:  parley explain observed",
		Example: `  parley status                the mesh as it is now
  parley status -o wide        with every service, certificate and listener
  parley status --check        exit 1 if something needs a person`,
		Args: arguments(0, 0, "no arguments"),
	}
	cmd.Flags().BoolVar(&check, "check", false, "exit 1 if something needs a person")
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
		s, err := c.Status(cmd.Context())
		if err != nil {
			return err
		}
		if a.term.JSON() {
			err = a.term.Document("status", s)
		} else {
			a.writeStatus(s)
		}
		if err == nil && check && len(needs(s)) > 0 {
			return errNo
		}
		return err
	})
	return cmd
}

func (a *app) writeStatus(s *api.Status) {
	t := a.term
	head := fmt.Sprintf("%s   %s   %s", s.TrustDomain, term.Count(len(s.Services), "service"), orNone(s))
	t.Printf("%s   up %s\n\n", t.Paint(term.Strong, head), term.Span(s.Now.Sub(s.Since)))
	a.writeEdges(s)
	a.writeHosts(s)
	a.writeEndpoints(s)
	a.writePlaintext(s)
	if a.flags.output == "wide" {
		a.writeServices(s)
		a.writeListeners(s)
	}
	t.Printf("  services       %s\n", states(s))
	t.Printf("  certificates   %s\n", renewals(s))
	t.Printf("  audit          %s\n", auditWords(s))
	if list := needs(s); len(list) > 0 {
		a.writeNeeds(term.Count(len(list), "thing")+plural(len(list), " needs you", " need you"), list)
	}
	if list := notes(s); len(list) > 0 {
		a.writeNeeds(term.Count(len(list), "thing")+" to know", list)
	}
}

func (a *app) writeNeeds(title string, list []need) {
	t := a.term
	t.Printf("\n%s\n", t.Paint(term.Strong, title))
	for _, n := range list {
		mark := t.Mark(n.mark)
		if n.mark == term.None {
			mark = "- "
		}
		t.Printf("  %s  %s\n", mark, t.Folded(n.text, 6))
		if n.next != "" {
			t.Printf("      %s\n", t.Folded(n.next, 6))
		}
	}
}

func plural(n int, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

func orNone(s *api.Status) string {
	if s.Revision == 0 {
		return "no revision yet"
	}
	return fmt.Sprintf("revision %d, applied %s", s.Revision, term.Relative(s.Applied, s.Now))
}

// A protection is what a word of the API means to a person, the worst highest.
type protection struct {
	word  string
	mark  term.Mark
	style term.Style
	rank  int
}

var protections = map[string]protection{
	"mtls":  {"observed", term.Observe, term.Plain, 1},
	"":      {"unknown", term.Unknown, term.Dim, 2},
	"mixed": {"MIXED", term.Look, term.Warn, 3},
	"plain": {"EXPOSED", term.No, term.Bad, 4},
}

// protectionOf knows nothing of a word that it does not know, and so calls it
// unknown.
func protectionOf(word string) protection {
	if p, ok := protections[word]; ok {
		return p
	}
	return protections[""]
}

func (a *app) writeEdges(s *api.Status) {
	if len(s.Edges) == 0 {
		a.term.Printf("  No connections: the mesh file names none, and no call was seen.\n\n")
		return
	}
	edges := slices.Clone(s.Edges)
	slices.SortStableFunc(edges, func(x, y api.EdgeStatus) int {
		return cmp.Compare(protectionOf(x.Protection).rank, protectionOf(y.Protection).rank)
	})
	tab := &term.Table{Columns: []term.Column{
		{},
		{Title: "FROM", Min: 12},
		{Title: "TO", Min: 12},
		{Title: "PROTECTION"},
		{Title: "CALLS", Right: true, Drop: 3},
		{Title: "REFUSED", Right: true, Drop: 2},
		{Title: "FAILED", Right: true, Drop: 2},
		{Title: "NOTE", Min: 24, Drop: 1},
	}}
	for _, e := range edges {
		p := protectionOf(e.Protection)
		tab.Row(p.mark, from(e.From), e.To, term.Cell{Text: p.word, Style: p.style}, term.Number(e.Calls), term.Number(e.Refused), term.Number(e.Failed), edgeNote(e, s.Now))
	}
	a.term.Table(tab)
	a.term.Printf("\n  counted over the last %s\n\n", term.Span(time.Duration(s.EdgesPeriod)*time.Second))
}

func from(name string) string {
	if name == "" {
		return "(outside)"
	}
	return name
}

func edgeNote(e api.EdgeStatus, now time.Time) string {
	switch {
	case e.Calls == 0:
		return "no call seen yet"
	case !e.Declared:
		return "not in the mesh file"
	}
	return "last " + term.Relative(e.Last, now)
}

var stateMarks = map[api.State]term.Mark{api.StateOK: term.OK, api.StateWaiting: term.Unknown, api.StateFailed: term.No}

func (a *app) writeServices(s *api.Status) {
	tab := &term.Table{Columns: []term.Column{{}, {Title: "NAME"}, {Title: "IDENTITY"}, {Title: "CERTIFICATE"}, {Title: "RENEWS"}}}
	for _, v := range s.Services {
		tab.Row(stateMarks[v.State], v.Name, v.ID, ends(v.NotAfter, s.Now), term.Relative(v.RenewsAt, s.Now))
	}
	for _, v := range s.Gateways {
		tab.Row(stateMarks[v.State], v.Name, v.ID, ends(v.NotAfter, s.Now), term.Relative(v.RenewsAt, s.Now))
	}
	a.term.Table(tab)
	a.term.Printf("\n")
}

func ends(at, now time.Time) string {
	if at.IsZero() {
		return "none"
	}
	return "ends " + term.Relative(at, now)
}

// writeHosts shows the hosts of a mesh that names any.
func (a *app) writeHosts(s *api.Status) {
	if len(s.Hosts) == 0 {
		return
	}
	tab := &term.Table{Columns: []term.Column{{}, {Title: "HOST"}, {Title: "REVISION", Right: true}, {Title: "ADDRESS", Drop: 2}, {Title: "VERSION", Drop: 3}, {Title: "NOTE", Min: 24, Drop: 1}}}
	for _, h := range s.Hosts {
		note := h.Note
		if note == "" {
			note = "connected " + term.Relative(h.Since, s.Now)
		}
		tab.Row(stateMarks[h.State], h.Name, term.Number(h.Revision), h.Address, h.Version, note)
	}
	a.term.Table(tab)
	a.term.Printf("\n")
}

// writePlaintext shows who still calls without TLS where a service observes that.
func (a *app) writePlaintext(s *api.Status) {
	for _, p := range s.Plaintext {
		words := "let in until"
		if !s.Now.Before(p.Until) {
			words = "strict since"
		}
		a.term.Printf("  plaintext of %s, %s %s (%s)\n", p.Service, words, term.Stamp(p.Until), term.Relative(p.Until, s.Now))
		if len(p.Sources) == 0 {
			a.term.Printf("  nobody came without TLS so far\n\n")
			continue
		}
		tab := &term.Table{Columns: []term.Column{{}, {Title: "CALLER"}, {Title: "CALLS", Right: true}, {Title: "FIRST"}, {Title: "LAST"}, {Title: "ON HOST", Drop: 1}}}
		for _, c := range p.Sources {
			address := c.Address
			if address == "" {
				address = "(others, longer ago)"
			}
			tab.Row(term.Look, address, term.Number(c.Calls), term.Relative(c.First, s.Now), term.Relative(c.Last, s.Now), c.Host)
		}
		a.term.Table(tab)
		a.term.Printf("\n")
	}
}

// writeEndpoints shows where services are called, where that is at more than one
// place of this machine.
func (a *app) writeEndpoints(s *api.Status) {
	tab := &term.Table{Columns: []term.Column{{}, {Title: "SERVICE"}, {Title: "ENDPOINT"}, {Title: "HOST"}, {Title: "NOTE", Min: 24, Drop: 1}}}
	wanted, rows := a.flags.output == "wide" || len(s.Hosts) > 0, 0
	for _, v := range s.Services {
		for _, e := range v.Endpoints {
			mark, host, note := stateMarks[e.State], e.Host, e.Note
			if e.Host == "" {
				mark, host, note, wanted = term.None, "(listed)", "each caller finds out for itself", true
			}
			tab.Row(mark, v.Name, e.Address, host, note)
			rows++
		}
	}
	if wanted && rows > 0 {
		a.term.Table(tab)
		a.term.Printf("\n")
	}
}

func (a *app) writeListeners(s *api.Status) {
	tab := &term.Table{Columns: []term.Column{{}, {Title: "LISTENER"}, {Title: "END"}, {Title: "PROTOCOL"}, {Title: "ADDRESS"}, {Title: "LEADS TO"}}}
	if len(s.Hosts) > 0 {
		tab.Columns = append(tab.Columns, term.Column{Title: "HOST"})
	}
	for _, l := range s.Listeners {
		cells := []any{stateMarks[l.State], l.Name, l.End, l.Protocol, l.Address, l.Target}
		if len(s.Hosts) > 0 {
			cells = append(cells, l.Host)
		}
		tab.Row(cells...)
	}
	a.term.Table(tab)
	a.term.Printf("\n")
}
