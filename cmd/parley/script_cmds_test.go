package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/parleymesh/parley/internal/control/api"
)

// The commands of the scripts that provoke something and look at what is left.

// scriptCommand is a command without a negation and with at least so many arguments.
func scriptCommand(usage string, least int, run func(ts *testscript.TestScript, args []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) < least {
			ts.Fatalf("usage: %s", usage)
		}
		run(ts, args)
	}
}

// treeCommand is `tree DIR FILE`: write every name below DIR into FILE, with its
// mode, owner and, of a file, what is in it.
func treeCommand(ts *testscript.TestScript, args []string) {
	text, err := tree(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}

func tree(root string) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path) // path is below root
		fmt.Fprintf(&b, "%s %s %d", rel, info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, fs.ErrPermission) {
				return err
			}
			fmt.Fprintf(&b, " %d %x", len(text), sha256.Sum256(text))
		}
		b.WriteByte('\n')
		return nil
	})
	return b.String(), err
}

// idleCommand is `idle DIR`: nothing runs any more that was started from a file
// below DIR.
func idleCommand(ts *testscript.TestScript, args []string) {
	root := ts.MkAbs(args[0]) + string(filepath.Separator)
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	ts.Check(err)
	for _, link := range links {
		if exe, err := os.Readlink(link); err == nil && strings.HasPrefix(exe, root) {
			ts.Fatalf("%s runs as process %s", exe, filepath.Base(filepath.Dir(link)))
		}
	}
}

// portsCommand is `ports NAME...`: set each variable to a port that nobody
// listens on.
func portsCommand(ts *testscript.TestScript, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // once all are chosen, so that they differ
		ts.Setenv(name, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
}

// occupyCommand is `occupy PORT`: listen there until the script ends.
func occupyCommand(ts *testscript.TestScript, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:"+args[0])
	ts.Check(err)
	ts.Defer(func() { _ = l.Close() })
}

// expandCommand is `expand FILE...`: replace $NAME in the files by the variables.
func expandCommand(ts *testscript.TestScript, args []string) {
	for _, name := range args {
		path := ts.MkAbs(name)
		ts.Check(os.WriteFile(path, []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
	}
}

// replaceCommand is `replace FILE OLD NEW TO`: write TO as FILE with every OLD
// made NEW; in NEW, "\xff" is that byte.
func replaceCommand(ts *testscript.TestScript, args []string) {
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	to := strings.ReplaceAll(args[2], `\xff`, "\xff")
	ts.Check(os.WriteFile(ts.MkAbs(args[3]), []byte(strings.ReplaceAll(text, args[1], to)), 0o600))
}

// damageCommand is `damage FILE HOW`: `flip OFFSET` a bit of a byte, or of the
// first byte of a text; `fill OFFSET LENGTH` with other bytes; `cut LENGTH` the
// file to it, or stretch it.
func damageCommand(ts *testscript.TestScript, args []string) {
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path)
	ts.Check(err)
	at, err := strconv.Atoi(args[2])
	if err != nil {
		at = bytes.Index(data, []byte(args[2]))
	}
	if at < 0 || args[1] != "cut" && at >= len(data) {
		ts.Fatalf("%s has no %s", args[0], args[2])
	}
	// In place, since a process may have the file mapped.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	ts.Check(err)
	defer f.Close()
	switch args[1] {
	case "flip":
		_, err = f.WriteAt([]byte{data[at] ^ 1}, int64(at))
	case "fill":
		length, aerr := strconv.Atoi(args[3])
		ts.Check(aerr)
		_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, length), int64(at))
	case "cut":
		err = f.Truncate(int64(at))
	default:
		ts.Fatalf("damage %s?", args[1])
	}
	ts.Check(err)
}

// foundCommand is `found NAME REGEXP`: what the first group of REGEXP matches in the
// last standard output is the variable NAME.
func foundCommand(ts *testscript.TestScript, args []string) {
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("nothing matches %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// sqlCommand is `sql FILE STATEMENT`: change a database that no server has open.
func sqlCommand(ts *testscript.TestScript, args []string) {
	db, err := sql.Open("sqlite", ts.MkAbs(args[0])) // the server's driver
	ts.Check(err)
	defer db.Close()
	_, err = db.Exec(args[1])
	ts.Check(err)
}

// recordedCommand is `recorded PATH ACTION N`: wait until the server that listens
// at PATH has at least N events of that action.
func recordedCommand(ts *testscript.TestScript, args []string) {
	least, err := strconv.Atoi(args[2])
	ts.Check(err)
	client, err := api.New(ts.MkAbs(args[0]))
	ts.Check(err)
	defer client.Close()
	waitFor(ts, "fewer than "+args[2]+" events "+args[1], func() bool {
		list, err := client.Events(context.Background(), api.ListEventsParams{Action: args[1], Limit: 1000})
		return err == nil && len(list.Items) >= least
	})
}
