package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/logging"
)

func (a *app) logCommand() *cobra.Command {
	return group("log", "what the processes of the mesh log", "  parley log level\n  parley log level debug --host web1 --for 10m", a.logLevelCommand())
}

func (a *app) logLevelCommand() *cobra.Command {
	r := api.LogLevelRequest{}
	var lasts time.Duration
	cmd := &cobra.Command{
		Use: "level [LEVEL]", Short: "how much they log: show it, or change it for a time",
		Long: `LEVEL is debug, info, warn or error, or default: what the process was started
with (--log-level), which is in force again once the time is over. At debug each
call is one line, with the ids by which parley audit finds it.

Without --host and --all it is the server that is changed. Who changed what is
in the audit log. Exit code 1: a process that was asked does not do so.`,
		Example: `  parley log level                          what each of them logs
  parley log level debug                    the server, for ten minutes
  parley log level debug --host web1 --for 1h
  parley log level default --all`,
		Args: arguments(0, 1, "one LEVEL"),
	}
	f := cmd.Flags()
	f.StringSliceVar(&r.Hosts, "host", nil, "the agent of this `host`; may be repeated")
	f.BoolVar(&r.All, "all", false, "the server and every agent that is connected")
	f.DurationVar(&lasts, "for", 10*time.Minute, "how `long`, from 1s to 24h")
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		return checkLevel(cmd, args, &r, lasts)
	}
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		if len(args) == 0 {
			l, err := c.LogLevels(cmd.Context())
			if err != nil {
				return err
			}
			return a.showLevels(l)
		}
		l, err := c.SetLogLevel(cmd.Context(), r)
		if err != nil {
			return err
		}
		if err := a.showLevels(l); err != nil {
			return err
		}
		for _, p := range l.Items {
			if p.Note != "" {
				return errNo
			}
		}
		return nil
	})
	return cmd
}

// checkLevel puts the arguments into r.
func checkLevel(cmd *cobra.Command, args []string, r *api.LogLevelRequest, lasts time.Duration) error {
	const help = "parley log level --help"
	if len(args) == 0 {
		for _, name := range []string{"host", "all", "for"} {
			if cmd.Flags().Changed(name) {
				return usage("parley log level debug --"+name+" ...", "--%s goes with a LEVEL", name)
			}
		}
		return nil
	}
	if r.Level = args[0]; r.Level != "default" {
		if _, err := logging.ParseLevel(r.Level); err != nil {
			return usage(help, "`%s` is no level: debug, info, warn, error or default", r.Level)
		}
	}
	switch {
	case r.All && len(r.Hosts) > 0:
		return usage(help, "--all and --host exclude each other")
	case lasts < time.Second || lasts > logging.MaxChange || lasts%time.Second != 0:
		return usage("for longer, start it with --log-level", "--for is whole seconds from 1s to 24h, not %s", lasts)
	case r.Level == "default" && cmd.Flags().Changed("for"):
		return usage(help, "default is for good, without --for")
	}
	r.Seconds = int64(lasts / time.Second)
	return nil
}

// showLevels shows what each process logs.
func (a *app) showLevels(l *api.LogLevelList) error {
	if a.term.JSON() {
		return a.term.Document("log_levels", l)
	}
	now := a.clock.Now()
	tab := &term.Table{Columns: []term.Column{{}, {Title: "PROCESS"}, {Title: "HOST"}, {Title: "LEVEL"}, {Title: "UNTIL"}, {Title: "THEN"}, {Title: "NOTE"}}}
	for _, p := range l.Items {
		mark, until, then := term.OK, "", ""
		if !p.Until.IsZero() {
			mark, until, then = term.Look, term.Relative(p.Until, now), p.Normal
		}
		if p.Note != "" {
			mark = term.No
		}
		tab.Row(mark, p.Process, p.Host, p.Level, until, then, p.Note)
	}
	a.term.Table(tab)
	return nil
}
