package interop

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
)

const doubleMesh = `
trust_domain: two.example
hosts: {a: {}, b: {}}
services:
  shopper:
    runs_on: [a]
    runs_as: {exe: %[1]s}
    calls: [{to: site, listen: "127.0.0.1:15001"}]
  site:
    runs_on: [a, b]
    runs_as: {user: root}
    balance: round_robin
    inbound:
      listen: ":9443"
      app: "127.0.0.1:8080"
      health: {http: {path: /public/healthz}, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1}
    allow: [{from: [shopper], paths: [/public/**]}]
`

// loaders is how many calls the load has under way at once.
const loaders = 4

// loadRole calls a URL until it is told to stop, and then says how that went.
func loadRole(url string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var calls, failed atomic.Int64
	var wg sync.WaitGroup
	client := &http.Client{Timeout: 10 * time.Second}
	for range loaders {
		wg.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
				calls.Add(1)
				resp, err := client.Post(url, "text/plain", strings.NewReader("x"))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				if err != nil || resp.StatusCode != http.StatusOK {
					failed.Add(1)
					fmt.Println(time.Now().Format(time.StampMilli), resp, err)
				}
			}
		})
	}
	wg.Wait()
	fmt.Printf("calls %d failed %d\n", calls.Load(), failed.Load())
	return 0
}

// load starts calls from host a; the result is how many there were and failed.
func (s *site) load() (stop func() (calls, failed int)) {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	p := &program{t: s.t, log: &bytes.Buffer{}, ended: make(chan error, 1)}
	p.cmd = inside(s.ns[0], self)
	p.cmd.Env = append(os.Environ(), "PARLEY_INTEROP_ROLE=load:http://127.0.0.1:15001/public/x")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	s.t.Cleanup(func() { p.end(syscall.SIGTERM) })
	return func() (calls, failed int) {
		p.end(syscall.SIGTERM)
		text := p.log.String()
		if _, err := fmt.Sscanf(text[strings.LastIndex("\n"+text, "\ncalls "):], "calls %d failed %d", &calls, &failed); err != nil {
			s.t.Fatalf("%v: %s", err, text)
		}
		if failed > 0 {
			s.t.Log(text)
		}
		return calls, failed
	}
}

// agentB starts the agent of host b again.
func (s *site) agentB() {
	s.agents[1] = in(s.t, s.ns[1], parleyBinary, "agent", "--dir", filepath.Join(s.dir, "b"))
}

// kill ends a program as a loss of power would.
func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
	p.ended <- nil
}

// isOn says whether site is announced on exactly these hosts.
func (s *site) isOn(hosts ...string) bool {
	st, err := s.api.Status(context.Background())
	if err != nil {
		return false
	}
	var got []string
	for _, v := range st.Services {
		for _, e := range v.Endpoints {
			if v.Name == "site" && e.State == api.StateOK {
				got = append(got, e.Host)
			}
		}
	}
	return slices.Equal(got, hosts)
}

// announced waits until site is on exactly these hosts, and agents can know.
func (s *site) announced(hosts ...string) {
	s.t.Helper()
	s.until("site is on "+strings.Join(hosts, " and "), func() bool { return s.isOn(hosts...) })
	time.Sleep(500 * time.Millisecond)
}

// wantAll is a phase of the load in which no call may fail.
func (s *site) wantAll(what string, during func()) {
	s.t.Helper()
	stop := s.load()
	during()
	if calls, failed := stop(); failed > 0 || calls < 50 {
		s.t.Errorf("%s: %d of %d calls failed", what, failed, calls)
	} else {
		s.t.Logf("%-24s %d calls, none failed", what, calls)
	}
}

// TestEndpoints runs a service on two hosts, and takes one of them away in every way
// that there is, while it is called.
func TestEndpoints(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, fmt.Sprintf(doubleMesh, self))
	serveIn(t, s.ns[0])
	app := serveIn(t, s.ns[1])
	s.announced("a", "b")
	s.wantAll("a rolling stop", func() {
		time.Sleep(time.Second)
		s.agents[1].end(syscall.SIGTERM)
		s.announced("a")
		s.agentB()
		s.announced("a", "b")
		time.Sleep(time.Second)
	})

	app.kill()
	s.announced("a")
	s.wantAll("an application is gone", func() { time.Sleep(2 * time.Second) })
	serveIn(t, s.ns[1])
	s.announced("a", "b")

	stop := s.load()
	time.Sleep(time.Second)
	s.agents[1].kill()
	s.announced("a")
	if calls, failed := stop(); failed > loaders { // those under way are never sent again
		t.Errorf("an agent was killed: %d of %d calls failed", failed, calls)
	}
	s.wantAll("an agent was killed", func() { time.Sleep(2 * time.Second) })
	s.agentB()
	s.announced("a", "b")

	// Without the server nobody withdraws anything: callers find out by themselves.
	s.server.kill()
	stop = s.load()
	time.Sleep(time.Second)
	s.agents[1].kill()
	time.Sleep(2 * time.Second)
	if calls, failed := stop(); failed > loaders {
		t.Errorf("an agent was killed without a server: %d of %d calls failed", failed, calls)
	}
	s.wantAll("without a server", func() { time.Sleep(3 * time.Second) })
	s.startServer()
	s.agentB()
	s.announced("a", "b")
	if long() {
		s.silence()
	}
}

// silence cuts host b off: the server withdraws it once it was silent for 25 seconds.
func (s *site) silence() {
	s.t.Helper()
	if out, err := exec.Command("ip", "-n", s.ns[1], "link", "set", wire, "down").CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	began := time.Now()
	for !s.isOn("a") && time.Since(began) < 40*time.Second {
		time.Sleep(100 * time.Millisecond)
	}
	took := time.Since(began)
	if took > 30*time.Second {
		s.t.Errorf("not withdrawn after %s", took)
	}
	s.t.Logf("withdrawn after %s of silence", took.Round(time.Second))
	time.Sleep(500 * time.Millisecond)
	s.wantAll("a host is silent", func() { time.Sleep(2 * time.Second) })
}
