package interop

import (
	"errors"
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

// nginxConf serves, keeps what is PUT, and passes streams on to an application of
// the test's, by HTTP/1.1 on one port and by HTTP/2 on the other.
const nginxConf = `
daemon off;
user root;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path %[1]s/temp; proxy_temp_path %[1]s/temp; fastcgi_temp_path %[1]s/temp; uwsgi_temp_path %[1]s/temp; scgi_temp_path %[1]s/temp;
  server {
    listen 127.0.0.1:%[2]d;
    listen 127.0.0.1:%[3]d http2;
    location / { return 200 "nginx saw $request_method $request_uri\n"; }
    location /headers { return 200 "forwarded=[$http_x_forwarded_for] spoofed=[$http_x_spiffe_id] decision=[$http_parley_decision]\n"; }
    location /public/files/ { alias %[1]s/files/; dav_methods PUT; client_max_body_size 64m; }
    location /public/small/ { alias %[1]s/files/; dav_methods PUT; client_max_body_size 1k; }
    location /public/stream/ { proxy_pass http://%[4]s; proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off; }
  }
}
`

// An nginx runs until its test ends.
type nginx struct {
	http1, http2 string // its addresses
	files        string // where its files are
}

// startNginx is startNginxFor without an application for streams, by its address.
func startNginx(t *testing.T) string {
	t.Helper()
	return startNginxFor(t, "127.0.0.1:1").http1
}

// startNginxFor runs nginx until the test ends.
func startNginxFor(t *testing.T, streams string) nginx {
	t.Helper()
	program, dir := need(t, "nginx", "/usr/sbin/nginx"), shortDir(t)
	port, port2 := freePort(t), freePort(t)
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, port, port2, streams), 0o644); err != nil {
		t.Fatal(err)
	}
	files := filepath.Join(dir, "files")
	if err := errors.Join(os.Mkdir(files, 0o755), os.Mkdir(filepath.Join(dir, "temp"), 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // fast shutdown
		_ = cmd.Wait()                       // it was told to end
		if log, _ := os.ReadFile(filepath.Join(dir, "error.log")); t.Failed() && len(log) > 0 {
			t.Logf("nginx said:\n%s", log)
		}
	})
	n := nginx{fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("127.0.0.1:%d", port2), files}
	for range 100 {
		if exec.Command(need(t, "curl"), "-s", "-o", "/dev/null", "http://"+n.http1).Run() == nil {
			return n
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("nginx did not answer")
	return nginx{}
}

const nginxMesh = `
trust_domain: interop.example
leaf_ttl: 12s
services:
  shopper:
    runs_as: {exe: %[1]s}
    calls: [{to: site, listen: "127.0.0.1:%[2]d"}]
  site:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[3]d", app: %[4]q}
    allow:
      - {from: [shopper], methods: [GET, POST], paths: [/public/**, /headers]}
`

// TestNginxBehindASidecarCalledWithCurl is the whole request path between two
// programs that know nothing of it.
func TestNginxBehindASidecarCalledWithCurl(t *testing.T) {
	curl, app := need(t, "curl"), startNginx(t)
	out, in := freePort(t), freePort(t)
	r := start(t, fmt.Sprintf(nginxMesh, curl, out, in, app))
	site := fmt.Sprintf("http://127.0.0.1:%d", out)

	for name, args := range map[string][]string{"http1": nil, "http2": {"--http2-prior-knowledge"}} {
		t.Run(name, func(t *testing.T) {
			id := "interop-" + name
			got := run(t, curl, append(args, "-s", "-i", "-H", "X-Request-Id: "+id, site+"/public/a?b=c")...)
			if !strings.Contains(got, "nginx saw GET /public/a?b=c") || !strings.Contains(strings.ToLower(got), "server: nginx") {
				t.Fatalf("curl got:\n%s", got)
			}
			events := r.events(2, api.ListEventsParams{RequestID: id})
			if len(events) != 2 || events[0].Outcome != audit.Allowed || events[1].Outcome != audit.Allowed {
				t.Errorf("%d events, want one at each end", len(events))
			}
		})
	}
	t.Run("denied", func(t *testing.T) {
		got := run(t, curl, "-s", "-i", site+"/private")
		if !strings.Contains(got, " 403 ") || strings.Contains(got, "nginx saw") {
			t.Fatalf("curl got:\n%s", got)
		}
		id := header(got, "Parley-Decision")
		r.until("the refusal is on record", func() bool {
			_, err := r.api.Event(t.Context(), id)
			return err == nil
		})
		why, err := r.parley("why", id)
		if err == nil || !strings.Contains(why, "site.allow[0]") && !strings.Contains(why, "path_not_allowed") {
			t.Errorf("parley why %s: %v\n%s", id, err, why)
		}
	})
	t.Run("spoofed headers", func(t *testing.T) {
		got := run(t, curl, "-s", "-H", "X-Forwarded-For: 1.2.3.4", "-H", "X-SPIFFE-ID: spiffe://evil/x", "-H", "Parley-Decision: x", site+"/headers")
		if strings.Contains(got, "1.2.3.4") || !strings.Contains(got, "spoofed=[]") || !strings.Contains(got, "decision=[]") {
			t.Errorf("nginx got %q", got)
		}
	})
}

// header is a field's value in a response as curl -i prints it.
func header(response, name string) string {
	for line := range strings.Lines(response) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(k, name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// TestOpenSSLWithoutACertificateGetsNoByte judges after the first application read.
func TestOpenSSLWithoutACertificateGetsNoByte(t *testing.T) {
	openssl, app := need(t, "openssl"), startNginx(t)
	in := freePort(t)
	r := start(t, fmt.Sprintf(nginxMesh, need(t, "curl"), freePort(t), in, app))
	cmd := exec.Command(openssl, "s_client", "-connect", fmt.Sprintf("127.0.0.1:%d", in), "-quiet", "-ign_eof")
	cmd.Stdin = strings.NewReader("GET /public/a HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n")
	got, _ := cmd.CombinedOutput() // it ends with an alert
	if strings.Contains(string(got), "nginx") || strings.Contains(string(got), "HTTP/1.1") {
		t.Errorf("openssl read:\n%s", got)
	}
	if !strings.Contains(string(got), "alert") {
		t.Errorf("openssl saw no alert:\n%s", got)
	}
	if e := r.events(1, api.ListEventsParams{Action: string(audit.HandshakeRefused)}); e[0].ID == "" {
		t.Error("the refused handshake has no id")
	}
}
