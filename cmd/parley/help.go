package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// welcome is what `parley` alone says, in twelve lines.
const welcome = `parley - every call between your services encrypted, named, allowed and recorded

  parley dev                     a whole mesh on this machine, to look at
  parley apply --dry-run         what your parley.yaml would change
  parley why web orders GET /    may web call orders, and by which rule

  look     status  why     verify  audit   cert    log
  change   apply   config  key     ca      ban
  run      server  agent   join-token firewall
  learn    dev     explain version completion

Each has --help with examples and --json; of an error:  parley explain PAR-1007
`

// helpWidth is the terminal that help is laid out for, in columns.
const helpWidth = 80

// help prints a command's page: examples first, exit codes last.
func (a *app) help(cmd *cobra.Command, _ []string) {
	if a.term == nil && a.open() != nil {
		a.term = a.fallback()
	}
	if !cmd.HasParent() {
		a.rootHelp(cmd)
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s - %s\n", cmd.CommandPath(), cmd.Short)
	if cmd.Long != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(cmd.Long))
	}
	section(&b, "Examples", cmd.Example)
	fmt.Fprintf(&b, "\nUsage\n  %s\n", cmd.UseLine())
	section(&b, "Commands", commandList(cmd))
	section(&b, "Flags", cmd.LocalNonPersistentFlags().FlagUsagesWrapped(helpWidth))
	section(&b, "Flags of every command", cmd.InheritedFlags().FlagUsagesWrapped(helpWidth))
	section(&b, "Exit codes", indented(exitSummary))
	_ = a.term.Raw([]byte(b.String()))
}

func (a *app) rootHelp(cmd *cobra.Command) {
	b := strings.Builder{}
	b.WriteString(welcome)
	section(&b, "Commands", commandList(cmd))
	section(&b, "Flags of every command", cmd.PersistentFlags().FlagUsagesWrapped(helpWidth))
	section(&b, "Exit codes", indented(exitSummary))
	_ = a.term.Raw([]byte(b.String()))
}

func section(b *strings.Builder, title, body string) {
	if body = strings.Trim(body, "\n"); body != "" {
		fmt.Fprintf(b, "\n%s\n%s\n", title, body)
	}
}

func indented(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }

func commandList(cmd *cobra.Command) string {
	var b strings.Builder
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			fmt.Fprintf(&b, "  %-12s %s\n", c.Name(), c.Short)
		}
	}
	return b.String()
}

// group is a command that only holds others.
func group(use, short, examples string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Example: examples, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(children...)
	return cmd
}

// arguments checks how many there are; what says in words which are wanted.
func arguments(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usage(cmd.CommandPath()+" --help", "%s wants %s", cmd.CommandPath(), what)
		}
		return nil
	}
}

// between checks a number on a flag.
func between(flag string, n, least, most int) error {
	if n < least || n > most {
		return usage("", "--%s is between %d and %d, not %d", flag, least, most, n)
	}
	return nil
}

func unknownCommand(cmd *cobra.Command, name string) error {
	hint := cmd.CommandPath() + " --help"
	var names []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	if near := nearest(name, names); near != "" {
		hint = fmt.Sprintf("there is a command with a similar name: %s %s", cmd.CommandPath(), near)
	}
	return usage(hint, "%s has no command `%s`", cmd.CommandPath(), name)
}

// flagError is an error of the flag parser in our words, with the nearest flag.
func flagError(cmd *cobra.Command, err error) error {
	hint := cmd.CommandPath() + " --help"
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &invalid):
		return usage(hint, "--%s is %s, not %q", invalid.GetFlag().Name, wanted(invalid.GetFlag()), invalid.GetValue())
	case !errors.As(err, &unknown):
		return usage(hint, "%v", err)
	}
	name := unknown.GetSpecifiedName()
	if unknown.GetSpecifiedShortnames() != "" {
		return usage(hint, "%s has no flag `-%s`", cmd.CommandPath(), name)
	}
	var names []string
	collect := func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	}
	cmd.LocalFlags().VisitAll(collect)
	cmd.InheritedFlags().VisitAll(collect)
	if near := nearest(name, names); near != "" {
		hint = fmt.Sprintf("there is a flag with a similar name: --%s", near)
	}
	return usage(hint, "%s has no flag `--%s`", cmd.CommandPath(), name)
}

// wanted says what a flag takes.
func wanted(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "int", "int64":
		return "a whole number"
	case "bool":
		return "true or false"
	case "lifetime":
		return "a time such as 12h or 30d"
	case "duration":
		return "a time such as 30s"
	}
	return "a " + f.Value.Type()
}
