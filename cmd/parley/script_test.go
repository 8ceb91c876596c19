package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/parleymesh/parley/internal/dev"
)

// TestMain makes the program itself a command of the scripts: `exec parley` is this
// test binary, running main.
func TestMain(m *testing.M) {
	if os.Getenv(dev.AppEnv) != "" { // an application of the shop, run from a copy of this binary
		main()
	}
	testscript.Main(m, map[string]func(){"parley": main})
}

// TestScript runs testdata/script/*.txt, which are also how the command's manners
// are written down.
func TestScript(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":   codeCommand,
			"socket": socketCommand,
		},
		Setup: func(env *testscript.Env) error {
			// A short directory of its own: a Unix socket's path has at most 107 bytes.
			dir, err := os.MkdirTemp("", "parley")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(dir) })
			// Under the race detector a process lingers for a second when it exits.
			env.Vars = append(env.Vars, "GORACE=atexit_sleep_ms=0")
			env.Vars = append(env.Vars, "DIR="+dir, "PARLEY_API=", "XDG_RUNTIME_DIR=", "NO_COLOR=", "FORCE_COLOR=", "LC_ALL=C")
			return nil
		},
	})
}

// codeCommand is `code N parley ...`: the command ends with exit code N. What it
// wrote is in stdout and stderr, as after exec.
func codeCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND [ARGUMENT...]")
	}
	got := 0
	err := ts.Exec(args[1], args[2:]...)
	var exit interface{ ExitCode() int }
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// socketCommand is `socket PATH`: wait until a server listens there. A script starts
// a mesh with
//
//	exec parley dev --dir $DIR --port-base -1 &mesh&
//	socket $DIR/api.sock
//
// and stops it with `kill -INT mesh` and `wait mesh`.
func socketCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: socket PATH")
	}
	path := args[0]
	if !filepath.IsAbs(path) {
		path = ts.MkAbs(path)
	}
	const patience = 20 * time.Second
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("unix", path); err == nil {
			_ = conn.Close()
			return
		}
	}
	ts.Fatalf("nothing listens on %s after %s", path, patience)
}
