package main

import (
	"bytes"
	"io"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
)

// TestManners goes through every command: what its help has, that it fits a
// terminal of 80 columns, and that an unknown flag is input that is wrong.
func TestManners(t *testing.T) {
	t.Parallel()
	found := 0
	each(newApp(&bytes.Buffer{}, &bytes.Buffer{}).root(), func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		found++
		args := strings.Fields(cmd.CommandPath())[1:]
		out, errs, code := call(t, append(args, "--help")...)
		if code != exitDone || errs != "" {
			t.Errorf("%s --help: exit code %d\n%s", cmd.CommandPath(), code, errs)
		}
		for _, want := range []string{"\nUsage\n  " + cmd.CommandPath(), "\nExamples\n  ", "\nExit codes\n  0  "} {
			if cmd.HasParent() && !strings.Contains(out, want) {
				t.Errorf("%s --help has no %q", cmd.CommandPath(), want)
			}
		}
		for line := range strings.Lines(out) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > helpWidth {
				t.Errorf("%s --help: %d columns: %s", cmd.CommandPath(), n, line)
			}
		}
		if out, errs, code = call(t, append(args, "--frobnicate")...); code != exitInput || out != "" || !strings.Contains(errs, "\nhint: ") {
			t.Errorf("%s --frobnicate: exit code %d\n%s%s", cmd.CommandPath(), code, out, errs)
		}
	})
	if found < 25 {
		t.Errorf("%d commands", found)
	}
}

func each(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		each(c, f)
	}
}

// An answer that could not be written is none, and the exit code says so.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"explain", "explain PAR-1007", "explain --json", "version", "version --json", "help dev"} {
		var errs bytes.Buffer
		a := newApp(fullDisk{}, &errs, strings.Fields(args)...)
		code := a.exit(t.Context(), a.execute(t.Context(), a.args))
		if code != exitFailed || !strings.Contains(errs.String(), "no space left on device") && !strings.Contains(args, "--json") {
			t.Errorf("%s: exit code %d\n%s", args, code, &errs)
		}
	}
}

func TestServerOfAnotherVersion(t *testing.T) {
	t.Parallel()
	mine := version()
	w := mine.wire()
	if !mine.is(&w) {
		t.Errorf("%+v is not %+v", mine, w)
	}
	for _, other := range []api.Version{{Version: "v9.9.9", Commit: mine.Commit}, {Version: mine.Version, Commit: "another"}} {
		if mine.is(&other) {
			t.Errorf("%+v is %+v", mine, other)
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func newApp(out, errs io.Writer, args ...string) *app {
	return &app{in: &bytes.Buffer{}, out: out, err: errs, args: args, getenv: func(string) string { return "" }, clock: clock.System{}}
}

// call runs the command and returns what it wrote and its exit code.
func call(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	a := newApp(&o, &e, args...)
	code = a.exit(t.Context(), a.execute(t.Context(), args))
	return o.String(), e.String(), code
}
