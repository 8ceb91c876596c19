package interop

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const firewallMesh = `
trust_domain: two.example
hosts: {a: {}, b: {}}
services:
  shopper:
    runs_on: [a]
    runs_as: {exe: %[1]s}
    calls: [{to: site, listen: "127.0.0.1:15001"}]
  site:
    runs_on: [b]
    runs_as: {user: root}
    inbound: {listen: ":9443", app: "127.0.0.1:%[2]s"}
    allow: [{from: [shopper]}]
`

// agentUser is a user of nobody's, which the agent of one half of the test runs as.
const agentUser = 61234

// TestFirewall holds the rules to what they are for, with the real nft in namespaces of
// the test's: the app port, on which the application listens at every address, is open
// to the agent's user and to nobody else, there and from the network; every other port
// is as it was; and taken out, all is.
func TestFirewall(t *testing.T) {
	need(t, "nft")
	s := newSite(t, fmt.Sprintf(firewallMesh, need(t, "curl"), "8080"))
	b := s.ns[1]
	serveAt(t, b, ":8080")
	serveAt(t, b, ":2222") // which stands for SSH
	served := func() bool {
		code, body := s.curl("http://127.0.0.1:15001/x")
		return code == "200" && strings.HasPrefix(body, "GET /x")
	}
	s.until("the first call passes", served)
	everybody := map[string]bool{"root": true, "other": true, "network": true}
	s.reached("before", everybody)

	kept := s.keepOpen(b, 65534) // a connection of another user's that is open already
	rules := s.firewall(0, "--dry-run")
	if !strings.Contains(rules, "elements = { 8080 }") || !strings.Contains(rules, "meta skuid 0 accept") {
		t.Errorf("dry run: %s", rules)
	}
	s.reached("a dry run", everybody)
	if said := s.firewall(0); !strings.Contains(said, "8080") || !strings.Contains(said, "every process of root") {
		t.Errorf("put in: %s", said)
	}
	s.reached("put in", map[string]bool{"root": true})
	if !kept() {
		t.Error("a connection that was open was cut")
	}
	if !served() {
		t.Error("the mesh does not reach the application")
	}
	s.firewall(0) // again, in the place of the first
	s.reached("put in twice", map[string]bool{"root": true})
	if said := s.firewall(2, "--user", "nobody"); !strings.Contains(said, "the agent here runs as user root (0)") {
		t.Errorf("another user's: %s", said)
	}
	s.firewall(0, "--remove")
	s.reached("removed", everybody)
	s.firewall(0, "--remove")
	if left := run(t, "ip", "netns", "exec", b, "nft", "list", "ruleset"); strings.TrimSpace(left) != "" {
		t.Errorf("left of the rules: %s", left)
	}

	s.asUser(served)
}

// asUser is the other half: an agent with a user of its own and one capability closes
// the port by itself and follows revisions, and what it closed stays so without it.
func (s *site) asUser(served func() bool) {
	t, b := s.t, s.ns[1]
	t.Helper()
	s.agents[1].end(syscall.SIGTERM)
	dir := filepath.Join(s.dir, "b")
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, agentUser, agentUser)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	uid := fmt.Sprint(agentUser)
	s.agents[1] = in(t, b, need(t, "setpriv"), "--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps", "-all,+net_admin", "--ambient-caps", "-all,+net_admin",
		parleyBinary, "agent", "--dir", dir, "--firewall")
	s.until("the agent serves again", served)
	closed := map[string]bool{"agent": true}
	s.until("the agent has closed the port", func() bool { return !reaches(b, 65534, "127.0.0.1:8080") })
	s.reached("by the agent", closed)
	if !served() {
		t.Error("the mesh does not reach the application")
	}
	// Somebody loads the host's own rules anew, which takes away everybody's.
	run(t, "ip", "netns", "exec", b, "nft", "flush", "ruleset")
	if !reaches(b, 65534, "127.0.0.1:8080") {
		t.Error("not flushed")
	}
	s.until("it is closed again", func() bool { return !reaches(b, 65534, "127.0.0.1:8080") })
	s.apply(fmt.Sprintf(firewallMesh, need(t, "curl"), "2222"))
	s.until("another port is closed, and the first open", func() bool {
		return reaches(b, 65534, "127.0.0.1:8080") && !reaches(b, 65534, "127.0.0.1:2222")
	})
	s.apply(fmt.Sprintf(firewallMesh, need(t, "curl"), "8080"))
	s.until("the first is closed again", func() bool { return !reaches(b, 65534, "127.0.0.1:8080") })
	_ = s.agents[1].cmd.Process.Kill()
	<-s.agents[1].ended
	s.agents[1].ended <- nil
	s.reached("without an agent", closed)
	s.firewall(0, "--remove")
	s.reached("at the end", map[string]bool{"root": true, "other": true, "network": true, "agent": true})
}

// reached wants the app port to be reached by these and by nobody else, at each of its
// addresses, and the port beside it by everybody.
func (s *site) reached(phase string, by map[string]bool) {
	s.t.Helper()
	for who, from := range map[string]struct {
		ns  string
		uid int
		at  []string
	}{
		"root":    {s.ns[1], 0, []string{"127.0.0.1", "[::1]", hostB}},
		"agent":   {s.ns[1], agentUser, []string{"127.0.0.1", "[::1]", hostB}},
		"other":   {s.ns[1], 65534, []string{"127.0.0.1", "[::1]", hostB}},
		"network": {s.ns[0], 0, []string{hostB}},
	} {
		want := by[who] || who == "agent" && by["other"]
		for _, at := range from.at {
			if got := reaches(from.ns, from.uid, at+":8080"); got != want {
				s.t.Errorf("%s: %s reaches %s:8080: %v, want %v", phase, who, at, got, want)
			}
			if !reaches(from.ns, from.uid, at+":2222") {
				s.t.Errorf("%s: %s does not reach the other port at %s", phase, who, at)
			}
		}
	}
}

// reaches says whether a process of uid opens a connection in a namespace, and gets an
// answer.
func reaches(ns string, uid int, addr string) bool {
	cmd := inside(ns, "setpriv", "--reuid", fmt.Sprint(uid), "--clear-groups", "curl", "-s", "-o", "/dev/null", "--max-time", "3", "http://"+addr+"/")
	return cmd.Run() == nil
}

// keepOpen opens a connection of uid's to the app port that stays open; open asks
// something over it.
func (s *site) keepOpen(ns string, uid int) (open func() bool) {
	s.t.Helper()
	const ask = `exec 3<>/dev/tcp/127.0.0.1/8080; while read -r line; do printf 'GET /kept HTTP/1.1\r\nHost: x\r\n\r\n' >&3; IFS= read -r -t 3 status <&3; echo "$status"; done`
	cmd := inside(ns, "setpriv", "--reuid", fmt.Sprint(uid), "--clear-groups", "bash", "-c", ask)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // it has connected by then
	return func() bool {
		_, _ = stdin.Write([]byte("\n"))
		_ = stdin.Close()
		return cmd.Wait() == nil && strings.HasPrefix(out.String(), "HTTP/1.1 200")
	}
}

// firewall runs `parley firewall` on host b, which has to end with that exit code.
func (s *site) firewall(code int, args ...string) string {
	s.t.Helper()
	all := append([]string{"--api", filepath.Join(s.dir, "server", "api.sock"), "firewall"}, args...)
	if code >= 0 && (len(args) == 0 || args[0] != "--remove") {
		all = append(all, "--host", "b")
	}
	cmd := inside(s.ns[1], parleyBinary, all...)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code {
		s.t.Fatalf("parley firewall %v: exit code %d, want %d\n%s", args, got, code, out)
	}
	return string(out)
}
