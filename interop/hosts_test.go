package interop

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
)

// The two hosts of a test, each a network namespace with an address on one link.
const (
	hostA, hostB = "10.77.0.1", "10.77.0.2"
	linkBits     = "/24"
	wire         = "veth0"
)

// A site is two hosts: server and agent a on one, agent b on the other.
type site struct {
	t      *testing.T
	dir    string
	ns     [2]string // the namespaces of a and b
	api    *api.Client
	server *program
	agents [2]*program
}

// A program runs until its test ends.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   *bytes.Buffer // read once the process has ended
	ended chan error
}

// in runs a program inside a namespace, "" for this one.
func in(t *testing.T, ns string, name string, args ...string) *program {
	t.Helper()
	p := &program{t: t, log: &bytes.Buffer{}, ended: make(chan error, 1)}
	p.cmd = inside(ns, name, args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() {
		p.end(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("%s %v:\n%s", name, args, p.log)
		}
	})
	return p
}

func inside(ns, name string, args ...string) *exec.Cmd {
	if ns == "" {
		return exec.Command(name, args...)
	}
	return exec.Command("ip", append([]string{"netns", "exec", ns, name}, args...)...)
}

// end ends it by a signal, or by force.
func (p *program) end(s syscall.Signal) {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Signal(s) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
		p.t.Errorf("%v did not stop", p.cmd.Args)
	}
}

// newSite makes the two hosts, the server on the first one and a mesh file that
// both agents run.
func newSite(t *testing.T, mesh string) *site {
	t.Helper()
	need(t, "ip")
	s := &site{t: t, dir: shortDir(t)}
	tag := fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)
	s.ns = [2]string{"pa" + tag, "pb" + tag}
	for _, ns := range s.ns {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { run(t, "ip", "netns", "del", ns) })
		run(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	run(t, "ip", "link", "add", wire, "netns", s.ns[0], "type", "veth", "peer", "name", wire, "netns", s.ns[1])
	for i, addr := range []string{hostA, hostB} {
		run(t, "ip", "-n", s.ns[i], "addr", "add", addr+linkBits, "dev", wire)
		run(t, "ip", "-n", s.ns[i], "link", "set", wire, "up")
	}
	s.startServer()
	s.apply(mesh)
	for i, name := range []string{"a", "b"} {
		j, err := s.api.CreateJoinToken(context.Background(), api.JoinTokenRequest{Host: name})
		if err != nil {
			t.Fatal(err)
		}
		token := filepath.Join(s.dir, "token-"+name)
		if err := os.WriteFile(token, []byte(j.Token), 0o600); err != nil {
			t.Fatal(err)
		}
		s.agents[i] = in(t, s.ns[i], parleyBinary, "agent", "--dir", filepath.Join(s.dir, name), "--token-file", token)
	}
	s.ready()
	return s
}

func (s *site) startServer() {
	s.t.Helper()
	dir := filepath.Join(s.dir, "server")
	s.server = in(s.t, s.ns[0], parleyBinary, "server", "--dir", dir, "--trust-domain", "two.example", "--listen", hostA+":7443")
	var err error
	if s.api == nil {
		if s.api, err = api.New(filepath.Join(dir, "api.sock")); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(s.api.Close)
	}
	s.until("the server answers", func() bool { _, err := s.api.Version(context.Background()); return err == nil })
}

// ready waits until both hosts run the newest revision and every listener is open.
func (s *site) ready() {
	s.t.Helper()
	s.until("both hosts are ready", func() bool {
		st, err := s.api.Status(context.Background())
		ok := err == nil && len(st.Hosts) == 2 && len(st.Listeners) > 0
		if !ok {
			return false
		}
		for _, h := range st.Hosts {
			ok = ok && h.State == api.StateOK
		}
		for _, l := range st.Listeners {
			ok = ok && l.State == api.StateOK
		}
		return ok
	})
}

func (s *site) until(what string, done func() bool) {
	s.t.Helper()
	(&running{t: s.t}).until(what, done)
}

func (s *site) apply(mesh string) {
	s.t.Helper()
	r, err := s.api.Apply(context.Background(), api.ApplyRequest{Name: "parley.yaml", Text: mesh})
	if err != nil {
		s.t.Fatal(err)
	}
	if r.Fault.Code != "" && len(s.agents) > 0 && s.agents[0] != nil {
		s.t.Fatal(r.Fault.Fault())
	}
}

// curl calls from host a, and is the status and the body.
func (s *site) curl(args ...string) (status, body string) {
	s.t.Helper()
	out, err := inside(s.ns[0], need(s.t, "curl"), append([]string{"-s", "-S", "--max-time", "10", "-w", "\n%{http_code}"}, args...)...).CombinedOutput()
	text := strings.TrimRight(string(out), "\n")
	i := strings.LastIndexByte(text, '\n')
	if err != nil {
		return err.Error(), text
	}
	return text[i+1:], text[:max(i, 0)]
}

// capture records what crosses an interface of a namespace; stop is what that was.
func (s *site) capture(ns, dev string) (stop func() []byte) {
	s.t.Helper()
	file := filepath.Join(s.dir, "capture-"+dev+ns)
	p := in(s.t, ns, need(s.t, "tcpdump"), "-i", dev, "--immediate-mode", "-U", "-s", "0", "-w", file)
	s.until("the capture runs", func() bool { info, err := os.Stat(file); return err == nil && info.Size() > 0 })
	time.Sleep(300 * time.Millisecond) // the file's head is written before the first packet is taken
	return func() []byte {
		time.Sleep(300 * time.Millisecond)
		p.end(syscall.SIGINT)
		data, err := os.ReadFile(file)
		if err != nil {
			s.t.Fatal(err)
		}
		return data
	}
}

const siteMesh = `
trust_domain: two.example
leaf_ttl: 20s
hosts: {a: {}, b: {}}
services:
  shopper:
    runs_on: [a]
    runs_as: {exe: %[1]s}
    calls: [{to: site, listen: "127.0.0.1:15001"}]
  site:
    runs_on: [b]
    runs_as: {user: root}
    inbound: {listen: ":9443", app: "127.0.0.1:8080"}
    allow:
      - {from: [shopper], methods: [GET, POST], paths: [/public/**%[2]s]}
`

// long says that the test runs at its full length, for gates/hosts.
func long() bool { return os.Getenv("PARLEY_GATE") == "1" }

// twoSites is siteMesh with certificates that outlive the outage: what ends while nobody
// can renew it is refused, as it must be.
func twoSites() string {
	if long() {
		return strings.Replace(siteMesh, "leaf_ttl: 20s", "leaf_ttl: 4m", 1)
	}
	return siteMesh
}

// TestTwoHosts holds two hosts to what a network sees of them, to an outage of
// their server, and to how soon a change of policy is in force.
func TestTwoHosts(t *testing.T) {
	s := newSite(t, fmt.Sprintf(twoSites(), need(t, "curl"), ""))

	serveIn(t, s.ns[1])
	const canary = "canary-5d1c0b7e-in-the-clear"
	link, loop := s.capture(s.ns[0], wire), s.capture(s.ns[1], "lo")
	s.until("the first call passes", func() bool { code, _ := s.curl("http://127.0.0.1:15001/public/x"); return code == "200" })
	if code, body := s.curl("-d", canary, "-H", "X-Canary: "+canary, "http://127.0.0.1:15001/public/"+canary); code != "200" || !strings.Contains(body, canary) {
		t.Fatalf("got %s %s", code, body)
	}
	crossed, plain := link(), loop()
	if !bytes.Contains(plain, []byte(canary)) {
		t.Error("the capture of the plain hop does not hold the canary: it shows nothing")
	}
	if bytes.Contains(crossed, []byte(canary)) {
		t.Error("the canary crossed the link in clear")
	}
	// Application data, and a server's choice of TLS 1.3 in supported_versions
	// (RFC 8446 sections 5.1 and 4.2.1).
	if !bytes.Contains(crossed, []byte{23, 3, 3}) || !bytes.Contains(crossed, []byte{0, 43, 0, 2, 3, 4}) {
		t.Errorf("no TLS 1.3 among %d bytes that crossed the link", len(crossed))
	}

	s.outage()
	s.changes()
}

// outage kills the server, calls on, and wants no call to fail.
func (s *site) outage() {
	s.t.Helper()
	gone := 5 * time.Second
	if long() {
		gone = time.Minute
	}
	_ = s.server.cmd.Process.Kill()
	<-s.server.ended
	s.server.ended <- nil
	calls, failed := 0, 0
	for began := time.Now(); time.Since(began) < gone; calls++ {
		if code, body := s.curl("http://127.0.0.1:15001/public/x"); code != "200" {
			failed++
			s.t.Errorf("call %d without a server: %s %s", calls, code, body)
		}
	}
	s.t.Logf("outage      %s, %d calls, %d failed", gone, calls, failed)
	s.startServer()
	s.ready()
	if code, _ := s.curl("http://127.0.0.1:15001/late"); code != "403" {
		s.t.Errorf("before the change: %s", code)
	}
	s.apply(fmt.Sprintf(twoSites(), need(s.t, "curl"), ", /late"))
	if code, _ := s.curl("http://127.0.0.1:15001/late"); code != "200" {
		s.t.Errorf("after the change: %s", code)
	}
}

// changes applies policies one after the other. An apply answers when its revision
// is in force on both hosts, which the call right behind it holds it to.
func (s *site) changes() {
	s.t.Helper()
	n := 5
	if long() {
		n = 50
	}
	var took []time.Duration
	for i := range n {
		path, code := fmt.Sprintf("/change/%d", i), ""
		began := time.Now()
		s.apply(fmt.Sprintf(twoSites(), need(s.t, "curl"), ", "+path))
		took = append(took, time.Since(began))
		if code, _ = s.curl("http://127.0.0.1:15001" + path); code != "200" {
			s.t.Errorf("change %d is not in force: %s", i, code)
		}
		if code, _ = s.curl(fmt.Sprintf("http://127.0.0.1:15001/change/%d", i-1)); code != "403" {
			s.t.Errorf("change %d did not take the one before back: %s", i, code)
		}
	}
	slices.Sort(took)
	p99 := took[(len(took)*99+99)/100-1]
	s.t.Logf("changes     %d, from apply to in force on both hosts %s at the median, %s at p99", n, took[len(took)/2], p99)
	if p99 > 500*time.Millisecond && long() {
		s.t.Errorf("%s is above 500 ms", p99)
	}
}

// serveIn serves 127.0.0.1:8080 inside a namespace: this program, in another role.
func serveIn(t *testing.T, ns string) *program {
	t.Helper()
	return serveAt(t, ns, "127.0.0.1:8080")
}

func serveAt(t *testing.T, ns, addr string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, log: &bytes.Buffer{}, ended: make(chan error, 1)}
	p.cmd = inside(ns, self)
	p.cmd.Env = append(os.Environ(), "PARLEY_INTEROP_ROLE=echo:"+addr)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() { p.end(syscall.SIGTERM) })
	return p
}

// echoRole answers with what it got.
func echoRole(addr string) int {
	server := &http.Server{Addr: addr, ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what could be read is the answer
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL.Path, r.Header.Get("X-Canary"), body)
	})}
	fmt.Println(server.ListenAndServe())
	return 1
}
