package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/mesh"
)

// maxPages bounds how many pages a list command reads.
const maxPages = 1000

func (a *app) keyCommand() *cobra.Command {
	return group("key", "API keys for the gateway: make, list, revoke",
		`  parley key create ci --scope orders.read --expires 30d
  parley key list
  parley key revoke 4kZ9aQx3B0gT`,
		a.keyCreateCommand(), a.keyListCommand(), a.keyRevokeCommand())
}

func (a *app) keyCreateCommand() *cobra.Command {
	var scopes []string
	var expires lifetime
	cmd := &cobra.Command{
		Use: "create NAME", Short: "make an API key; it is shown this once",
		Long: "Standard output is the key and nothing else, so that a script can take it.",
		Example: `  parley key create ci --scope orders.read,orders.write
  parley key create ci --scope orders.read --expires 30d
  KEY=$(parley key create ci --scope orders.read --quiet)`,
		Args: arguments(1, 1, "a NAME: a label for people"),
	}
	cmd.Flags().StringSliceVar(&scopes, "scope", nil, "`scopes` that the key carries, separated by commas")
	cmd.Flags().Var(&expires, "expires", "how `long` it is good, such as 30d or 12h; 0 is without end")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if expires < 0 || time.Duration(expires)%time.Second != 0 {
			return usage("parley key create --help", "--expires is whole seconds from 0, not %s", &expires)
		}
		return nil
	}
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		k, err := c.CreateKey(cmd.Context(), api.KeyRequest{Name: args[0], Scopes: scopes, ExpiresIn: int64(time.Duration(expires) / time.Second)})
		if err != nil {
			return err
		}
		if a.term.JSON() {
			return errors.Join(a.term.Document("new_key", k), notEverywhere(k, true))
		}
		a.term.Printf("%s\n", k.Secret)
		a.term.Notef("\nkey %s \"%s\", scopes %s, %s\nThis is the only time that it is shown; Parley keeps a digest.\n",
			k.Key.ID, k.Key.Name, orNoneWord(k.Key.Scopes), keyEnd(k.Key, a.clock.Now()))
		a.term.Hintf("Send it as X-API-Key, or as Authorization: Bearer. Revoke it:  parley key revoke %s\n", k.Key.ID)
		a.noteScopes(cmd.Context(), c, k.Key.Scopes)
		return notEverywhere(k, false)
	})
	return cmd
}

// notEverywhere is what a key that was made leaves to say: where the answer told
// it, only by the exit code.
func notEverywhere(k *api.NewKey, told bool) error {
	switch {
	case k.Fault.Code == "":
		return nil
	case told:
		return said{k.Fault.Fault()}
	}
	return k.Fault.Fault()
}

// noteScopes says which scopes open nothing: most are mistyped.
func (a *app) noteScopes(ctx context.Context, c *api.Client, scopes []string) {
	head, err := c.Revision(ctx, 0)
	if err != nil {
		return // the key is made, and this was only advice
	}
	file, err := mesh.Parse(head.Name, []byte(head.Text))
	if err != nil {
		return
	}
	var wanted []string
	for _, g := range file.Gateways {
		for _, r := range g.Routes {
			for _, way := range r.Require.Any {
				if way.APIKey != nil {
					wanted = append(wanted, way.APIKey.Scopes...)
				}
			}
		}
	}
	for _, scope := range scopes {
		if slices.Contains(wanted, scope) {
			continue
		}
		near := ""
		if n := nearest(scope, wanted); n != "" {
			near = "; there is one with a similar name: " + n
		}
		a.term.Notef("No route of revision %d wants the scope %s%s.\n", head.Number, scope, near)
	}
}

// A lifetime is a length of time on a flag, in days too.
type lifetime time.Duration

// String implements pflag.Value.
func (l *lifetime) String() string { return time.Duration(*l).String() }

// Set implements pflag.Value.
func (l *lifetime) Set(s string) error {
	d, err := parseSpan(s)
	*l = lifetime(d)
	return err
}

// Type implements pflag.Value.
func (*lifetime) Type() string { return "lifetime" }

// parseSpan is a length of time as Go writes it, or whole days as Parley does: 30d.
func parseSpan(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

func orNoneWord(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ",")
}

func keyEnd(k api.Key, now time.Time) string {
	if k.NotAfter.IsZero() {
		return "without end"
	}
	if k.NotAfter.Before(now) {
		return "ended " + term.Relative(k.NotAfter, now)
	}
	return "ends " + term.Relative(k.NotAfter, now)
}

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "the API keys, revoked ones too",
		Example: "  parley key list\n  parley key list --json",
		Args:    arguments(0, 0, "no arguments"),
		RunE: a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
			keys, err := pages(func(cursor string) ([]api.Key, string, error) {
				l, err := c.Keys(cmd.Context(), api.ListKeysParams{Cursor: cursor, Limit: 1000})
				if err != nil {
					return nil, "", err
				}
				return l.Items, l.Next, nil
			})
			if err != nil {
				return err
			}
			if a.term.JSON() {
				return a.term.Document("keys", api.KeyList{Items: keys})
			}
			a.writeKeys(keys)
			return nil
		}),
	}
}

func (a *app) writeKeys(keys []api.Key) {
	if len(keys) == 0 {
		a.term.Printf("No API keys yet.\n")
		a.term.Hintf("Make one:  parley key create NAME --scope SCOPE\n")
		return
	}
	now := a.clock.Now()
	tab := &term.Table{Columns: []term.Column{{}, {Title: "ID"}, {Title: "NAME", Min: 10}, {Title: "SCOPES", Min: 12, Drop: 2}, {Title: "CREATED", Drop: 1}, {Title: "STATE"}}}
	for _, k := range keys {
		mark, state := term.OK, "live, "+keyEnd(k, now)
		switch {
		case !k.Revoked.IsZero():
			mark, state = term.No, "revoked "+term.Relative(k.Revoked, now)
		case !k.NotAfter.IsZero() && k.NotAfter.Before(now):
			mark, state = term.No, keyEnd(k, now)
		}
		tab.Row(mark, k.ID, k.Name, orNoneWord(k.Scopes), term.Relative(k.Created, now), state)
	}
	a.term.Table(tab)
}

func (a *app) keyRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "revoke an API key, now and for good",
		Example: "  parley key list\n  parley key revoke 4kZ9aQx3B0gT",
		Args:    arguments(1, 1, "an ID; list them with parley key list"), ValidArgsFunction: a.live(1, liveKeys),
		RunE: a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
			if err := c.RevokeKey(cmd.Context(), args[0]); err != nil {
				return err
			}
			if a.term.JSON() {
				return a.term.Document("revoked_key", map[string]string{"id": args[0]})
			}
			a.term.Printf("%s  key %s is revoked: no gateway accepts it any more\n", a.term.Mark(term.OK), args[0])
			return nil
		}),
	}
}

// pages reads a list to its end.
func pages[T any](page func(cursor string) ([]T, string, error)) ([]T, error) {
	all := []T{}
	cursor := ""
	for range maxPages {
		items, next, err := page(cursor)
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
		if next == "" || next == cursor {
			break
		}
		cursor = next
	}
	return all, nil
}
