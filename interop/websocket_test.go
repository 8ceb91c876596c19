package interop

import (
	"bufio"
	"encoding/json"
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

// chatMesh has a service that lets WebSocket through and one that does not, before
// the same application.
const chatMesh = `
trust_domain: interop.example
leaf_ttl: 12s
services:
  %[1]s:
    runs_as: {exe: %[2]s}
    calls: [{to: chat, listen: "127.0.0.1:%[3]d"}, {to: plain, listen: "127.0.0.1:%[4]d"}]
  chat:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[5]d", app: "127.0.0.1:%[6]d", websocket: {}}
    allow:
      - {from: [%[1]s], paths: [/chat]}
  plain:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[7]d", app: "127.0.0.1:%[6]d"}
    allow:
      - {from: [%[1]s]}
gateway:
  edge:
    listen: 127.0.0.1:%[8]d
    tls: {mesh_ca: {hosts: [localhost]}}
    routes:
      - {match: {path: /chat}, to: chat, require: public, websocket: {origins: [https://shop.example]}}
      - {match: {path: /closed}, to: chat, require: public}
`

// A wsClient is ws-client.js at work.
type wsClient struct {
	t     *testing.T
	lines *bufio.Scanner
}

// line is what a client prints.
type line struct {
	Open     bool   `json:"open"`
	Echoed   int    `json:"echoed"`
	Pong     bool   `json:"pong"`
	Closed   int    `json:"closed"`
	Reason   string `json:"reason"`
	Refused  int    `json:"refused"`
	Decision string `json:"decision"`
	Error    string `json:"error"`
}

func startWS(t *testing.T, node, modules string, options map[string]any) *wsClient {
	t.Helper()
	raw, err := json.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("timeout", "60", node, "testdata/ws-client.js", string(raw))
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // it was killed
	})
	return &wsClient{t, bufio.NewScanner(out)}
}

// next is the next line.
func (c *wsClient) next() (l line) {
	c.t.Helper()
	if !c.lines.Scan() {
		c.t.Fatalf("the client ended: %v", c.lines.Err())
	}
	if err := json.Unmarshal(c.lines.Bytes(), &l); err != nil {
		c.t.Fatalf("%v: %s", err, c.lines.Text())
	}
	return l
}

// whole is all of a client's lines as one.
func (c *wsClient) whole() (all line) {
	c.t.Helper()
	for c.lines.Scan() {
		if err := json.Unmarshal(c.lines.Bytes(), &all); err != nil {
			c.t.Fatalf("%v: %s", err, c.lines.Text())
		}
	}
	return all
}

// TestWebSocketAcrossARenewal has 10,000 messages echoed over one connection from
// the npm package ws to itself through two sidecars, while every certificate is
// renewed, and 1,000 more through the gateway.
func TestWebSocketAcrossARenewal(t *testing.T) {
	node := need(t, "node")
	if real, err := filepath.EvalSymlinks(node); err == nil {
		node = real // as it is attested
	}
	modules := strings.TrimSpace(run(t, need(t, "npm"), "root", "--global"))
	need(t, filepath.Join(modules, "ws", "package.json"))
	app, chat, plain, edge := freePort(t), freePort(t), freePort(t), freePort(t)
	t.Setenv("NODE_PATH", modules)
	background(t, node, "testdata/ws-server.js", fmt.Sprint(app))
	in, other := freePort(t), freePort(t)
	mesh := func(caller string) string {
		return fmt.Sprintf(chatMesh, caller, node, chat, plain, in, app, other, edge)
	}
	r := start(t, mesh("page"))
	url := fmt.Sprintf("ws://127.0.0.1:%d/chat", chat)

	before, began := r.serials(), time.Now()
	got := startWS(t, node, modules, map[string]any{"url": url, "messages": 10_000, "seconds": 9}).whole()
	if got != (line{Open: true, Echoed: 10_000, Pong: true, Closed: 1000, Reason: "done"}) {
		t.Fatalf("got %+v", got)
	}
	after := r.serials()
	for _, service := range []string{"page", "chat"} {
		if before[service] == after[service] {
			t.Errorf("%s still has certificate %s: no renewal was crossed", service, before[service])
		}
	}
	for _, e := range recordedWS(t, r, began) {
		seen, service := e.TLS, "page"
		if e.Call.End == "outbound" {
			seen, service = e.UpstreamTLS, "chat"
		}
		if e.Call.Error != "" || e.Call.BytesIn < 10<<20 || e.Call.BytesOut < 10<<20 || e.Call.Duration < 8_000_000 || seen.PeerSerial != before[service] || seen.ALPN != "http/1.1" {
			t.Errorf("on record: %+v, %+v", e.Call, seen)
		}
	}

	t.Run("not offered", func(t *testing.T) {
		for _, u := range []string{fmt.Sprintf("ws://127.0.0.1:%d/chat", plain), strings.Replace(url, "/chat", "/other", 1)} {
			want := 501
			if strings.HasSuffix(u, "/other") {
				want = 403
			}
			if got := startWS(t, node, modules, map[string]any{"url": u}).whole(); got.Refused != want || got.Decision == "" || got.Open {
				t.Errorf("%s: got %+v", u, got)
			}
		}
	})
	t.Run("gateway", func(t *testing.T) { gatewayWS(t, r.in(t), node, modules, edge) })
	t.Run("identity leaves", func(t *testing.T) {
		r := r.in(t)
		c := startWS(t, node, modules, map[string]any{"url": url, "messages": 10, "seconds": 0, "hold": true})
		for c.next().Echoed == 0 {
		}
		began := time.Now()
		r.apply(mesh("another"))
		l := c.next()
		for l.Closed == 0 {
			l = c.next()
		}
		if d := time.Since(began); l.Closed != 1006 || d > 2*time.Second {
			t.Errorf("closed with %d after %s", l.Closed, d)
		}
	})
}

// recordedWS are the events of the one connection since began: one at each end.
func recordedWS(t *testing.T, r *running, began time.Time) []*audit.Event {
	t.Helper()
	events := r.events(2, api.ListEventsParams{Action: string(audit.Call), Since: began})
	if len(events) != 2 {
		t.Fatalf("%d events of one connection", len(events))
	}
	for _, e := range events {
		if e.Outcome != audit.Allowed || e.Call.Status != 101 || e.Call.Path != "/chat" {
			t.Errorf("on record: %s, %+v", e.Outcome, e.Call)
		}
	}
	return events
}

// gatewayWS is what a page may do at the edge, and what not.
func gatewayWS(t *testing.T, r *running, node, modules string, edge int) {
	ca := filepath.Join(r.dir, "data", "ca.pem")
	for name, c := range map[string]struct {
		path, origin string
		refused      int
	}{
		"no page":   {"chat", "", 0},
		"our page":  {"chat", "https://shop.example", 0},
		"same host": {"chat", fmt.Sprintf("https://localhost:%d", edge), 403},
		"evil page": {"chat", "https://evil.example", 403},
		"closed":    {"closed", "https://shop.example", 501},
	} {
		began := time.Now()
		options := map[string]any{"url": fmt.Sprintf("wss://localhost:%d/%s", edge, c.path), "ca": ca, "messages": 500, "seconds": 0}
		if c.origin != "" {
			options["origin"] = c.origin
		}
		got := startWS(t, node, modules, options).whole()
		if got.Refused != c.refused || got.Open == (c.refused != 0) || c.refused == 0 && got.Echoed != 500 || c.refused != 0 && got.Decision == "" {
			t.Errorf("%s: got %+v", name, got)
		}
		if c.refused == 0 {
			recordedWS(t, r, began)
		}
	}
}
