// Package interop holds Parley to programs that nobody here wrote: nginx,
// PostgreSQL, curl, OpenSSL, go-spiffe. It runs only with PARLEY_INTEROP=1, and
// then a missing peer is a failure.
package interop

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// parleyBinary is the program under test, built once.
var parleyBinary string

func TestMain(m *testing.M) {
	if role := os.Getenv("PARLEY_INTEROP_ROLE"); role != "" {
		os.Exit(play(role))
	}
	if os.Getenv("PARLEY_INTEROP") != "1" {
		fmt.Println("interop: set PARLEY_INTEROP=1 to run against real peers")
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("/tmp", "pi")
	if err != nil {
		panic(err)
	}
	// Every test user has to reach the binary and the Workload API's socket.
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	parleyBinary = filepath.Join(dir, "parley")
	build := exec.Command("go", "build", "-o", parleyBinary, "../cmd/parley")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Printf("build parley: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// need is the path of a peer; that it is missing is a failure.
func need(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
		if paths, _ := filepath.Glob(name); len(paths) > 0 {
			return paths[len(paths)-1]
		}
	}
	t.Fatalf("none of %v is installed; .ci/run installs the peers", names)
	return ""
}

// A running is `parley dev` with a mesh file of the test's.
type running struct {
	t   *testing.T
	dir string
	api *api.Client
	cmd *exec.Cmd
}

// shortDir is a directory that every user may enter, with a path short enough
// for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pi")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// start runs the mesh until the test ends.
func start(t *testing.T, mesh string) *running {
	t.Helper()
	return startIn(t, shortDir(t), mesh)
}

// startIn is start with the data under dir.
func startIn(t *testing.T, dir, mesh string) *running {
	t.Helper()
	r := &running{t: t, dir: dir}
	file := filepath.Join(r.dir, "parley.yaml")
	if err := os.WriteFile(file, []byte(mesh), 0o644); err != nil {
		t.Fatal(err)
	}
	r.cmd = exec.Command(parleyBinary, "dev", "--file", file, "--dir", filepath.Join(r.dir, "data"))
	r.cmd.Env = os.Environ()
	var log strings.Builder
	r.cmd.Stdout, r.cmd.Stderr = &log, &log
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.cmd.Wait() }()
	t.Cleanup(func() {
		_ = r.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case err := <-ended:
			if err != nil && t.Failed() {
				t.Logf("parley: %v", err)
			}
		case <-time.After(20 * time.Second):
			r.cmd.Process.Kill()
			t.Error("parley did not stop")
		}
		if t.Failed() {
			t.Logf("parley said:\n%s", log.String())
		}
	})
	var err error
	if r.api, err = api.New(filepath.Join(r.dir, "data", "api.sock")); err != nil {
		t.Fatal(err)
	}
	r.until("the mesh is ready", func() bool {
		st, err := r.api.Status(context.Background())
		if err != nil || st.Revision == 0 || len(st.Listeners) == 0 {
			return false
		}
		for _, l := range st.Listeners {
			if l.State != api.StateOK {
				return false
			}
		}
		return true
	})
	return r
}

// socket is the Workload API's.
func (r *running) socket() string { return filepath.Join(r.dir, "data", "workload.sock") }

// parley runs a command against the mesh.
func (r *running) parley(args ...string) (string, error) {
	cmd := exec.Command(parleyBinary, append([]string{"--api", filepath.Join(r.dir, "data", "api.sock")}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// until polls for at most twenty seconds.
func (r *running) until(what string, done func() bool) {
	r.t.Helper()
	for range 400 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.t.Fatalf("not in 20 s: %s", what)
}

// events are those of a filter, once there are at least n.
func (r *running) events(n int, p api.ListEventsParams) (found []*audit.Event) {
	r.t.Helper()
	p.Limit = 1000
	r.until(fmt.Sprintf("%d events of %+v", n, p), func() bool {
		list, err := r.api.Events(context.Background(), p)
		if err != nil {
			return false
		}
		found = found[:0]
		for _, entry := range list.Items {
			e, err := audit.Decode(entry.Event)
			if err != nil {
				r.t.Fatal(err)
			}
			found = append(found, e)
		}
		return len(found) >= n
	})
	return found
}

// freePort is a loopback port that nobody has at the moment.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// run runs a program and fails the test where it fails.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
