package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// banMesh has a caller on each host, and what it calls on the other.
const banMesh = `
trust_domain: two.example
leaf_ttl: 20s
hosts: {a: {}, b: {}}
services:
  east:
    runs_on: [a]
    runs_as: {exe: %[1]s}
    calls: [{to: b-web, listen: "127.0.0.1:15001"}, {to: b-lines, listen: "127.0.0.1:15002"}]
  b-web:
    runs_on: [b]
    runs_as: {user: root}
    inbound: {listen: ":9443", app: "127.0.0.1:8080", app_protocol: http2, websocket: {}}
    allow: [{from: [east]}]
  b-lines:
    runs_on: [b]
    runs_as: {user: root}
    inbound: {listen: ":9444", app: "127.0.0.1:8081", protocol: tcp}
    allow: [{from: [east]}]
  west:
    runs_on: [b]
    runs_as: {exe: %[1]s}
    calls: [{to: a-web, listen: "127.0.0.1:15001"}, {to: a-lines, listen: "127.0.0.1:15002"}]
  a-web:
    runs_on: [a]
    runs_as: {user: root}
    inbound: {listen: ":9443", app: "127.0.0.1:8080", app_protocol: http2, websocket: {}}
    allow: [{from: [west]}]
  a-lines:
    runs_on: [a]
    runs_as: {user: root}
    inbound: {listen: ":9444", app: "127.0.0.1:8081", protocol: tcp}
    allow: [{from: [west]}]
`

// TestBanOnTwoHosts bans a caller on each of two hosts while it has an HTTP/2 stream,
// a WebSocket and a TCP connection to the other one: both ends of each are cut within
// a second of the command, nothing new works, and a ticket of before resumes nothing.
// The end of the ban needs no restart, also where the certificate has ended meanwhile.
func TestBanOnTwoHosts(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, fmt.Sprintf(banMesh, self))
	var apps, callers [2]*talker
	for i, ns := range s.ns {
		apps[i] = startTalker(t, ns, "listen:127.0.0.1:8080,127.0.0.1:8081")
		callers[i] = startTalker(t, ns, "call:127.0.0.1:15001,127.0.0.1:15002")
	}
	for i, c := range []struct{ name, inbound string }{{"east", hostB + ":9443"}, {"west", hostA + ":9443"}} {
		t.Run(c.name, func(t *testing.T) {
			s := s.in(t)
			b := &banned{site: s, name: c.name, inbound: c.inbound, ns: s.ns[i], caller: callers[i], app: apps[1-i], other: callers[1-i]}
			b.caller.t, b.app.t, b.other.t = t, t, t
			b.run(i == 0)
		})
	}
	t.Run("cut off", func(t *testing.T) {
		b := &banned{site: s.in(t), name: "west", ns: s.ns[1], caller: callers[1], app: apps[0], other: callers[0]}
		b.caller.t, b.app.t, b.other.t = t, t, t
		b.cutOff()
	})
}

// cutOff bans it while its host is cut off: the command names the host, by its exit
// code too. The host knows of the ban once it is back, and of its end.
func (b *banned) cutOff() {
	b.t.Helper()
	b.works("at first")
	run(b.t, "ip", "-n", b.ns, "link", "set", wire, "down")
	said, code, began, ended := b.parley("ban", b.name)
	if code != 1 || !strings.Contains(lineWith(said, " a "), "yes") || !strings.Contains(lineWith(said, " b "), "NO") {
		b.t.Errorf("ban without host b: exit code %d\n%s", code, said)
	}
	if took := ended.Sub(began); took > 5*time.Second {
		b.t.Errorf("the command waits %s for a host that does not answer", took)
	}
	b.app.forget()
	run(b.t, "ip", "-n", b.ns, "link", "set", wire, "up")
	(&running{t: b.t}).until("host b confirms", func() bool { _, code, _, _ := b.parley("ban", b.name); return code == 0 })
	b.t.Logf("host b confirms %s after the link is up", time.Since(ended).Round(time.Millisecond))
	b.refused("back on the network")
	if said, code, _, _ := b.parley("unban", b.name); code != 0 {
		b.t.Errorf("unban: exit code %d\n%s", code, said)
	}
	b.works("after the end of the ban")
}

// lineWith is the first line of text that has a word.
func lineWith(text, word string) string {
	for l := range strings.Lines(text) {
		if strings.Contains(l, word) {
			return l
		}
	}
	return ""
}

// in is s for a subtest.
func (s *site) in(t *testing.T) *site {
	sub := *s
	sub.t = t
	return &sub
}

// parley runs a command against the site's server, and is what it says, its exit
// code, and when it began and ended.
func (s *site) parley(args ...string) (said string, code int, began, ended time.Time) {
	s.t.Helper()
	cmd := inside(s.ns[0], parleyBinary, append([]string{"--api", filepath.Join(s.dir, "server", "api.sock")}, args...)...)
	began = time.Now()
	out, err := cmd.CombinedOutput()
	ended = time.Now()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		s.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode(), began, ended
}

// A banned one is a caller on one host with what it calls on the other.
type banned struct {
	*site
	name, inbound string
	ns            string // of the caller
	caller, app   *talker
	other         *talker // the caller in the other direction
}

func (b *banned) run(outlive bool) {
	t := b.t
	b.works("at first")
	b.caller.forget()
	b.caller.do("hold")
	b.caller.take("all are open", func(w word) bool { return w.Open })
	openssl := &openSSL{T: t, svid: b.svid(), address: b.inbound, name: "http", ns: b.ns}
	ticket := filepath.Join(b.dir, b.name+".ticket")
	served := func(what string, resumed bool, args ...string) {
		t.Helper()
		if got := openssl.ask(args...); !strings.Contains(got, "served") || strings.Contains(got, "Reused, TLSv1.3") != resumed {
			t.Errorf("%s, want an answer (resumed: %t):\n%s", what, resumed, got)
		}
	}
	served("OpenSSL", false, "-sess_out", ticket)
	served("OpenSSL with its ticket", true, "-sess_in", ticket)
	time.Sleep(100 * time.Millisecond)
	b.caller.forget()
	b.app.forget()

	since := time.Now() // refusals of one reason from one address are one event in ten seconds
	b.cut()
	b.refused("at once")
	if got := openssl.ask("-sess_in", ticket); strings.Contains(got, "served") || strings.Contains(got, "HTTP/1.1") || !strings.Contains(got, "alert") {
		t.Errorf("a ticket of before the ban, want an alert and nothing else:\n%s", got)
	}
	e := (&running{t: t, api: b.api}).events(1, api.ListEventsParams{Action: string(audit.HandshakeRefused), Since: since})[0]
	if e.Outcome != audit.Denied || e.Caller == nil || e.Caller.ID.Name() != b.name {
		t.Errorf("on record: %s of %+v", e.Outcome, e.Caller)
	}
	if outlive {
		time.Sleep(25 * time.Second) // longer than leaf_ttl: every certificate of it has ended
		b.refused("after its certificates ended")
	}

	said, code, _, ended := b.parley("unban", b.name)
	if code != 0 {
		t.Errorf("unban: exit code %d\n%s", code, said)
	}
	b.works("after the end of the ban")
	back := time.Since(ended)
	t.Logf("%s works again %s after parley unban", b.name, back.Round(time.Millisecond))
	if back > 2*time.Second {
		t.Errorf("it works again %s after parley unban", back)
	}
	if !outlive {
		served("OpenSSL after the end of the ban", false, "-sess_in", ticket, "-sess_out", ticket)
		served("OpenSSL with a new ticket", true, "-sess_in", ticket)
	}
	b.caller.do("hold")
	b.caller.take("held again", func(w word) bool { return w.Open })
}

// svid is a directory with the caller's credential, as one of its processes gets it.
func (b *banned) svid() string {
	host := map[string]string{b.site.ns[0]: "a", b.site.ns[1]: "b"}[b.ns]
	return takeFrom(b.t, inside(b.ns, must(os.Executable())), filepath.Join(b.dir, host, "workload.sock"), "spiffe://two.example/"+b.name)
}

// cut bans it, and wants every end of every connection to see that in time.
func (b *banned) cut() {
	t := b.t
	t.Helper()
	said, code, began, ended := b.parley("ban", b.name, "--reason", "test")
	if code != 0 || strings.Count(said, "yes") != 2 {
		t.Errorf("ban: exit code %d\n%s", code, said)
	}
	for end, k := range map[string]*talker{"app": b.app, "caller": b.caller} {
		for kind, w := range k.take(end+" sees the cuts", func(w word) bool { return !w.Cut.IsZero() }) {
			t.Logf("%-5s %-9s at the %-6s cut %4d ms after parley ban began, %5d ms after it returned", b.name, kind, end, w.Cut.Sub(began).Milliseconds(), w.Cut.Sub(ended).Milliseconds())
			if w.Cut.Sub(ended) > time.Second || w.Cut.Before(began) {
				t.Errorf("%s at the %s: cut %s after parley ban returned", kind, end, w.Cut.Sub(ended))
			}
		}
	}
	b.app.forget()
}

// works waits until a connection of every kind works.
func (b *banned) works(what string) {
	b.t.Helper()
	var came map[string]string
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
		came = b.caller.try()
		if came["http2"] == "<nil>" && came["websocket"] == "<nil>" && came["tcp"] == "<nil>" {
			return
		}
	}
	b.t.Fatalf("%s: %v", what, came)
}

// refused wants no kind of connection to work, and nothing of them to come to the
// application. The other direction goes on.
func (b *banned) refused(what string) {
	b.t.Helper()
	for range 3 {
		for kind, came := range b.caller.try() {
			if came == "<nil>" {
				b.t.Errorf("%s: %s works although it is banned", what, kind)
			}
		}
	}
	if got := b.app.forget(); got != "" {
		b.t.Errorf("%s: the application was reached:\n%s", what, got)
	}
	for kind, came := range b.other.try() {
		if came != "<nil>" {
			b.t.Errorf("%s: %s in the other direction, which nobody banned: %s", what, kind, came)
		}
	}
}
