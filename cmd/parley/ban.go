package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
)

func (a *app) banCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "ban [IDENTITY]", Short: "cut an identity off everywhere, live connections too",
		Long: `An identity is a service's name, gateway/NAME, host/NAME, or a SPIFFE ID.
Without one: who is banned. Hosts that have not confirmed are named, and the
exit code is then 1: such a host hears of it first when it comes back.`,
		Example: `  parley ban web --reason "key leaked"
  parley ban host/web1
  parley ban`,
		Args: arguments(0, 1, "one IDENTITY"),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`why`, for the record")
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		if len(args) == 0 {
			return a.listBans(cmd, c)
		}
		r, err := c.Ban(cmd.Context(), api.BanRequest{Identity: args[0], Reason: reason})
		if err != nil {
			return err
		}
		verdict := a.showBan(r, "banned")
		a.noteStranger(cmd, c, args[0])
		return verdict
	})
	return cmd
}

// noteStranger says that a name which was banned is nobody's: the one that was meant
// is still in.
func (a *app) noteStranger(cmd *cobra.Command, c *api.Client, name string) {
	if a.term.JSON() || strings.HasPrefix(name, "spiffe://") {
		return
	}
	st, err := c.Status(cmd.Context())
	if err != nil || st.Revision == 0 {
		return // the ban is what was asked for
	}
	var names []string
	for _, s := range st.Services {
		names = append(names, s.Name)
	}
	for _, g := range st.Gateways {
		names = append(names, "gateway/"+g.Name)
	}
	for _, h := range st.Hosts {
		names = append(names, "host/"+h.Name)
	}
	if slices.Contains(names, name) {
		return
	}
	a.term.Notef("\n%s  revision %d has no %s, so nobody was cut off by this\n", a.term.Mark(term.Look), st.Revision, name)
	if near := nearest(name, names); near != "" {
		a.term.Notef("    did you mean %s? parley unban %s, then parley ban %s\n", near, name, near)
	}
}

func (a *app) unbanCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unban IDENTITY", Short: "let a banned identity take part again",
		Example: "  parley unban web\n  parley unban host/web1",
		Args:    arguments(1, 1, "one IDENTITY"),
		RunE: a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
			r, err := c.Unban(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.showBan(r, "not banned any more")
		}),
	}
}

// showBan says what was done and where it is in force.
func (a *app) showBan(r *api.BanResult, done string) error {
	missing := false
	for _, h := range r.Hosts {
		missing = missing || !h.Confirmed
	}
	if a.term.JSON() {
		if err := a.term.Document("ban_result", r); err != nil {
			return err
		}
	} else {
		a.term.Printf("%s is %s.\n", r.ID, done)
		if len(r.Hosts) > 0 {
			tab := &term.Table{Columns: []term.Column{{}, {Title: "HOST"}, {Title: "IN FORCE"}, {Title: "NOTE"}}}
			for _, h := range r.Hosts {
				mark, word := term.OK, "yes"
				if !h.Confirmed {
					mark, word = term.No, "NO"
				}
				tab.Row(mark, h.Name, word, h.Note)
			}
			a.term.Printf("\n")
			a.term.Table(tab)
		}
	}
	if missing {
		return errNo
	}
	return nil
}

func (a *app) listBans(cmd *cobra.Command, c *api.Client) error {
	l, err := c.Bans(cmd.Context())
	if err != nil {
		return err
	}
	if a.term.JSON() {
		return a.term.Document("bans", l)
	}
	if len(l.Items) == 0 {
		a.term.Printf("Nobody is banned.\n")
		return nil
	}
	now := a.clock.Now()
	tab := &term.Table{Columns: []term.Column{{Title: "IDENTITY"}, {Title: "SINCE"}, {Title: "BY"}, {Title: "REASON"}}}
	for _, b := range l.Items {
		tab.Row(b.ID, term.Relative(b.Since, now), b.Actor, b.Reason)
	}
	a.term.Table(tab)
	return nil
}
