package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/parleymesh/parley/internal/control/api"
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
			"runs":   runsCommand,

			"damage":   scriptCommand("damage FILE HOW OFFSET [LENGTH]", 3, damageCommand),
			"expand":   scriptCommand("expand FILE...", 1, expandCommand),
			"found":    scriptCommand("found NAME REGEXP", 2, foundCommand),
			"idle":     scriptCommand("idle DIR", 1, idleCommand),
			"occupy":   scriptCommand("occupy PORT", 1, occupyCommand),
			"ports":    scriptCommand("ports NAME...", 1, portsCommand),
			"recorded": scriptCommand("recorded PATH ACTION N", 3, recordedCommand),
			"replace":  scriptCommand("replace FILE OLD NEW TO", 4, replaceCommand),
			"sql":      scriptCommand("sql FILE STATEMENT", 2, sqlCommand),
			"tree":     scriptCommand("tree DIR FILE", 2, treeCommand),
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

// patience is how long a script waits for a mesh.
const patience = 20 * time.Second

// socketCommand is `socket PATH`: wait until a server listens there. A script starts
// a mesh with
//
//	exec parley dev --dir $DIR --port-base -1 &mesh&
//	runs $DIR/api.sock
//
// and stops it with `kill -INT mesh` and `wait mesh`.
func socketCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: socket PATH")
	}
	waitFor(ts, "nothing listens on "+args[0], func() bool {
		conn, err := net.Dial("unix", ts.MkAbs(args[0]))
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

// runsCommand is `runs PATH`: wait until the newest revision of the mesh that
// listens there runs in full, with a certificate for everybody and every listener
// open, and `parley dev` has written down its root; a script that starts it a second
// time removes that file before.
func runsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: runs PATH")
	}
	client, err := api.New(ts.MkAbs(args[0]))
	ts.Check(err)
	defer client.Close()
	waitFor(ts, "no revision runs in full behind "+args[0], func() bool {
		if _, err := os.Stat(filepath.Join(filepath.Dir(ts.MkAbs(args[0])), "ca.pem")); err != nil {
			return false
		}
		s, err := client.Status(context.Background())
		return err == nil && complete(s)
	})
}

// complete says whether everything of a status is as it should be, but for the
// applications, which the scripts have none of.
func complete(s *api.Status) bool {
	for _, v := range s.Services {
		if v.Serial == "" {
			return false
		}
	}
	for _, v := range s.Gateways {
		if v.State != api.StateOK {
			return false
		}
	}
	for _, l := range s.Listeners {
		if l.State != api.StateOK {
			return false
		}
	}
	return s.Revision > 0 && !slices.ContainsFunc(s.Findings, func(f api.Finding) bool { return f.Code == "revision_not_running" })
}

func waitFor(ts *testscript.TestScript, otherwise string, done func() bool) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if done() {
			return
		}
	}
	ts.Fatalf("%s after %s", otherwise, patience)
}
