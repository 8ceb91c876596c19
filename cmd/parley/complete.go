package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// completionTime is how long a shell may wait for the server's words.
const completionTime = time.Second

var outcomes = []string{string(audit.Allowed), string(audit.Denied), string(audit.Success), string(audit.Failure)}

func actions() (out []string) {
	for _, a := range audit.Actions() {
		out = append(out, string(a))
	}
	return out
}

// completed are fixed words for a flag.
func completed(words []string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// live completes up to most arguments, or the value of a flag where most is 0, with
// words of the running mesh; none where no server answers soon.
func (a *app) live(most int, words func(context.Context, *api.Client) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		c.Timeout = completionTime
		return words(cmd.Context(), c), cobra.ShellCompDirectiveNoFileComp
	}
}

// services are the names of the mesh's services and gateways.
func services(ctx context.Context, c *api.Client) (out []string) {
	st, err := c.Status(ctx)
	if err != nil {
		return nil
	}
	for _, s := range st.Services {
		out = append(out, s.Name)
	}
	for _, g := range st.Gateways {
		out = append(out, "gateway/"+g.Name)
	}
	return out
}

// liveKeys are the ids of API keys that may be revoked, each with its name.
func liveKeys(ctx context.Context, c *api.Client) (out []string) {
	list, err := c.Keys(ctx, api.ListKeysParams{Limit: 1000})
	if err != nil {
		return nil
	}
	for _, k := range list.Items {
		if k.Revoked.IsZero() {
			out = append(out, cobra.CompletionWithDesc(k.ID, k.Name))
		}
	}
	return out
}

// revisionNumbers are the newest revisions, each with its file.
func revisionNumbers(ctx context.Context, c *api.Client) (out []string) {
	list, err := c.Revisions(ctx, api.ListRevisionsParams{Limit: 100})
	if err != nil {
		return nil
	}
	for _, r := range list.Items {
		out = append(out, cobra.CompletionWithDesc(decimal(r.Number), local(r.Name)))
	}
	return out
}

// known says that a filter of events names what there is, where nothing matched it:
// an answer of none must not come of a slip of the pen. Names of services that are
// gone match their events.
func (f *eventFilter) known(ctx context.Context, c *api.Client) error {
	if f.action != "" && !slices.Contains(actions(), f.action) {
		return usage(similar("action", f.action, actions()), "there is no action `%s`, and no event of one", f.action)
	}
	names := services(ctx, c)
	for _, name := range []string{f.from, f.to} {
		if name != "" && len(names) > 0 && !slices.Contains(names, name) {
			return usage(similar("service", name, names), "there is no service or gateway `%s`, and no event of one", name)
		}
	}
	return nil
}

// similar is a hint with the nearest word, or with all of them.
func similar(kind, word string, words []string) string {
	if near := nearest(word, words); near != "" {
		return "there is one with a similar name: " + near
	}
	return "the " + kind + "s are " + strings.Join(words[:min(len(words), 20)], ", ")
}
