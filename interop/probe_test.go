package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/workload"
	workloadtest "github.com/parleymesh/parley/internal/workload/xtest"
)

const probeMesh = `
trust_domain: interop.example
services:
  shopper:
    runs_as: {exe: %[1]s}
    calls: [{to: site, listen: "127.0.0.1:%[2]d"}]
  site:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[3]d", app: %[4]q, probe: {path: /healthz}}
    allow:
      - {from: [shopper]}
`

// nginxMTLS wants a certificate of the mesh's CA, and no Parley.
const nginxMTLS = `
daemon off;
user root;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path %[1]s/temp; proxy_temp_path %[1]s/temp; fastcgi_temp_path %[1]s/temp; uwsgi_temp_path %[1]s/temp; scgi_temp_path %[1]s/temp;
  server {
    listen 127.0.0.1:%[2]d ssl;
    ssl_certificate %[3]s/site.pem; ssl_certificate_key %[3]s/site.key;
    ssl_client_certificate %[3]s/root.pem; ssl_verify_client on; ssl_verify_depth 3;
    location / { return 200 "nginx let it in\n"; }
  }
}
`

// An issued is a certificate with its key.
type issued struct {
	chain []*x509.Certificate
	key   *ecdsa.PrivateKey
}

// write makes NAME.pem and NAME.key in dir.
func (c issued) write(t *testing.T, dir, name string) {
	t.Helper()
	var chain []byte
	for _, x := range c.chain {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.Raw})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{name + ".pem": chain, name + ".key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// An issuer is the running mesh's own CA: whoever has its directory has it.
type issuer struct {
	*ca.Authority
	t *testing.T
}

func (r *running) issuer() issuer {
	r.t.Helper()
	dir := filepath.Join(r.dir, "data")
	master, _, err := keys.OpenMaster(filepath.Join(dir, "master.key"))
	if err != nil {
		r.t.Fatal(err)
	}
	td, err := identity.ParseTrustDomain("interop.example")
	if err != nil {
		r.t.Fatal(err)
	}
	a, _, err := ca.Open(ca.Config{Dir: filepath.Join(dir, "ca"), TrustDomain: td, Master: master, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		r.t.Fatal(err)
	}
	return issuer{a, r.t}
}

// of is a certificate for the service called name: a good one, or one for probes.
func (i issuer) of(name string, probe bool) issued {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	id, err := identity.ServiceID(i.Bundle().TrustDomain, name)
	if err != nil {
		i.t.Fatal(err)
	}
	var chain []*x509.Certificate
	if probe {
		chain, err = i.SignProbe(ca.ProbeTemplate{ID: id, PublicKey: key.Public()})
	} else {
		chain, err = i.SignX509(ca.Template{ID: id, PublicKey: key.Public(), TTL: time.Hour, DNSNames: []string{"localhost"}})
	}
	if err != nil {
		i.t.Fatal(err)
	}
	return issued{chain, key}
}

// TestProbeCertificates: a certificate of `parley verify` is worth nothing to whoever
// gets hold of it, wherever it is shown, while a service's own is let in at the same
// place.
func TestProbeCertificates(t *testing.T) {
	curl := need(t, "curl")
	var asked atomic.Int64
	app := listenHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		fmt.Fprintln(w, "the site saw", r.URL.Path)
	}))
	out, in := freePort(t), freePort(t)
	r := start(t, fmt.Sprintf(probeMesh, curl, out, in, app))
	i, dir := r.issuer(), shortDir(t)
	good, probe, site := i.of("shopper", false), i.of("shopper", true), i.of("site", false)
	good.write(t, dir, "good")
	probe.write(t, dir, "probe")
	site.write(t, dir, "site")
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Root().Raw})
	if err := os.WriteFile(filepath.Join(dir, "root.pem"), root, 0o644); err != nil {
		t.Fatal(err)
	}
	// call is what curl gets with a certificate.
	call := func(name, url string, args ...string) string {
		args = append(args, "-s", "-S", "-k", "--max-time", "10", "--cert", filepath.Join(dir, name+".pem"), "--key", filepath.Join(dir, name+".key"), url)
		said, _ := exec.Command(curl, args...).CombinedOutput() // that it failed is in what it says
		return string(said)
	}

	t.Run("openssl verify", func(t *testing.T) {
		for name, want := range map[string]string{"good": ": OK", "probe": "critical extension"} {
			said, _ := exec.Command(need(t, "openssl"), "verify", "-CAfile", filepath.Join(dir, "root.pem"), "-untrusted", filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".pem")).CombinedOutput()
			if !strings.Contains(string(said), want) {
				t.Errorf("%s: %s", name, said)
			}
		}
	})
	t.Run("nginx with the bundle", func(t *testing.T) {
		url := startNginxMTLS(t, dir)
		if got := call("good", url); !strings.Contains(got, "nginx let it in") {
			t.Fatalf("a service's own certificate: %s", got)
		}
		for range 3 {
			if got := call("probe", url); strings.Contains(got, "nginx let it in") || !strings.Contains(got, "400") && !strings.Contains(got, "alert") {
				t.Errorf("a probe's certificate: %s", got)
			}
		}
	})
	t.Run("a sidecar, by curl", func(t *testing.T) {
		url := fmt.Sprintf("https://localhost:%d/healthz", in)
		if got := call("good", url); !strings.Contains(got, "the site saw /healthz") {
			t.Fatalf("a service's own certificate: %s", got)
		}
		before := asked.Load()
		for _, args := range [][]string{nil, {"--http1.1"}, {"--http2"}, {"--no-alpn"}} {
			if got := call("probe", url, args...); !strings.Contains(got, "alert") {
				t.Errorf("%v: %s", args, got)
			}
		}
		if n := asked.Load(); n != before {
			t.Errorf("the application was asked %d times", n-before)
		}
		var events []*audit.Event
		r.until("all four refusals are on record, the repeated ones as a count", func() bool {
			n := uint64(0)
			events = r.list(api.ListEventsParams{Action: string(audit.HandshakeRefused)})
			for _, e := range events {
				if n++; e.Repeated != nil {
					n += e.Repeated.Count
				}
			}
			return n == 4
		})
		for _, e := range events {
			if e.Reason != "probe_certificate" {
				t.Errorf("recorded as %s: %s", e.Reason, e.Message)
			}
		}
	})
	t.Run("a sidecar, by the SDK", func(t *testing.T) {
		url := fmt.Sprintf("https://localhost:%d/healthz", in)
		if body, err := ask(t, i, good, url); err != nil || !strings.Contains(body, "the site saw") {
			t.Fatalf("a service's own certificate: %q, %v", body, err)
		}
		before := asked.Load()
		if body, err := ask(t, i, probe, url); err == nil {
			t.Errorf("a probe's certificate: %q", body)
		}
		if n := asked.Load(); n != before {
			t.Errorf("the application was asked %d times", n-before)
		}
	})
	t.Run("the SDK, by curl", func(t *testing.T) {
		w := &parley.Workload{Socket: workloadOf(t, i, site), Allow: []string{"shopper"}}
		t.Cleanup(func() { _ = w.Close() })
		l, err := w.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: w.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "the SDK let it in") }))}
		go func() { _ = server.Serve(l) }()
		t.Cleanup(func() { _ = server.Close() })
		url := "https://" + l.Addr().String()
		if got := call("good", url); !strings.Contains(got, "the SDK let it in") {
			t.Fatalf("a service's own certificate: %s", got)
		}
		for range 3 {
			if got := call("probe", url); !strings.Contains(got, "alert") {
				t.Errorf("a probe's certificate: %s", got)
			}
		}
	})
	t.Run("parley verify", func(t *testing.T) {
		before := asked.Load()
		said, err := r.parley("verify")
		if err != nil || !strings.Contains(said, "PASS") {
			t.Errorf("%v\n%s", err, said)
		}
		// The control is the one request that the mesh file names.
		if n := asked.Load() - before; n != 1 {
			t.Errorf("the application was asked %d times", n)
		}
	})
}

// startNginxMTLS runs nginx with the files in dir until the test ends.
func startNginxMTLS(t *testing.T, dir string) (url string) {
	t.Helper()
	program, own, port := need(t, "nginx", "/usr/sbin/nginx"), shortDir(t), freePort(t)
	conf := filepath.Join(own, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxMTLS, own, port, dir), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(own, "temp"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-p", own, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // fast shutdown
		_ = cmd.Wait()                       // it was told to end
	})
	url = fmt.Sprintf("https://localhost:%d/", port)
	for range 100 {
		if exec.Command(need(t, "curl"), "-s", "-k", "-o", "/dev/null", url).Run() == nil {
			return url
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("nginx did not answer")
	return ""
}

// listenHTTP serves h until the test ends.
func listenHTTP(t *testing.T, h http.Handler) string {
	t.Helper()
	port := freePort(t)
	s := &http.Server{Addr: fmt.Sprintf("127.0.0.1:%d", port), Handler: h}
	served := make(chan error, 1)
	go func() { served <- s.ListenAndServe() }()
	t.Cleanup(func() { _ = s.Close(); <-served })
	return s.Addr
}

// workloadOf is the socket of a Workload API that gives everybody c.
func workloadOf(t *testing.T, i issuer, c issued) string {
	t.Helper()
	cred, err := identity.NewCredential(c.chain, c.key)
	if err != nil {
		t.Fatal(err)
	}
	td := i.Bundle().TrustDomain
	trust := &identity.Trust{Epoch: 1, Bundles: map[identity.TrustDomain]*identity.Bundle{td: i.Bundle()}, AnyMember: true}
	w := workloadtest.Start(t)
	w.Set(workload.Identity{Source: mtlstest.NewSource(cred, trust), ID: cred.ID})
	return w.Socket
}

// ask is what a client with the SDK gets of site at url, with c as its certificate.
func ask(t *testing.T, i issuer, c issued, url string) (string, error) {
	t.Helper()
	w := &parley.Workload{Socket: workloadOf(t, i, c)}
	defer w.Close()
	resp, err := w.HTTPClient("site").Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
