package main

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
)

// An app is one run of the command.
type app struct {
	in       io.Reader
	out, err io.Writer
	args     []string
	getenv   func(string) string
	clock    clock.Clock
	// runDev and runDevApp are the bodies of `dev` and `dev app`.
	runDev    func(context.Context, devOptions) error
	runDevApp func(ctx context.Context, name string) error

	flags globals
	term  *term.Terminal
	// tty and width stand for a terminal of that many columns, in tests.
	tty   bool
	width int
}

// globals are the flags of every command.
type globals struct {
	api string
	// credential is the file of an administrator's certificate.
	credential string
	color      string
	output     string
	json       bool
	quiet      bool
	timeout    time.Duration
}

// execute finds the command and runs it.
func (a *app) execute(ctx context.Context, args []string) error {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	return root.ExecuteContext(ctx)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "parley",
		Short: "every call between your services encrypted, named, allowed and recorded",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return a.term.Raw([]byte(welcome))
		},
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.open() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		Version:           version().Version,
	}
	f := root.PersistentFlags()
	f.StringVar(&a.flags.api, "api", "", "`path` of the server's socket, or https://HOST:PORT (environment: PARLEY_API)")
	f.StringVar(&a.flags.credential, "credential", "", "`file` for an https server (environment: PARLEY_CREDENTIAL)")
	f.StringVar(&a.flags.color, "color", "auto", "`when` to colour: auto, always or never")
	f.StringVarP(&a.flags.output, "output", "o", "text", "`format`: text, wide or json")
	f.BoolVar(&a.flags.json, "json", false, "the answer as one JSON document, of a stream one a line; the same as -o json")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "nothing but the answer and errors")
	f.DurationVar(&a.flags.timeout, "timeout", 30*time.Second, "how `long` the server may take to answer")
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(a.help)
	root.SetHelpCommand(&cobra.Command{Use: "help [command]", Short: "what a command does", Hidden: true, RunE: func(cmd *cobra.Command, args []string) error {
		target, rest, err := cmd.Root().Find(args)
		if err != nil || len(rest) > 0 {
			return unknownCommand(cmd.Root(), strings.Join(args, " "))
		}
		return target.Help()
	}})
	root.SetVersionTemplate("parley {{.Version}}\n")
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(
		a.devCommand(), a.serverCommand(), a.agentCommand(), a.joinTokenCommand(), a.banCommand(), a.unbanCommand(), a.applyCommand(), a.configCommand(), a.statusCommand(), a.whyCommand(), a.firewallCommand(), a.verifyCommand(), a.keyCommand(),
		a.auditCommand(), a.logCommand(), a.certCommand(), a.caCommand(), a.explainCommand(), a.completionCommand(), a.versionCommand(),
	)
	return root
}

// open makes the terminal from the flags, once they are read.
func (a *app) open() error {
	switch a.flags.output {
	case "text", "wide":
	case "json":
		a.flags.json = true
	default:
		return usage("parley --help", "-o is text, wide or json, not %q", a.flags.output)
	}
	if a.flags.timeout <= 0 {
		return usage("parley --help", "--timeout is a time above 0, such as 30s")
	}
	t, err := term.New(term.Config{
		Out: a.out, Err: a.err, Getenv: a.getenv, Color: a.flags.color,
		JSON: a.flags.json, Wide: a.flags.output == "wide", Quiet: a.flags.quiet,
		Terminal: a.tty, Width: a.width,
	})
	if err != nil {
		return usage("parley --help", "%v", err)
	}
	a.term = t
	return nil
}

// fallback is a terminal for errors that came before the flags were read.
func (a *app) fallback() *term.Terminal {
	before := a.args
	if i := slices.Index(before, "--"); i >= 0 {
		before = before[:i]
	}
	asksJSON := slices.Contains(before, "--json") || slices.Contains(before, "-ojson") || slices.Contains(before, "--output=json")
	if i := slices.Index(before, "-o"); i >= 0 && i+1 < len(before) {
		asksJSON = asksJSON || before[i+1] == "json"
	}
	color := "auto"
	if slices.Contains(before, "--color=never") {
		color = "never"
	}
	t, _ := term.New(term.Config{Out: a.out, Err: a.err, Getenv: a.getenv, JSON: asksJSON, Color: color})
	return t
}

// usage is a fault of the command line; next is a command to type.
func usage(next, format string, args ...any) error {
	return fault.New(fault.Usage, next, format, args...)
}
