// Package interop holds Parley to programs that nobody here wrote: nginx,
// PostgreSQL, MariaDB, curl, OpenSSL, go-spiffe, oidc-provider, ws of npm, the suites of gRPC and
// two programs of Tessera's, which are built in the module suites. It runs only with PARLEY_INTEROP=1, and then
// a missing peer is a failure.
package interop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	storetest "github.com/parleymesh/parley/internal/store/xtest"
)

// parleyBinary is the program under test, built once.
var parleyBinary string

func TestMain(m *testing.M) {
	if storetest.IsChild() { // a store of the suite's, to be killed
		os.Exit(storetest.Main(m))
	}
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
	code := storetest.Main(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// need is the path of a peer; that it is missing is a failure.
func need(t testing.TB, names ...string) string {
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

	cmd   *exec.Cmd
	ended chan error
	log   *strings.Builder // read once the process has ended
	// down are listeners that are not expected to open.
	down []string
	// flags are more of them for `parley dev`, env more of its environment.
	flags, env []string
}

// shortDir is a directory that every user may enter, with a path short enough
// for sockets.
func shortDir(t testing.TB) string {
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

// start runs the mesh until the test ends. Every listener opens but those of down.
func start(t *testing.T, mesh string, down ...string) *running {
	t.Helper()
	return startIn(t, shortDir(t), mesh, down...)
}

// startIn is start with the data under dir.
func startIn(t *testing.T, dir, mesh string, down ...string) *running {
	t.Helper()
	return (&running{t: t, dir: dir, down: down}).start(mesh)
}

// start runs what is set up so far until the test ends.
func (r *running) start(mesh string) *running {
	t := r.t
	t.Helper()
	if err := os.WriteFile(r.file(), []byte(mesh), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.api, err = api.New(filepath.Join(r.dir, "data", "api.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.api.Close)
	t.Cleanup(r.stop)
	r.launch()
	return r
}

// in is r for a subtest.
func (r *running) in(t *testing.T) *running {
	sub := *r
	sub.t = t
	return &sub
}

// file is the mesh file that the process starts with.
func (r *running) file() string { return filepath.Join(r.dir, "parley.yaml") }

// launch starts the process and waits until the mesh is ready.
func (r *running) launch() {
	r.t.Helper()
	r.cmd = exec.Command(parleyBinary, append([]string{"dev", "--file", r.file(), "--dir", filepath.Join(r.dir, "data")}, r.flags...)...)
	r.cmd.Env = append(os.Environ(), r.env...)
	r.log = &strings.Builder{}
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.ended = make(chan error, 1)
	go func(cmd *exec.Cmd, ended chan<- error) { ended <- cmd.Wait() }(r.cmd, r.ended)
	r.until("the mesh is ready", func() bool {
		select {
		case err := <-r.ended:
			r.ended <- err
			r.t.Fatalf("parley ended: %v", err)
		default:
		}
		st, err := r.api.Status(context.Background())
		if err != nil || st.Revision == 0 || len(st.Listeners) == 0 {
			return false
		}
		for _, l := range st.Listeners {
			if want := !slices.Contains(r.down, l.Name); (l.State == api.StateOK) != want {
				return false
			}
		}
		// The last thing that a start writes; the API answers before that.
		_, err = os.Stat(filepath.Join(r.dir, "data", "ca.pem"))
		return err == nil
	})
}

// stop ends the process as an operator does, which has to work.
func (r *running) stop() {
	if r.cmd == nil || r.cmd.Process == nil {
		return
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Errorf("parley ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		_ = r.cmd.Process.Kill()
		<-r.ended
		r.t.Error("parley did not stop")
	}
	if r.t.Failed() {
		r.t.Logf("parley said:\n%s", r.log.String())
	}
	r.cmd = nil // until it is launched again
}

// kill ends the process with kill -9; launch starts it again.
func (r *running) kill() {
	r.t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	<-r.ended
}

// apply brings a mesh file into force with `parley apply`.
func (r *running) apply(mesh string) {
	r.t.Helper()
	if said, err := r.tryApply(mesh); err != nil {
		r.t.Fatalf("parley apply: %v\n%s", err, said)
	}
}

// applyBut is apply of a mesh file that runs but for inbounds whose application's
// port another user has: the command says so by its exit code 3.
func (r *running) applyBut(mesh string) {
	r.t.Helper()
	said, err := r.tryApply(mesh)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(said, "error[PAR-4005]") || !strings.Contains(said, "is held by user root") {
		r.t.Fatalf("parley apply: %v\n%s", err, said)
	}
}

func (r *running) tryApply(mesh string) (said string, err error) {
	r.t.Helper()
	file := filepath.Join(r.dir, "next.yaml")
	if err := os.WriteFile(file, []byte(mesh), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return r.parley("apply", "-f", file)
}

// socket is the Workload API's.
func (r *running) socket() string { return filepath.Join(r.dir, "data", "workload.sock") }

// parley runs a command against the mesh.
func (r *running) parley(args ...string) (string, error) {
	cmd := exec.Command(parleyBinary, append([]string{"--api", filepath.Join(r.dir, "data", "api.sock")}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// until polls for twenty seconds.
func (r *running) until(what string, done func() bool) {
	r.t.Helper()
	for began := time.Now(); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			r.t.Fatalf("not in 20 s: %s", what)
		}
	}
}

// events are those of a filter, once there are at least n.
func (r *running) events(n int, p api.ListEventsParams) (found []*audit.Event) {
	r.t.Helper()
	r.until(fmt.Sprintf("%d events of %+v", n, p), func() bool {
		found = r.list(p)
		return len(found) >= n
	})
	return found
}

// list is every event of a filter.
func (r *running) list(p api.ListEventsParams) (found []*audit.Event) {
	r.t.Helper()
	for p.Limit = 1000; ; {
		page, err := r.api.Events(context.Background(), p)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, entry := range page.Items {
			e, err := audit.Decode(entry.Event)
			if err != nil {
				r.t.Fatal(err)
			}
			found = append(found, e)
		}
		if page.Next == "" {
			return found
		}
		p.Cursor = page.Next
	}
}

// both are the two events of the call with a request id, by end, once both are
// there.
func (r *running) both(id string) (outbound, inbound *audit.Event) {
	r.t.Helper()
	for _, e := range r.events(2, api.ListEventsParams{RequestID: id}) {
		switch {
		case e.Call != nil && e.Call.End == "outbound" && outbound == nil:
			outbound = e
		case e.Call != nil && e.Call.End == "inbound" && inbound == nil:
			inbound = e
		default:
			r.t.Fatalf("%s: one event too many: %+v", id, e)
		}
	}
	if outbound == nil || inbound == nil {
		r.t.Fatalf("%s: not one event at each end", id)
	}
	return outbound, inbound
}

// freePort is a loopback port that nobody has at the moment, and that no outgoing
// connection gets either: it is still free when a killed process starts again.
func freePort(t testing.TB) int {
	t.Helper()
	for range 200 {
		port := 20000 + rand.IntN(12000) // below net.ipv4.ip_local_port_range
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// run runs a program and fails the test where it fails.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
