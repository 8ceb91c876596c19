package node_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
)

const appMesh = `
trust_domain: node.example
outbound_ports: %[5]s
services:
  caller:
    runs_as: {exe: %[1]s}
    calls: [lines]
  lines:
    runs_as: {user: %[4]q}
    inbound: {listen: %[2]q, app: %[3]q, protocol: tcp}
    allow: [{from: [caller]}]
`

// stranger is a user who is not this one, nor anybody.
func stranger() string { return strconv.Itoa(os.Getuid() + 54321) }

func executable(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// state is that of one listener, empty where there is none, and why.
func (m *mesh) state(listener string) (api.State, string) {
	m.t.Helper()
	s, err := m.api.Status(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	for _, l := range s.Listeners {
		if l.Name == listener {
			return l.State, l.Note
		}
	}
	return "", ""
}

// soon waits for at most six seconds: three looks at the applications.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(6 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not become true that %s", what)
		}
	}
}

// tryApply applies what need not run in full.
func (m *mesh) tryApply(text string) *api.ApplyResult {
	m.t.Helper()
	r, err := m.api.Apply(m.t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: text})
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

// says sends a line to addr and says whether it came back. The connection is left
// open.
func says(t *testing.T, addr string) (*net.TCPConn, bool) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, false
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), sayOn(c)
}

func sayOn(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second)) // a deadline in the past fails the read
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return false
	}
	line, _ := bufio.NewReader(c).ReadString('\n') // what was read counts
	return line == "hello\n"
}

// TestTheApplicationBecomesAnotherUsers: whoever holds the port of an application
// and is not who runs_as names gets nothing, whether runs_as changes or the
// process, and what is open to it ends.
func TestTheApplicationBecomesAnotherUsers(t *testing.T) {
	t.Parallel()
	me := strconv.Itoa(os.Getuid())

	t.Run("runs_as changes", func(t *testing.T) {
		t.Parallel()
		listen, app, port := freeAddr(t), echoLines(t), freePort(t)
		text := func(user string) string { return fmt.Sprintf(appMesh, executable(t), listen, app, user, port) }
		m := startNode(t, shortDir(t), text(me))
		m.apply(text(me))
		held, ok := says(t, "127.0.0.1:"+port)
		if !ok {
			t.Fatal("the application does not answer")
		}
		r := m.tryApply(text(stranger()))
		_, appPort, _ := net.SplitHostPort(app)
		if !r.Running || r.Fault.Code != string(fault.NotRunning) || !strings.Contains(r.Fault.Message, "lines.inbound is not open") || !strings.Contains(r.Fault.Help, "ss -ltnp 'sport = :"+appPort+"'") {
			t.Errorf("apply said %+v", r.Fault)
		}
		m.mustBeClosed(port, held)
		m.tryApply(text(stranger()) + "# again\n")
		soon(t, "it is recorded", func() bool { return m.listenerFailures() > 0 })
		if n := m.listenerFailures(); n != 1 {
			t.Errorf("recorded %d times, want once", n)
		}
		m.apply(text(me))
		if _, ok := says(t, "127.0.0.1:"+port); !ok {
			t.Error("what was put right is not served")
		}
	})

	t.Run("the port is taken", func(t *testing.T) {
		t.Parallel()
		listen, app, port := freeAddr(t), freeAddr(t), freePort(t)
		text := fmt.Sprintf(appMesh, executable(t), listen, app, stranger(), port)
		m := startNode(t, shortDir(t), text)
		m.apply(text) // nobody holds the port: it may open
		if state, note := m.state("lines.inbound"); state != api.StateOK {
			t.Fatal(state, note)
		}
		l, err := net.Listen("tcp", app)
		if err != nil {
			t.Fatal(err)
		}
		go serveLines(l)
		soon(t, "the listener is closed", func() bool { state, _ := m.state("lines.inbound"); return state == api.StateFailed })
		m.mustBeClosed(port, nil)
		l.Close()
		soon(t, "the listener is open again", func() bool { state, _ := m.state("lines.inbound"); return state == api.StateOK })
	})
}

// listenerFailures are how often it is on record that a stranger holds a port.
func (m *mesh) listenerFailures() int {
	m.t.Helper()
	events, err := m.api.Events(m.t.Context(), api.ListEventsParams{Action: "listener.failed"})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range events.Items {
		if text := string(e.Event); !strings.Contains(text, string(fault.AppPortHeld)) || !strings.Contains(text, `"lines.inbound"`) || !strings.Contains(text, "is held by user") {
			m.t.Errorf("recorded %s", text)
		}
	}
	return len(events.Items)
}

// mustBeClosed says that nothing gets to the application of lines, and that the
// status says why.
func (m *mesh) mustBeClosed(port string, held net.Conn) {
	m.t.Helper()
	if state, note := m.state("lines.inbound"); state != api.StateFailed || !strings.Contains(note, "is held by user "+attest.UserText(os.Getuid())+", not by "+attest.UserText(os.Getuid()+54321)) {
		m.t.Errorf("lines.inbound is %q: %s", state, note)
	}
	if _, ok := says(m.t, "127.0.0.1:"+port); ok {
		m.t.Error("the stranger is served")
	}
	if held != nil && sayOn(held) {
		m.t.Error("what was open goes on to the stranger")
	}
}

// TestStatusTellsAnApplicationThatIsNotThere: each status is of the moment at
// which it is asked for.
func TestStatusTellsAnApplicationThatIsNotThere(t *testing.T) {
	t.Parallel()
	listen, app, port := freeAddr(t), freeAddr(t), freePort(t)
	text := fmt.Sprintf(appMesh, executable(t), listen, app, strconv.Itoa(os.Getuid()), port)
	m := startNode(t, shortDir(t), text)
	m.apply(text)
	want := func(what string, state api.State) {
		t.Helper()
		s, err := m.api.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range s.Services {
			expect := api.StateOK
			if v.Name == "lines" {
				expect = state
			}
			if v.State != expect || (v.Note == "") != (expect == api.StateOK) || (v.Help == "") != (expect == api.StateOK) || v.Serial == "" {
				t.Errorf("%s: %+v", what, v)
			}
			if v.Note != "" && !strings.Contains(v.Note, "nothing listens on "+app) {
				t.Errorf("%s: %s", what, v.Note)
			}
		}
	}
	want("not yet", api.StateWaiting)
	for range 2 {
		l, err := net.Listen("tcp", app)
		if err != nil {
			t.Fatal(err)
		}
		want("there", api.StateOK)
		l.Close()
		time.Sleep(2 * time.Second) // a connection that found nothing is not tried again before
		want("gone", api.StateFailed)
	}
}

// TestStatusCountsCallsThatNobodyAnswered: one that found no application, and one
// of a process that is not the caller.
func TestStatusCountsCallsThatNobodyAnswered(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		exe    string
		inside bool // the call gets as far as the callee's end
		want   api.EdgeStatus
	}{
		"no application": {executable(t), true, api.EdgeStatus{Calls: 1, Failed: 1, Protection: "mtls"}},
		"no inbound":     {executable(t), false, api.EdgeStatus{Calls: 1, Failed: 1}},
		"a stranger":     {"/nobody/there", true, api.EdgeStatus{Calls: 1, Refused: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app, user := freeAddr(t), strconv.Itoa(os.Getuid())
			if !c.inside {
				app, user = echoLines(t), stranger()
			}
			port := freePort(t)
			text := fmt.Sprintf(appMesh, c.exe, freeAddr(t), app, user, port)
			m := startNode(t, shortDir(t), text)
			m.tryApply(text)
			if _, ok := says(t, "127.0.0.1:"+port); ok {
				t.Fatal("somebody answers")
			}
			c.want.From, c.want.To, c.want.Declared = "caller", "lines", true
			var got api.EdgeStatus
			soon(t, "the call is counted", func() bool {
				s, err := m.api.Status(t.Context())
				if err != nil || len(s.Edges) != 1 {
					t.Fatal(s.Edges, err)
				}
				got = s.Edges[0]
				return got.Calls > 0
			})
			got.Last = time.Time{}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestStatusOfAnotherHostsApplications: what an agent of another machine sees there
// is told as if it were here, with its name.
func TestStatusOfAnotherHostsApplications(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	host(t, hostConfig(t, shortDir(t), f.token("a")))
	host(t, hostConfig(t, shortDir(t), f.token("b")))
	f.wants("at first", "GET", http.StatusOK)
	gone := freeAddr(t)
	site := regexp.MustCompile(`app: "[^"]*"}`).FindString(f.text)
	text := strings.Replace(f.text, site, fmt.Sprintf("app: %q}", gone), 1)
	lines := strings.LastIndex(text, "{exe: /nobody/there}")
	text = text[:lines] + "{user: \"" + stranger() + "\"}" + text[lines+len("{exe: /nobody/there}"):]
	f.tryApply(text)
	var s *api.Status
	soon(t, "the host tells of its applications", func() bool {
		var err error
		if s, err = f.api.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.Listeners, func(l api.ListenerStatus) bool { return l.Name == "lines.inbound" && l.State == api.StateFailed })
	})
	for _, v := range s.Services {
		if v.Name == "site" && (v.State != api.StateWaiting || !strings.HasPrefix(v.Note, "on b: nothing listens on "+gone) || v.Help == "") {
			t.Errorf("site: %+v", v)
		}
	}
	for _, l := range s.Listeners {
		if l.Name == "lines.inbound" && l.State == api.StateFailed && (l.Host != "b" || !strings.Contains(l.Note, "is held by user") || !strings.Contains(l.Help, "ss -ltnp")) {
			t.Errorf("lines.inbound: %+v", l)
		}
	}
	if !slices.ContainsFunc(s.Findings, func(f api.Finding) bool {
		return f.Code == string(fault.SelectorMissing) && strings.HasPrefix(f.Message, "on b: no process of this host can be site")
	}) {
		t.Errorf("findings: %+v", s.Findings)
	}
}
