package node_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/node/agent"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A renaming control plane says by names where services are called.
type renaming struct{ agent.ControlPlane }

func (r renaming) Watch(ctx context.Context, seen uint64) (link.Update, error) {
	u, err := r.ControlPlane.Watch(ctx, seen)
	if err != nil {
		return u, err
	}
	s := *u.Snapshot
	s.Services = slices.Clone(s.Services)
	for i := range s.Services {
		v := &s.Services[i]
		v.Outbound = slices.Clone(v.Outbound)
		for j := range v.Outbound {
			_, port, _ := net.SplitHostPort(v.Outbound[j].Endpoints[0])
			v.Outbound[j].Places = snapshot.Places{Names: []string{"localhost:" + port, "nowhere.invalid:1"}}
		}
	}
	u.Snapshot = &s
	return u, nil
}

// A name is looked up by the caller's agent with the system's resolver before the
// first call, and one that cannot be is told to people.
func TestEndpointsByName(t *testing.T) {
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
services:
  web: {runs_as: {exe: %q}, calls: [{to: site, listen: %q}]}
  site: {runs_as: {exe: /nobody/there}, inbound: {listen: "127.0.0.1:%s", app: %q}, allow: [{from: [web]}]}
`, self, out, freePort(t), site.Listener.Addr())
	cfg := config(t, shortDir(t), text)
	cfg.Wire = func(p agent.ControlPlane) agent.ControlPlane { return renaming{p} }
	m := startWith(t, cfg)
	m.apply(text)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + out + "/")
	if err != nil {
		t.Fatal(err)
	}
	if _ = resp.Body.Close(); resp.StatusCode != http.StatusOK {
		t.Errorf("the first call: %d", resp.StatusCode)
	}
	soon(t, "the name that leads nowhere is a finding", func() bool {
		st, err := m.api.Status(t.Context())
		return err == nil && slices.ContainsFunc(st.Findings, func(f api.Finding) bool {
			return f.Code == string(fault.EndpointName) && strings.Contains(f.Message, "nowhere.invalid:1") && f.Help == "on this host: getent ahosts nowhere.invalid"
		})
	})
}
