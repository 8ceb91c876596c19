package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/fault"
)

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "explain [CODE]", Short: "what an error code or a reason means, and what to do; offline",
		Example: "  parley explain PAR-1007\n  parley explain caller_not_allowed\n  parley explain                the list",
		Args:    arguments(0, 1, "a CODE such as PAR-1007, or nothing for the list"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return fault.Pages(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.listPages()
			}
			code := pageName(args[0])
			page, ok := fault.Page(code)
			if !ok {
				hint := "parley explain"
				if near := nearest(code, fault.Pages()); near != "" {
					hint = "there is a page with a similar name: parley explain " + near
				}
				return usage(hint, "there is no page about `%s`", args[0])
			}
			if a.term.JSON() {
				return a.term.Document("explanation_page", pageDocument{Code: code, Title: fault.Title(code), Text: page})
			}
			return a.term.Raw([]byte(page))
		},
	}
}

type pageDocument struct {
	Code  string `json:"code"`
	Title string `json:"title"`
	Text  string `json:"text,omitempty"`
}

// pageName forgives what is easily mistyped: par-1007, 1007, CALLER_NOT_ALLOWED.
func pageName(s string) string {
	s = strings.TrimSpace(s)
	if len(s) == 4 && strings.Trim(s, "0123456789") == "" {
		return "PAR-" + s
	}
	if strings.HasPrefix(strings.ToUpper(s), "PAR-") {
		return strings.ToUpper(s)
	}
	return strings.ToLower(s)
}

func (a *app) listPages() error {
	if a.term.JSON() {
		items := []pageDocument{}
		for _, code := range fault.Pages() {
			items = append(items, pageDocument{Code: code, Title: fault.Title(code)})
		}
		return a.term.Document("explanation_pages", map[string]any{"items": items})
	}
	tab := &term.Table{Columns: []term.Column{{Title: "CODE"}, {Title: "MEANING", Min: 20}}}
	for _, code := range fault.Pages() {
		tab.Row(code, fault.Title(code))
	}
	a.term.Table(tab)
	return nil
}
