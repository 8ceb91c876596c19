package node_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/node/agent"
)

// A parting control plane sees what an agent says when it leaves.
type parting struct {
	agent.ControlPlane
	spread func()

	mu   sync.Mutex // guards last
	last []link.Endpoint
}

func (p *parting) Report(r *link.Report) {
	p.mu.Lock()
	p.last = r.Endpoints
	p.mu.Unlock()
	p.ControlPlane.Report(r)
}

func (p *parting) Spread(ctx context.Context) {
	p.spread()
	p.ControlPlane.Spread(ctx)
}

func (p *parting) announced() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.last)
}

// An agent that stops withdraws its services, and serves them until that is known.
func TestAnAgentWithdrawsBeforeItDrains(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the site") }))
	t.Cleanup(site.Close)
	out := freeAddr(t)
	text := fmt.Sprintf(`
trust_domain: node.example
hosts: {test: {}}
services:
  web: {runs_on: [test], runs_as: {exe: %q}, calls: [{to: site, listen: %q}]}
  site:
    runs_on: [test]
    runs_as: {exe: /nobody/there}
    inbound: {listen: "127.0.0.1:%s", app: %q}
    allow: [{from: [web]}]
`, self, out, freePort(t), site.Listener.Addr())
	cfg := config(t, shortDir(t), text)
	plane, asked := &parting{}, 0
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	call := func() string {
		resp, err := client.Get("http://" + out + "/")
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return fmt.Sprint(resp.StatusCode, " ", string(body))
	}
	plane.spread = func() {
		asked++
		// The caller is on this host and has been told, so there is no endpoint; the
		// listener is open all the same.
		if plane.announced() != 0 {
			t.Errorf("%d endpoints are announced yet", plane.announced())
		}
		if _, err := client.Get("http://" + out + "/"); err != nil {
			t.Errorf("the listeners are closed already: %v", err)
		}
	}
	cfg.Wire = func(p agent.ControlPlane) agent.ControlPlane { plane.ControlPlane = p; return plane }
	m := startWith(t, cfg)
	m.apply(text)
	soon(t, "the call passes", func() bool { return call() == "200 the site" })
	if plane.announced() != 1 {
		t.Errorf("%d endpoints are announced", plane.announced())
	}
	began := time.Now()
	ctx, done := context.WithTimeout(context.Background(), 20*time.Second)
	defer done()
	if err := m.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(began); asked != 1 || took > 4*time.Second {
		t.Errorf("asked %d times, stopped after %s", asked, took)
	}
}

// Where the application is gone the service is withdrawn, and announced again when
// it is back; `parley status` has the endpoint with its reason.
func TestHealthWithdrawsAService(t *testing.T) {
	t.Parallel()
	var sick sync.Map
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, yes := sick.Load("sick"); yes && r.URL.Path == "/healthz" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(site.Close)
	for _, hosts := range []string{"", "hosts: {test: {}}\n"} {
		sick.Delete("sick")
		on := ""
		if hosts != "" {
			on = "runs_on: [test], "
		}
		text := fmt.Sprintf(`
trust_domain: node.example
%sservices:
  site:
    {%sruns_as: {exe: /nobody/there},
     inbound: {listen: "127.0.0.1:%s", app: %q, health: {http: {path: /healthz}, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1}},
     allow: []}
`, hosts, on, freePort(t), site.Listener.Addr())
		m := startWith(t, config(t, shortDir(t), text))
		m.apply(text)
		state := func(want string) {
			t.Helper()
			var got string
			defer func() {
				if t.Failed() {
					t.Log(got)
				}
			}()
			soon(t, "the endpoint is "+want, func() bool {
				st, err := m.api.Status(t.Context())
				if err != nil || len(st.Services) != 1 || len(st.Services[0].Endpoints) != 1 {
					return false
				}
				s, e := st.Services[0], st.Services[0].Endpoints[0]
				got = fmt.Sprintf("%+v", s)
				return string(s.State) == want && string(e.State) == want && e.Host == "test" && (want == "ok") == (e.Note == "")
			})
		}
		state("ok")
		sick.Store("sick", true)
		state("failed")
		sick.Delete("sick")
		state("ok")
	}
}
