package main

import (
	"log/slog"

	"github.com/spf13/pflag"

	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/node"
)

// logFlags say how a process logs.
type logFlags struct {
	format, level string
}

// textWhereWatched is what the log of a service is without --log-format.
const textWhereWatched = " (text on a terminal, otherwise json)"

// add are the flags of a process whose log has these by default; without a format it
// is text where a person sees it.
func (l *logFlags) add(f *pflag.FlagSet, format, level, otherwise string) {
	f.StringVar(&l.format, "log-format", format, "`format` of the log: text or json"+otherwise)
	f.StringVar(&l.level, "log-level", level, "`level` of the log: debug, info, warn or error")
}

// logger is the log of a process, on standard error, and what the libraries in it
// say on their own goes there too.
func (a *app) logger(help string, flags logFlags) (*slog.Logger, error) {
	format := logging.JSON
	if a.term.Watched() {
		format = logging.Text
	}
	if flags.format != "" {
		var err error
		if format, err = logging.ParseFormat(flags.format); err != nil {
			return nil, usage(help, "--log-format is text or json, not %q", flags.format)
		}
	}
	level, err := logging.ParseLevel(flags.level)
	if err != nil {
		return nil, usage(help, "--log-level is debug, info, warn or error, not %q", flags.level)
	}
	logger := logging.New(a.err, format, level, a.clock)
	node.LogTo(logger)
	return logger, nil
}
