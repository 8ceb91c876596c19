package main

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

func (a *app) auditCommand() *cobra.Command {
	return group("audit", "the record of every call and every administrative act",
		`  parley audit tail --follow
  parley audit search --to payments --outcome denied --since 1h
  parley audit show 01K3Q8Z4M7QK2V9D3B6H8N5R1T
  parley audit verify
  parley audit prove 01K3Q8Z4M7QK2V9D3B6H8N5R1T --out call.proof
  parley audit erase --subject alice`,
		a.auditTailCommand(), a.auditSearchCommand(), a.auditShowCommand(), a.auditStatsCommand(), a.auditVerifyCommand(),
		a.auditProveCommand(), a.auditExportCommand(), a.auditKeysCommand(), a.auditEraseCommand(), a.auditSchemaCommand())
}

// eventFilter are the flags that select events.
type eventFilter struct{ from, to, action, outcome, trace, request, call, subject string }

func (f *eventFilter) add(a *app, cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.from, "from", "", "calls of this `service`")
	s.StringVar(&f.to, "to", "", "calls to this `service`")
	s.StringVar(&f.action, "action", "", "events of this `action`, such as call or config.applied")
	s.StringVar(&f.outcome, "outcome", "", "allowed, denied, success or failure")
	s.StringVar(&f.trace, "trace", "", "calls of this W3C trace `id`")
	s.StringVar(&f.request, "request", "", "calls of this request `id`")
	s.StringVar(&f.call, "call", "", "both ends of the call of this `id`")
	s.StringVar(&f.subject, "subject", "", "calls of the person that a token names `so`")
	for name, words := range map[string]cobra.CompletionFunc{
		"from": a.live(0, services), "to": a.live(0, services), "action": completed(actions()), "outcome": completed(outcomes),
	} {
		_ = cmd.RegisterFlagCompletionFunc(name, words) // fails for a flag that is not there
	}
}

func (f *eventFilter) check(cmd *cobra.Command) error {
	switch f.outcome {
	case "", "allowed", "denied", "success", "failure":
		return nil
	}
	return usage(cmd.CommandPath()+" --help", "--outcome is allowed, denied, success or failure, not %q", f.outcome)
}

func (a *app) auditTailCommand() *cobra.Command {
	var f eventFilter
	var last int
	var follow bool
	cmd := &cobra.Command{
		Use: "tail", Short: "the newest events, and with --follow each as it arrives",
		Example: "  parley audit tail -n 10\n  parley audit tail --follow --outcome denied\n  parley audit tail --follow --json | jq .data.event",
		Args:    arguments(0, 0, "no arguments"),
	}
	f.add(a, cmd)
	cmd.Flags().IntVarP(&last, "last", "n", 10, "how many of the newest come first, up to 1000")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on until Ctrl-C")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		return errors.Join(f.check(cmd), between("last", last, 0, 1000))
	}
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
		show, end := a.eventRows(follow)
		some := false
		err := c.Tail(cmd.Context(), api.TailEventsParams{
			From: f.from, To: f.to, Action: f.action, Outcome: f.outcome, TraceID: f.trace, RequestID: f.request, CallID: f.call, Subject: f.subject, Last: last, Follow: follow,
		}, func(e *api.Entry) error { some = true; return show(e) })
		if err == nil && !some {
			err = f.known(cmd.Context(), c)
		}
		if err == nil {
			end()
		}
		return err
	})
	return cmd
}

// eventRows shows events: one by one as they come, or in a table at the end, where
// there is one.
func (a *app) eventRows(follow bool) (show func(*api.Entry) error, end func()) {
	switch {
	case a.term.JSON():
		return func(e *api.Entry) error { return a.term.DocumentLine("event", e) }, func() {}
	case follow:
		rows := a.term.Stream(eventColumns)
		return func(e *api.Entry) error { rows.Row(a.eventCells(*e)...); return nil }, func() {}
	}
	tab := &term.Table{Columns: eventColumns}
	return func(e *api.Entry) error { tab.Row(a.eventCells(*e)...); return nil }, func() {
		if tab.Len() == 0 {
			a.term.Printf("No event matches.\n")
			return
		}
		a.term.Table(tab)
	}
}

func (a *app) auditSearchCommand() *cobra.Command {
	var f eventFilter
	var since, until string
	var limit int
	cmd := &cobra.Command{
		Use: "search", Short: "recorded events by who, what and when",
		Example: `  parley audit search --from web --to payments --since 1h
  parley audit search --outcome denied --limit 20
  parley audit search --since 2026-11-23T09:00:00Z --until 2026-11-23T10:00:00Z`,
		Args: arguments(0, 0, "no arguments; select with flags"),
	}
	f.add(a, cmd)
	cmd.Flags().StringVar(&since, "since", "", "not before this `time`: RFC 3339, or how long ago, such as 1h")
	cmd.Flags().StringVar(&until, "until", "", "before this `time`, as --since")
	cmd.Flags().IntVar(&limit, "limit", 50, "the newest so many, up to 1000")
	p := api.ListEventsParams{Newest: true}
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		var badSince, badUntil error
		p.Since, badSince = a.moment("since", since)
		p.Until, badUntil = a.moment("until", until)
		return errors.Join(f.check(cmd), between("limit", limit, 1, 1000), badSince, badUntil)
	}
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, _ []string) error {
		p.From, p.To, p.Action, p.Outcome, p.TraceID, p.RequestID, p.CallID, p.Subject, p.Limit = f.from, f.to, f.action, f.outcome, f.trace, f.request, f.call, f.subject, limit
		return a.search(cmd, c, p, f)
	})
	return cmd
}

func (a *app) search(cmd *cobra.Command, c *api.Client, p api.ListEventsParams, f eventFilter) error {
	list, err := c.Events(cmd.Context(), p)
	if err == nil && len(list.Items) == 0 {
		err = f.known(cmd.Context(), c)
	}
	if err != nil {
		return err
	}
	if a.term.JSON() {
		return a.term.Document("events", list)
	}
	if len(list.Items) == 0 {
		a.term.Printf("No event matches.\n")
		return nil
	}
	tab := &term.Table{Columns: eventColumns}
	for _, e := range list.Items {
		tab.Row(a.eventCells(e)...)
	}
	a.term.Table(tab)
	if len(list.Items) == p.Limit {
		a.term.Hintf("There may be more:  --limit, --since and --until choose\n")
	}
	return nil
}

// moment is a time on a flag: absolute, or how long ago.
func (a *app) moment(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := parseSpan(s); err == nil && d >= 0 {
		return a.clock.Now().Add(-d).UTC(), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, usage("write 1h or 7d, or 2026-11-23T09:00:00Z", "--%s is a time or how long ago, not %q", flag, s)
	}
	return at.UTC(), nil
}

func (a *app) auditShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "one event in full",
		Example: "  parley audit show 01K3Q8Z4M7QK2V9D3B6H8N5R1T",
		Args:    arguments(1, 1, "the ID of an event, which for a call is its decision id"),
		RunE: a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
			e, err := c.Event(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.term.JSON() {
				return a.term.Document("event", e)
			}
			return a.writeEvent(e)
		}),
	}
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var f offlineFlags
	cmd := &cobra.Command{
		Use: "verify [PATH]", Short: "recompute every hash; exit 1 if a log is not intact",
		Long: `Without PATH the server recomputes all its logs: every entry, every hash of
the trees, every signed checkpoint. PATH is a proof (parley audit prove), an
export or a directory of exports (parley audit export): it is verified here,
with nothing but the keys that are given.`,
		Example: "  parley audit verify\n  parley audit verify evidence/ --key log.keys --pin yesterday.checkpoint\n  parley audit verify call.proof --key log.keys --json",
		Args:    arguments(0, 1, "a proof or an export, or nothing for the server's logs"),
	}
	f.add(cmd)
	cmd.PreRunE = func(_ *cobra.Command, args []string) error { return f.check(args) }
	online := a.ask(a.verifyOnline)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return a.verifyOffline(cmd.Context(), args[0], f)
		}
		return online(cmd, args)
	}
	return cmd
}

func (a *app) verifyOnline(cmd *cobra.Command, c *api.Client, _ []string) error {
	stop := a.term.Progress(cmd.Context(), a.clock, "recomputing every hash")
	v, err := c.Verify(cmd.Context())
	stop()
	if err != nil {
		return err
	}
	if a.term.JSON() {
		err = a.term.Document("verification", v)
	} else {
		a.writeVerification(v)
	}
	if err == nil && !v.Intact {
		return errNo
	}
	return err
}

func (a *app) writeVerification(v *api.Verification) {
	tab := &term.Table{Columns: []term.Column{
		{}, {Title: "LOG", Min: 12}, {Title: "ENTRIES", Right: true}, {Title: "LAST", Drop: 1}, {Title: "ROOT", Min: 20, Drop: 2}, {Title: "STATE"},
	}}
	broken := 0
	var entries, pruned int64
	for _, l := range v.Logs {
		entries += l.Size
		pruned += l.Pruned
		mark, state := term.OK, term.Cell{Text: "intact"}
		switch {
		case l.Fault != "":
			mark, state = term.No, term.Cell{Text: "BROKEN", Style: term.Bad}
			broken++
		case l.Contradiction != "":
			mark, state = term.No, term.Cell{Text: "CONTRADICTED", Style: term.Bad}
			broken++
		}
		tab.Row(mark, l.Log, term.Number(l.Size), term.Stamp(l.Last), l.Root, state)
	}
	a.term.Table(tab)
	if v.Intact {
		a.term.Printf("\nintact: %s, every hash recomputed\n", plural(int(entries), "1 entry", term.Number(entries)+" entries"))
		if pruned > 0 {
			a.term.Printf("%s pruned: of those the hash is there, and proves what follows and what was exported\n",
				plural(int(pruned), "1 is", term.Number(pruned)+" are"))
		}
		return
	}
	a.term.Printf("\n%s  %s of %d\n", a.term.Paint(term.Bad, "NOT INTACT"), term.Count(broken, "log"), len(v.Logs))
	for _, l := range v.Logs {
		if l.Fault != "" {
			a.term.Printf("  %s  %s   %s%s\n", a.term.Mark(term.No), l.Log, l.Fault, when(l))
		}
		if l.Contradiction != "" {
			a.term.Printf("  %s  %s   %s\n", a.term.Mark(term.No), l.Log, l.Contradiction)
		}
	}
	a.term.Printf("Keep the data as it is, and read on:  parley explain PAR-3006\n")
}

// when is between which events a fault is, as far as that is known.
func when(l api.LogReport) string {
	switch {
	case !l.After.IsZero() && !l.Before.IsZero():
		return " (between " + term.Stamp(l.After) + " and " + term.Stamp(l.Before) + ")"
	case !l.After.IsZero():
		return " (after " + term.Stamp(l.After) + ")"
	case !l.Before.IsZero():
		return " (before " + term.Stamp(l.Before) + ")"
	}
	return ""
}

func (a *app) auditSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "the JSON Schema of an event; offline",
		Example: "  parley audit schema > audit-event.v1.schema.json",
		Args:    arguments(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if a.term.JSON() {
				return a.term.Document("schema", json.RawMessage(audit.JSONSchema()))
			}
			return a.term.Raw(audit.JSONSchema())
		},
	}
}
