package node_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/node/agent"
)

const partialMesh = `
trust_domain: node.example
services:
  site:
    runs_as: {exe: /nobody/there}
    inbound: {listen: %q, app: %q}
%sgateway:
  edge:
    listen: %q
    tls: {mesh_ca: {hosts: [one.test]}}
    routes:
      - match: {path: "/**"}
        to: site
        require: %s
`

const (
	forAll  = "public"
	forKeys = "{any: [{api_key: {scopes: [admin]}}]}"
)

// A wire tells of an update before the agent has it.
type wire struct {
	agent.ControlPlane
	before func(link.Update)
}

func (w wire) Watch(ctx context.Context, seen uint64) (link.Update, error) {
	u, err := w.ControlPlane.Watch(ctx, seen)
	if err == nil {
		w.before(u)
	}
	return u, err
}

// A revision of which one listener cannot be opened, because its port was taken
// just before, is in force as to the rest: the edge does not go on by the rules of
// the revision before. All who ask are told, and it runs in full as soon as it can.
func TestRevisionThatCannotRunInFull(t *testing.T) {
	t.Parallel()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "the site") }))
	t.Cleanup(site.Close)
	inbound, edge, extra := freeAddr(t), freeAddr(t), freeAddr(t)
	other := fmt.Sprintf("  other:\n    runs_as: {exe: /nobody/too}\n    inbound: {listen: %q, app: \"127.0.0.1:1\"}\n", extra)
	open := fmt.Sprintf(partialMesh, inbound, site.Listener.Addr(), "", edge, forAll)
	tight := fmt.Sprintf(partialMesh, inbound, site.Listener.Addr(), other, edge, forKeys)
	var thief net.Listener
	cfg := config(t, shortDir(t), open)
	cfg.Metrics = freeAddr(t)
	cfg.Wire = func(p agent.ControlPlane) agent.ControlPlane {
		return wire{p, func(u link.Update) {
			if u.Snapshot.Revision == 2 && thief == nil {
				thief, _ = net.Listen("tcp", extra)
			}
		}}
	}
	m := startWith(t, cfg)
	m.apply(open)
	get := func() int { return m.edge(edge) }
	soon(t, "the edge is open to all", func() bool { return get() == http.StatusOK })

	r, err := m.api.Apply(t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: tight})
	if err != nil || r.Revision != 2 || r.Running || r.Fault.Code != string(fault.NotRunning) || !strings.Contains(r.Fault.Message, extra) {
		t.Errorf("%+v, %v", r, err)
	}
	if code := get(); code != http.StatusUnauthorized {
		t.Errorf("without a key the edge answers %d", code)
	}
	s, err := m.api.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(s.Listeners, func(l api.ListenerStatus) bool { return l.Name == "other.inbound" }); i < 0 || s.Listeners[i].State != api.StateFailed || !strings.Contains(s.Listeners[i].Note, extra) {
		t.Errorf("listeners %+v", s.Listeners)
	}
	ask := func(path string) (int, string) {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}).Get("http://" + cfg.Metrics + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	ready := func() int {
		code, _ := ask("/readyz")
		return code
	}
	if code, body := ask("/readyz?verbose"); code != http.StatusServiceUnavailable || !strings.Contains(body, "NO  listener other.inbound: ") || !strings.Contains(body, "ok  certificate of edge\n") {
		t.Errorf("%d %s", code, body)
	}
	if _, body := ask("/metrics"); !strings.Contains(body, `parley_certificate_not_after_timestamp_seconds{identity="spiffe://node.example/site"} 1`) || !strings.Contains(body, "parley_build_info{") {
		t.Error(body)
	}
	if code := ready(); code != http.StatusServiceUnavailable {
		t.Errorf("readyz is %d", code)
	}
	_ = thief.Close()
	soon(t, "the rest runs too", func() bool {
		s, err := m.api.Status(t.Context())
		return err == nil && ready() == http.StatusOK && !slices.ContainsFunc(s.Listeners, func(l api.ListenerStatus) bool { return l.State == api.StateFailed })
	})
	if code := get(); code != http.StatusUnauthorized {
		t.Errorf("without a key the edge answers %d", code)
	}
}

// A gateway's certificate is read before its revision is made.
func TestRevisionWithoutItsCertificate(t *testing.T) {
	t.Parallel()
	inbound, edge := freeAddr(t), freeAddr(t)
	text := fmt.Sprintf(partialMesh, inbound, "127.0.0.1:1", "", edge, forAll)
	m := startNode(t, shortDir(t), text)
	m.apply(text)
	next := strings.Replace(text, "{mesh_ca: {hosts: [one.test]}}", "{cert: /nonexistent/c.pem, key: /nonexistent/k.pem}", 1)
	_, err := m.api.Apply(t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: next})
	if f := fault.All(err); len(f) != 1 || f[0].Code != fault.KeyUnreadable || !strings.Contains(f[0].Message, "gateway edge") || f[0].Hint == "" {
		t.Errorf("got %v", err)
	}
	if s, err := m.api.Status(t.Context()); err != nil || s.Revision != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// edge is how a gateway answers a request without a credential.
func (m *mesh) edge(addr string) int {
	m.t.Helper()
	roots := x509.NewCertPool()
	pem, err := m.api.Bundle(m.t.Context())
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		m.t.Fatal("no bundle", err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Get("https://one.test/secret")
	if err != nil {
		m.t.Log(err)
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
