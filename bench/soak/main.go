// Command soak drives one mesh for a long time at a fixed rate and then holds
// every single call against the audit log: no failed request, one event at each
// end, and no growth of the process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
)

type options struct {
	parley, dir string
	duration    time.Duration
	rate, conns int
	leafTTL     time.Duration
	samples     string
}

func main() {
	var o options
	flag.StringVar(&o.parley, "parley", "", "the parley binary")
	flag.StringVar(&o.dir, "dir", "", "an empty data directory")
	flag.DurationVar(&o.duration, "duration", 10*time.Minute, "how long")
	flag.IntVar(&o.rate, "rate", 300, "requests a second")
	flag.IntVar(&o.conns, "conns", 16, "connections")
	flag.DurationVar(&o.leafTTL, "leaf-ttl", time.Minute, "life of a certificate; it is renewed at half of it")
	flag.StringVar(&o.samples, "samples", "", "write every sample of the process's memory to this file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// run starts the mesh, loads it, and judges.
func run(ctx context.Context, o options) error {
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(echo), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(app) }() // ends with Close
	defer server.Close()

	m, err := startMesh(ctx, o, app.Addr().String())
	if err != nil {
		return err
	}
	defer m.stop()
	began := time.Now()
	samples := make(chan []sample, 1)
	sampling, endSampling := context.WithCancel(ctx)
	defer endSampling()
	go func() { samples <- m.watch(sampling) }()
	done := load(ctx, o, m.outbound)
	endSampling()
	done.print()
	problem := judgeMemory(<-samples, o)
	if len(done.failures) > 0 {
		problem = errors.Join(problem, fmt.Errorf("%d requests failed", len(done.failures)))
	}
	problem = errors.Join(problem, m.judgeRenewals(ctx, o, began))
	return errors.Join(problem, m.judgeEvents(ctx, done.sent, began))
}

// echo answers with what it got, as an application would.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	fmt.Fprintf(w, "hello %s\n", r.Header.Get("X-Request-Id"))
}

// A meshRun is `parley dev` with a mesh file of two services.
type meshRun struct {
	cmd      *exec.Cmd
	api      *api.Client
	outbound string
	metrics  string
}

const meshText = `trust_domain: soak.example
leaf_ttl: %s
services:
  client:
    runs_as: {exe: %s}
    calls: [{to: server, listen: %q}]
  server:
    runs_as: {exe: /nonexistent/server}
    inbound: {listen: %q, app: %q}
    allow:
      - {from: [client], methods: [POST], paths: [/soak/**]}
`

func startMesh(ctx context.Context, o options, app string) (*meshRun, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var ports [3]string
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	m := &meshRun{outbound: ports[0], metrics: ports[2]}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(o.dir, "parley.yaml")
	text := fmt.Sprintf(meshText, o.leafTTL, self, ports[0], ports[1], app)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	m.cmd = exec.Command(o.parley, "dev", "--file", file, "--dir", o.dir, "--metrics", m.metrics)
	m.cmd.Stderr = os.Stderr
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	if m.api, err = api.New(filepath.Join(o.dir, "api.sock")); err != nil {
		m.stop()
		return nil, err
	}
	for range 200 {
		if st, err := m.api.Status(ctx); err == nil && ready(st) {
			return m, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	m.stop()
	return nil, errors.New("the mesh did not get ready in 10 s")
}

func ready(st *api.Status) bool {
	for _, l := range st.Listeners {
		if l.State != api.StateOK {
			return false
		}
	}
	return st.Revision > 0 && len(st.Listeners) == 2
}

func (m *meshRun) stop() {
	_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	_ = m.cmd.Wait()
}

// freePort is an address on loopback that nobody has, below the ports that the
// system gives to outgoing connections.
func freePort() (string, error) {
	var err error
	for range 200 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", err
}
