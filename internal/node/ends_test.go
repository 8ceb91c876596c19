package node_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

const endsMesh = `
trust_domain: node.example
outbound_ports: %[6]s
services:
  caller:
    runs_as: {exe: %[1]s}
    calls: [site, lines]
  site:
    runs_as: {exe: /nobody/there}
    inbound: {listen: %[2]q, app: %[3]q, websocket: {}}
    allow: [{from: [caller]}]
  lines:
    runs_as: {exe: /nobody/there}
    inbound: {listen: %[4]q, app: %[5]q, protocol: tcp}
    allow: [{from: [caller]}]
`

// TestBothEndsOfACallAreJoined by call.id, and by it alone: the calls have one trace
// and one request id, and some have one connection.
func TestBothEndsOfACallAreJoined(t *testing.T) {
	t.Parallel()
	site := httptest.NewServer(http.HandlerFunc(answerOrSwitch))
	t.Cleanup(site.Close)
	dir, text := shortDir(t), fmt.Sprintf(endsMesh, executable(t), freeAddr(t), site.Listener.Addr(), freeAddr(t), echoLines(t), freePort(t))
	m := startNode(t, dir, text)
	m.tryApply(text)
	outbound := map[string]string{}
	soon(t, "the listeners are open", func() bool {
		s, err := m.api.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range s.Listeners {
			outbound[l.Name] = l.Address
		}
		return outbound["caller.calls.site"] != "" && outbound["caller.calls.lines"] != ""
	})
	for range 2 {
		speak(t, outbound["caller.calls.site"], "")
		if c, ok := says(t, outbound["caller.calls.lines"]); !ok {
			t.Fatal("no answer")
		} else {
			c.Close()
		}
	}
	speak(t, outbound["caller.calls.site"], "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")

	const calls = 5
	ends := map[string]map[string]int{}
	soon(t, "both ends of each call are recorded", func() bool {
		page, err := m.api.Events(t.Context(), api.ListEventsParams{Action: string(audit.Call)})
		if err != nil {
			t.Fatal(err)
		}
		clear(ends)
		for _, entry := range page.Items {
			e, err := audit.Decode(entry.Event)
			if err != nil {
				t.Fatal(err)
			}
			if ends[e.Call.ID] == nil {
				ends[e.Call.ID] = map[string]int{}
			}
			ends[e.Call.ID][e.Call.End]++
		}
		return len(page.Items) == 2*calls
	})
	if len(ends) != calls {
		t.Errorf("%d calls, want %d: %v", len(ends), calls, ends)
	}
	for id, of := range ends {
		if id == "" || of["outbound"] != 1 || of["inbound"] != 1 {
			t.Errorf("call %q has the ends %v", id, of)
			continue
		}
		page, err := m.api.Events(t.Context(), api.ListEventsParams{CallID: id})
		if err != nil || len(page.Items) != 2 {
			t.Errorf("found by %s: %d events, %v", id, len(page.Items), err)
		}
	}
}

// answerOrSwitch answers, or becomes a WebSocket and ends it.
func answerOrSwitch(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		fmt.Fprintln(w, "the application")
		return
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
}

// speak sends a request with fields, of one trace and one request id, and reads what
// comes back.
func speak(t *testing.T, addr, fields string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second)) // a deadline in the past fails the read
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: site\r\nX-Request-Id: one\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n%s\r\n", fields)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[bool]int{true: 200, false: 101}[fields == ""]; resp.StatusCode != want {
		t.Fatalf("status %d, want %d", resp.StatusCode, want)
	}
}
