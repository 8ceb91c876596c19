package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

const clientMesh = `
trust_domain: interop.example
services:
  %[1]s:
    runs_as: {user: nobody}
    calls: [{to: site, listen: %[5]q}, {to: lines, listen: %[6]q}]
  site:
    runs_as: {user: root}
    inbound: {listen: %[2]q, app: %[4]q}
    allow: [{from: [%[1]s]}]
  lines:
    runs_as: {user: root}
    inbound: {listen: %[3]q, app: %[4]q, protocol: tcp}
    allow: [{from: [%[1]s]}]
`

// TestAClientThatLeftIsRefusedAlthoughItHoldsATicket takes a caller's certificate
// and its tickets along, as OpenSSL, removes the caller from the mesh file, and
// puts it back.
func TestAClientThatLeftIsRefusedAlthoughItHoldsATicket(t *testing.T) {
	app := startNginx(t)
	addresses := map[string]string{"http": freeAddress(t), "tcp": freeAddress(t)}
	out, out2 := freeAddress(t), freeAddress(t)
	mesh := func(caller string) string {
		return fmt.Sprintf(clientMesh, caller, addresses["http"], addresses["tcp"], app, out, out2)
	}
	r := start(t, mesh("caller"))
	left := takeSVID(t, r, "spiffe://interop.example/caller")
	for name, address := range addresses {
		t.Run(name, func(t *testing.T) {
			r := r.in(t)
			c := &openSSL{T: t, svid: left, address: address, name: name}
			ticket := filepath.Join(left, name+".ticket")
			served := func(what string, resumed bool, args ...string) {
				t.Helper()
				got := c.ask(args...)
				if !strings.Contains(got, "nginx saw") || strings.Contains(got, "Reused, TLSv1.3") != resumed {
					t.Fatalf("%s, want an answer (resumed: %t):\n%s", what, resumed, got)
				}
			}
			served("first", false, "-sess_out", ticket)
			served("with its ticket", true, "-sess_in", ticket)
			open := c.hold()
			r.apply(mesh("other"))
			for _, what := range []string{"after it left", "after it left, again"} {
				began := time.Now()
				got := c.ask("-sess_in", ticket)
				if strings.Contains(got, "nginx") || !strings.Contains(got, "alert") {
					t.Errorf("%s, want an alert and no byte of nginx:\n%s", what, got)
				}
				e := r.events(1, api.ListEventsParams{Action: string(audit.HandshakeRefused), Since: began})[0]
				if e.Outcome != audit.Denied || e.Caller == nil || e.Caller.ID.String() != "spiffe://interop.example/caller" {
					t.Errorf("%s, on record: %s of %+v", what, e.Outcome, e.Caller)
				}
			}
			select {
			case <-open:
			case <-time.After(5 * time.Second):
				t.Error("the connection that was open is still there")
			}
			r.apply(mesh("caller"))
			served("put back, with its old ticket", false, "-sess_in", ticket, "-sess_out", ticket)
			served("put back, with a new ticket", true, "-sess_in", ticket)
		})
	}
}

// takeSVID is a directory with the key, the chain and the roots of an identity
// of nobody's processes.
func takeSVID(t *testing.T, r *running, id string) (dir string) {
	t.Helper()
	cmd := exec.Command(need(t, "runuser", "/sbin/runuser"), "-u", "nobody", "--", ownClient(t))
	cmd.Dir = "/"
	return takeFrom(t, cmd, r.socket(), id)
}

// takeFrom has cmd, which is this program, take it from a Workload API.
func takeFrom(t *testing.T, cmd *exec.Cmd, socket, id string) (dir string) {
	t.Helper()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PARLEY_INTEROP_ROLE=take", "PARLEY_INTEROP_ID=" + id, "SPIFFE_ENDPOINT_SOCKET=unix://" + socket}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("take %s: %v\n%s", id, err, out)
	}
	var m material
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	dir = shortDir(t)
	for name, text := range map[string][]byte{"chain.pem": m.Chain, "key.pem": m.Key, "roots.pem": m.Roots} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// credential are the options that have OpenSSL present an identity and verify
// the other side.
func credential(svid string) []string {
	chain := filepath.Join(svid, "chain.pem")
	return []string{"-cert", chain, "-cert_chain", chain, "-key", filepath.Join(svid, "key.pem"), "-CAfile", filepath.Join(svid, "roots.pem"), "-tls1_3"}
}

// An openSSL is `openssl s_client` with an identity's certificate.
type openSSL struct {
	*testing.T
	svid, address, name string
	ns                  string // the network namespace that it runs in, "" for this one
}

func (c *openSSL) command(args ...string) *exec.Cmd {
	args = append([]string{"s_client", "-connect", c.address, "-ign_eof", "-nocommands"}, args...)
	if c.name == "http" {
		args = append(args, "-alpn", "http/1.1")
	}
	return inside(c.ns, need(c.T, "openssl"), append(args, credential(c.svid)...)...)
}

// ask sends one request and is all that OpenSSL says and reads until the end.
func (c *openSSL) ask(args ...string) string {
	cmd := c.command(args...)
	cmd.Stdin = strings.NewReader("GET /public/a HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n")
	out, _ := cmd.CombinedOutput() // that it is refused shows in what it says
	return string(out)
}

// hold keeps a connection open, with a first answer read, until the other side
// ends it.
func (c *openSSL) hold() <-chan error {
	c.Helper()
	cmd := c.command()
	in, err := cmd.StdinPipe()
	if err != nil {
		c.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = cmd.Process.Kill() }) // it may have ended
	if _, err := io.WriteString(in, "GET /public/held HTTP/1.1\r\nHost: site\r\n\r\n"); err != nil {
		c.Fatal(err)
	}
	var seen bytes.Buffer
	for buf := make([]byte, 4096); !strings.Contains(seen.String(), "nginx saw"); {
		n, err := out.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			c.Fatalf("the connection to hold ended with %v:\n%s", err, seen.String())
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, _ = io.Copy(io.Discard, out) // until the end, whichever it is
		ended <- cmd.Wait()
	}()
	return ended
}

// serverMesh has inbound listeners that cannot start, because another user has
// their application's port: the service is its own server, and OpenSSL is it.
const serverMesh = `
trust_domain: interop.example
services:
  caller:
    runs_as: {exe: %[1]s}
    calls: [{to: %[2]s, listen: %[4]q}, {to: %[3]s, listen: %[5]q}]
  %[2]s:
    runs_as: {user: nobody}
    inbound: {listen: %[6]q, app: %[8]q}
    allow: [{from: [caller]}]
  %[3]s:
    runs_as: {user: nobody}
    inbound: {listen: %[7]q, app: %[8]q, protocol: tcp}
    allow: [{from: [caller]}]
`

// TestAServerThatLeftIsRefusedAlthoughItsTicketIsHeld is the other direction: a
// sidecar calls a server that keeps its certificate and goes on to resume
// sessions, while its identity leaves the mesh file and comes back.
func TestAServerThatLeftIsRefusedAlthoughItsTicketIsHeld(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	out := map[string]string{"http": freeAddress(t), "tcp": freeAddress(t)}
	in := map[string]string{"http": freeAddress(t), "tcp": freeAddress(t)}
	mesh := func(site, lines string) string {
		return fmt.Sprintf(serverMesh, self, site, lines, out["http"], out["tcp"], in["http"], in["tcp"], held.Addr())
	}
	r := start(t, mesh("site", "lines"), "site.inbound", "lines.inbound")
	for name, c := range map[string]struct {
		service string
		args    []string
		ask     func(address string) string
	}{
		"http": {"site", []string{"-www"}, askHTTP},
		"tcp":  {"lines", []string{"-rev"}, askTCP},
	} {
		t.Run(name, func(t *testing.T) {
			r := r.in(t)
			server := serveOpenSSL(t, takeSVID(t, r, "spiffe://interop.example/"+c.service), c.args...)
			// apply stands aside for as long as Parley looks whether its port is free.
			stop := relay(t, in[name], server)
			apply := func(mesh string) {
				t.Helper()
				stop()
				r.applyBut(mesh)
				stop = relay(t, in[name], server)
			}
			defer func() { stop() }()
			// tried is a call and what is on record of it.
			tried := func() (answer string, e *audit.Event) {
				t.Helper()
				began := time.Now()
				answer = c.ask(out[name])
				return answer, r.events(1, api.ListEventsParams{Action: string(audit.Call), Since: began})[0]
			}
			served := func(what string, resumed bool) {
				t.Helper()
				answer, e := tried()
				if !strings.Contains(answer, "served") || e.UpstreamTLS == nil || e.UpstreamTLS.Resumed != resumed {
					t.Fatalf("%s: got %q, on record %+v; want an answer (resumed: %t)", what, answer, e.UpstreamTLS, resumed)
				}
			}
			served("first", false)
			served("with its ticket", true)
			apply(mesh("site", "lines") + "  bystander: {runs_as: {user: nobody}}\n")
			served("after another one came", false)
			served("with the ticket of that", true)

			refused := func(what string) {
				t.Helper()
				if answer, e := tried(); answer != "refused" || e.Call.Error != "upstream_untrusted" {
					t.Errorf("%s: got %q, on record %q", what, answer, e.Call.Error)
				}
			}
			changed := map[string]string{"site": "site", "lines": "lines", c.service: "another"}
			apply(mesh(changed["site"], changed["lines"]))
			refused("after it left")
			refused("after it left, again")
			apply(mesh(changed["site"], changed["lines"]) + fmt.Sprintf("  %s: {runs_as: {user: nobody}}\n", c.service))
			refused("after it came back, with another in its place")
			apply(mesh("site", "lines"))
			served("put back", false)
			served("put back, with a new ticket", true)
		})
	}
}

// serveOpenSSL runs `openssl s_server` until the test ends and is its address.
func serveOpenSSL(t *testing.T, svid string, args ...string) (address string) {
	t.Helper()
	address = freeAddress(t)
	args = append([]string{"s_server", "-accept", address, "-Verify", "2", "-verify_return_error", "-quiet"}, args...)
	cmd := exec.Command(need(t, "openssl"), append(args, credential(svid)...)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // it was killed
		if t.Failed() {
			t.Logf("openssl s_server said:\n%.4000s", said.String())
		}
	})
	for range 100 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return address
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("openssl s_server does not listen")
	return ""
}

// relay passes the bytes of every connection to address on to server and back,
// until it is stopped.
func relay(t *testing.T, address, server string) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return // stopped
			}
			far, err := net.Dial("tcp", server)
			if err != nil {
				t.Errorf("relay: %v", err)
				near.Close()
				return
			}
			pipe := func(dst, src net.Conn) {
				_, _ = io.Copy(dst, src) // ends with either side
				dst.Close()
				src.Close()
			}
			wg.Go(func() { pipe(near, far) })
			wg.Go(func() { pipe(far, near) })
		}
	})
	return func() {
		l.Close()
		wg.Wait()
	}
}

// askHTTP is "served", "refused" for the answer of Parley's that the service
// cannot be reached, or whatever else came.
func askHTTP(address string) string {
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("http://" + address + "/")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err.Error()
	case resp.StatusCode == http.StatusOK && strings.Contains(string(body), "s_server"):
		return "served"
	case resp.StatusCode == http.StatusBadGateway && resp.Header.Get("Parley-Decision") != "":
		return "refused"
	}
	return resp.Status + string(body)
}

// askTCP is the same by a line that comes back reversed, or a reset.
func askTCP(address string) string {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second)) // otherwise it waits for the test's own
	if _, err := io.WriteString(c, "devres\n"); err != nil {
		return "refused"
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	switch {
	case n > 0:
		return string(buf[:n])
	case strings.Contains(fmt.Sprint(err), "reset"):
		return "refused"
	}
	return fmt.Sprint(err)
}

// freeAddress is freePort as an address.
func freeAddress(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", freePort(t))
}
