package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/dev"
	"github.com/parleymesh/parley/internal/node"
)

// What the scripts cannot provoke: a clock that is wrong, and files that a user who
// is not root may not read.

const smallMesh = `trust_domain: refuse.example
outbound_ports: %d
services:
  web:
    runs_as: {user: 0}
    inbound: {listen: "127.0.0.1:%d", app: "127.0.0.1:9"}
`

// stoppedMesh is a data directory and a mesh file of a mesh that ran and ended.
func stoppedMesh(t *testing.T) (dir, file string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file = filepath.Join(dir, "mesh.yaml")
	text := fmt.Sprintf(smallMesh, freePort(t), freePort(t))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m, err := dev.Start(t.Context(), dev.Config{
		Self: self, Dir: dir, MeshName: file, MeshText: text, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir, file
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestWrongClock(t *testing.T) {
	t.Parallel()
	const stamp = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`
	for name, tt := range map[string]struct {
		offset time.Duration
		code   int
		want   string
	}{
		"ten minutes behind": {
			-10 * time.Minute, exitFailed,
			`^error\[PAR-2004\]: the clock says ` + stamp + `, and the newest record in \S+/parley.db is of ` + stamp + `\nhint: set this machine's clock \(timedatectl status\), then start again\n$`,
		},
		"back in 1970": {-time.Since(time.Unix(0, 0)) + time.Hour, exitFailed, `^error\[PAR-2004\]: the clock says 1970-`},
		"after the root's end": {
			11 * 365 * 24 * time.Hour, exitNo,
			"^error\\[PAR-2005\\]: a signing certificate of refuse.example in \\S+/ca ended at " + stamp + "\nhint: compare `date -u` with a clock that you trust",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, file := stoppedMesh(t)
			before, err := tree(dir)
			if err != nil {
				t.Fatal(err)
			}
			code, errs := runShifted(t, dir, file, tt.offset)
			if code != tt.code || !regexp.MustCompile(tt.want).MatchString(errs) {
				t.Errorf("exit code %d, want %d, with an error like %s\n%s", code, tt.code, tt.want, errs)
			}
			after, err := tree(dir)
			if diff := cmp.Diff(before, after); diff != "" || err != nil {
				t.Errorf("%v; the refused start changed %s", err, diff)
			}
		})
	}
}

// A clock that was set back a little is every day's.
func TestClockThatIsALittleBehind(t *testing.T) {
	t.Parallel()
	dir, file := stoppedMesh(t)
	if code, errs := runShifted(t, dir, file, -10*time.Second); code != exitDone || errs != "" {
		t.Errorf("exit code %d\n%s", code, errs)
	}
}

// runShifted runs `parley dev` on a clock that is wrong by offset, stops it as soon
// as it runs, and returns its exit code and what it said besides its notes.
func runShifted(t *testing.T, dir, file string, offset time.Duration) (code int, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var text bytes.Buffer
	out := writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
	terminal, err := term.New(term.Config{Out: out, Err: &text, Getenv: func(string) string { return "" }, Quiet: true})
	if err != nil {
		t.Fatal(err)
	}
	a := &app{term: terminal, clock: clock.System{}}
	err = runDev(ctx, devOptions{Logger: slog.New(slog.DiscardHandler), Dir: dir, MeshFile: file, Terminal: terminal, debug: dev.Debug{
		Node: func(c *node.Config) { c.Clock = clock.Shifted{Base: clock.System{}, Offset: offset} },
	}})
	return a.exit(ctx, err), text.String()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestUnreadable takes files of a data directory away from the user that runs
// `parley dev` on it, who is never root here: nobody keeps root from reading.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"master.key":                         `error\[PAR-2001\]: the key file DIR/master.key cannot be read: permission denied\nhint: chown \d+ DIR/master.key && chmod 600 DIR/master.key\n`,
		"ca/jwt.key":                         `error\[PAR-2001\]: the key file DIR/ca/jwt.key cannot be read: permission denied\nhint: chown \d+ `,
		"ca/intermediate.sealed":             `error\[PAR-2001\]: the key file DIR/ca/intermediate.sealed cannot be read: permission denied\n`,
		"ca/root.pem":                        `error\[PAR-2001\]: the root certificate DIR/ca/root.pem cannot be read: permission denied\nhint: ls -l DIR/ca/root.pem\n`,
		"ca":                                 `error\[PAR-2001\]: the authority's folder DIR/ca cannot be opened: permission denied\nhint: ls -ld DIR DIR/ca\n`,
		"parley.db":                          `error\[PAR-3003\]: the database DIR/parley.db cannot be written: permission denied\nhint: ls -ld DIR DIR/parley.db: `,
		"agent/log/00000000000000000000.seg": `error\[PAR-3009\]: the audit log file DIR/agent/log/0+\.seg cannot be used: permission denied\nhint: ls -l DIR/agent/log: `,
		"mesh.yaml":                          `error\[PAR-1010\]: cannot read DIR/mesh.yaml: permission denied\nhint: ls -l DIR/mesh.yaml\n`,
		".":                                  `error\[PAR-3003\]: the database DIR/parley.db cannot be written: attempt to write a readonly database .*\nhint: ls -ld DIR DIR/parley.db: `,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, file := stoppedMesh(t)
			uid := giveAway(t, dir)
			mode := os.FileMode(0)
			if name == "." {
				mode = 0o500 // a directory that may be read and not written
			}
			if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
				t.Fatal(err)
			}
			before, err := tree(dir)
			if err != nil && os.Geteuid() == 0 {
				t.Fatal(err)
			}
			code, errs := runAs(t, uid, "dev", "--quiet", "--dir", dir, "-f", file)
			pattern := "^" + regexp.MustCompile("DIR").ReplaceAllLiteralString(want, regexp.QuoteMeta(dir))
			wantCode := exitFailed
			if name == "mesh.yaml" {
				wantCode = exitInput
			}
			if code != wantCode || !regexp.MustCompile(pattern).MatchString(errs) {
				t.Errorf("exit code %d, want %d, with an error like %s\n%s", code, wantCode, pattern, errs)
			}
			after, _ := tree(dir) // as far as before
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("the refused start changed %s", diff)
			}
		})
	}
}

// nobody is a user that owns nothing else.
const nobody = 65534

// giveAway makes everything below dir nobody's where we are root, and returns who
// its user is then.
func giveAway(t *testing.T, dir string) (uid int) {
	t.Helper()
	if os.Geteuid() != 0 {
		return os.Geteuid()
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
	if err != nil {
		t.Fatal(err)
	}
	return nobody
}

// runAs runs the program as another user and returns its exit code and standard error.
func runAs(t *testing.T, uid int, args ...string) (code int, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t), args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
	var text bytes.Buffer
	cmd.Stderr = &text
	if os.Geteuid() != uid {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), text.String()
}

// program is this test binary under the name by which it is the command, where
// every user may run it.
func program(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "parley")
	if err := errors.Join(os.Chmod(dir, 0o755), copyTo(path, self)); err != nil {
		t.Fatal(err)
	}
	return path
}

// copyTo links where it can: the binary is large.
func copyTo(to, from string) error {
	if os.Link(from, to) == nil {
		return os.Chmod(to, 0o755)
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
