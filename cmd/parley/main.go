// Command parley secures the calls between services: every call encrypted, both
// sides named, allowed by a rule, recorded and explained.
//
// This package is flags, subcommands, words for people and exit codes. What it
// knows of a mesh it asks the admin API.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/parleymesh/parley/internal/clock"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program without its process: arguments and streams in, exit code out.
func run(args []string, in io.Reader, out, errs io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks to stop, the second one ends the process.
	context.AfterFunc(ctx, stop)
	a := &app{
		in: in, out: out, err: errs, args: args,
		getenv: os.Getenv, clock: clock.System{},
		runDev: runDev, runDevApp: runDevApp,
	}
	return a.exit(ctx, a.execute(ctx, args))
}
