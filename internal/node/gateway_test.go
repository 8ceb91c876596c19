package node_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/parleymesh/parley"
	"github.com/parleymesh/parley/internal/control/api"
)

const gatewayMesh = `
trust_domain: node.example
leaf_ttl: %s
services:
  site:
    runs_as: {exe: /nobody/there}
    inbound: {listen: %q, app: %q}
    allow: [{from: [gateway/edge]}]
gateway:
  edge:
    listen: %q
    tls: {mesh_ca: {hosts: [%s]}}
    routes:
      - match: {path: /**}
        to: site
        require: {any: [{api_key: {scopes: [site.read]}}]}
`

// A gateway's certificate is for the hosts of the revision that runs, not of the
// one at which it was last renewed.
func TestGatewayAnswersForItsNewHostsAtOnce(t *testing.T) {
	t.Parallel()
	listen, app, edge := freeAddr(t), freeAddr(t), freeAddr(t)
	text := func(ttl, hosts string) string { return fmt.Sprintf(gatewayMesh, ttl, listen, app, edge, hosts) }
	m := startNode(t, shortDir(t), text("1h", "one.test"))
	m.apply(text("1h", "one.test"))
	roots := x509.NewCertPool()
	pem, err := m.api.Bundle(t.Context())
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no bundle", err)
	}
	leaf := func(host string) (*x509.Certificate, error) {
		c, err := tls.Dial("tcp", edge, &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS13})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0], nil
	}
	want := func(what, host string, ok bool) *x509.Certificate {
		t.Helper()
		c, err := leaf(host)
		if (err == nil) != ok {
			t.Errorf("%s: %s: %v", what, host, err)
		}
		return c
	}
	first := want("first", "one.test", true)
	want("first", "two.test", false)
	m.apply(text("1h", "one.test, two.test"))
	want("added", "one.test", true)
	second := want("added", "two.test", true)
	m.apply(text("1h", "two.test"))
	want("removed", "one.test", false)
	third := want("removed", "two.test", true)
	m.apply(text("10m", "two.test"))
	fourth := want("shorter", "two.test", true)
	if t.Failed() {
		return
	}
	if first.SerialNumber.Cmp(second.SerialNumber) == 0 || third.NotAfter.Sub(fourth.NotAfter).Minutes() < 45 {
		t.Errorf("ends at %s, and with a shorter life at %s", third.NotAfter, fourth.NotAfter)
	}
	m.apply(text("10m", "two.test") + "# nothing else changed\n")
	if again := want("unchanged", "two.test", true); again != nil && again.SerialNumber.Cmp(fourth.SerialNumber) != 0 {
		t.Error("a certificate was renewed that is as it should be")
	}
}

// A service is told whom its gateway let in, and its sidecar's record says it too,
// under the identities that server and agent have made, before and after the
// gateway's certificate is another.
func TestServiceIsToldWhoCalls(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	site := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		o, err := parley.ReadOrigin(r.Header)
		if o == nil || err != nil {
			seen <- fmt.Sprint("nobody, ", err)
			return
		}
		seen <- o.Name
	}))
	t.Cleanup(site.Close)
	listen, edge := freeAddr(t), freeAddr(t)
	text := func(ttl string) string {
		return fmt.Sprintf(gatewayMesh, ttl, listen, site.Listener.Addr(), edge, "one.test")
	}
	m := startNode(t, shortDir(t), text("1h"))
	m.apply(text("1h"))
	key, err := m.api.CreateKey(t.Context(), api.KeyRequest{Name: "ci", Scopes: []string{"site.read"}})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	pem, err := m.api.Bundle(t.Context())
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no bundle", err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "one.test", MinVersion: tls.VersionTLS13}}
	t.Cleanup(tr.CloseIdleConnections)
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	for _, ttl := range []string{"1h", "10m"} { // another life is another certificate
		m.apply(text(ttl))
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+edge+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"X-Api-Key": {key.Secret}, "Parley-Identity": {"forged"}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("with certificates of %s: %s", ttl, resp.Status)
		}
		if name := <-seen; name != "api_key:"+key.Key.ID {
			t.Errorf("with certificates of %s: told %s", ttl, name)
		}
	}
}

// A service with the SDK and without a sidecar, at an endpoint that the mesh file
// lists, verifies itself whom the gateway let in.
func TestServiceWithTheSDKIsToldWhoCalls(t *testing.T) {
	t.Parallel()
	dir, edge, at := shortDir(t), freeAddr(t), freeAddr(t)
	cfg := config(t, dir, fmt.Sprintf(sdkMesh, executable(t), at, edge))
	m := startWith(t, cfg)
	m.apply(cfg.MeshText)
	w := &parley.Workload{Socket: cfg.Socket, Allow: []string{"gateway/edge"}}
	t.Cleanup(func() { _ = w.Close() })
	l, err := w.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	site := &http.Server{Handler: w.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := parley.CallerFrom(r.Context()); ok && c.Origin != nil {
			fmt.Fprint(w, c.ID, " for ", c.Origin.Name)
		}
	}))}
	go func() { _ = site.Serve(l) }()
	t.Cleanup(func() { _ = site.Close() })
	key, err := m.api.CreateKey(t.Context(), api.KeyRequest{Name: "ci", Scopes: []string{"site.read"}})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	pem, err := m.api.Bundle(t.Context())
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no bundle", err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "one.test", MinVersion: tls.VersionTLS13}}
	t.Cleanup(tr.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+edge+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"X-Api-Key": {key.Secret}, "Parley-Identity": {"forged"}}
	resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if want := "spiffe://node.example/gateway/edge for api_key:" + key.Key.ID; err != nil || string(body) != want {
		t.Errorf("got %s %q, want %q", resp.Status, body, want)
	}
}

const sdkMesh = `
trust_domain: node.example
services:
  site:
    runs_as: {exe: %s}
    endpoints: [%q]
gateway:
  edge:
    listen: %q
    tls: {mesh_ca: {hosts: [one.test]}}
    routes:
      - match: {path: /**}
        to: site
        require: {any: [{api_key: {scopes: [site.read]}}]}
`
