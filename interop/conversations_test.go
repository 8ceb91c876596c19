package interop

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// conversationMesh is nginx twice: spoken to by HTTP/1.1, and by HTTP/2. Its
// callers are curl and this test.
const conversationMesh = `
trust_domain: interop.example
services:
  shopper:
    runs_as: {exe: %[1]s}
    calls: [{to: site, listen: "127.0.0.1:%[2]d"}, {to: site2, listen: "127.0.0.1:%[3]d"}]
  tester:
    runs_as: {exe: %[4]s}
    calls: [{to: site, listen: "127.0.0.1:%[5]d"}, {to: site2, listen: "127.0.0.1:%[6]d"}]
  site:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[7]d", app: %[8]q}
    allow:
      - {from: [shopper, tester], paths: [/public/**]}
  site2:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[9]d", app: %[10]q, app_protocol: http2}
    allow:
      - {from: [shopper, tester], paths: [/public/**]}
gateway:
  edge:
    listen: 127.0.0.1:%[11]d
    tls: {mesh_ca: {hosts: [localhost]}}
    routes:
      - {match: {path: /public/**}, to: site, require: public}
`

// startConversations runs the mesh; ports are those of shopper's and of tester's
// calls, to HTTP/1.1 and to HTTP/2, and the gateway's.
func startConversations(t *testing.T, server nginx) (r *running, ports [5]int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range ports {
		ports[i] = freePort(t)
	}
	return start(t, fmt.Sprintf(conversationMesh, need(t, "curl"), ports[0], ports[1], self, ports[2], ports[3],
		freePort(t), server.http1, freePort(t), server.http2, ports[4])), ports
}

// A conversation is curl at one end and nginx at the other, in some versions of HTTP.
type conversation struct {
	*testing.T
	mesh     *running
	nginx    nginx
	streams  *streams
	version  string // curl's option
	app      string // what nginx is spoken to by
	site     string // the URL of curl's outbound listener
	own      string // and of the test's
	requests int
}

// TestConversations holds every shape of an HTTP exchange to what it would be
// without Parley: from curl by HTTP/1.1 and HTTP/2, to nginx by both.
func TestConversations(t *testing.T) {
	streams := newStreams(t)
	server := startNginxFor(t, streams.addr)
	r, ports := startConversations(t, server)
	for _, client := range []string{"--http1.1", "--http2-prior-knowledge"} {
		for i, app := range []string{"to http1", "to http2"} {
			t.Run(client[2:]+" "+app, func(t *testing.T) {
				site := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d/", port) }
				for name, f := range map[string]func(*conversation){
					"large bodies": (*conversation).largeBodies, "unknown length": (*conversation).unknownLength, "head": (*conversation).head,
					"not modified": (*conversation).notModified, "range": (*conversation).byteRange, "expect": (*conversation).expect,
					"too large": (*conversation).tooLarge, "denied upload": (*conversation).deniedUpload,
					"streamed response": (*conversation).streamedResponse, "streamed request": (*conversation).streamedRequest,
					"broken response": (*conversation).brokenResponse,
				} {
					t.Run(name, func(t *testing.T) {
						f(&conversation{T: t, mesh: r.in(t), nginx: server, streams: streams, version: client, app: app, site: site(ports[i]), own: site(ports[2+i])})
					})
				}
			})
		}
	}
}

// id is a request id that no other exchange has.
func (c *conversation) id() string {
	c.requests++
	return fmt.Sprintf("%x-%d", sha256.Sum256([]byte(c.Name())), c.requests)[48:]
}

// curl runs curl to its end, whatever that is; its output has heads and body.
func (c *conversation) curl(id, path string, args ...string) (string, error) {
	out, err := c.command(id, path, args...).CombinedOutput()
	return string(out), err
}

func (c *conversation) command(id, path string, args ...string) *exec.Cmd {
	args = append([]string{c.version, "-s", "-S", "--max-time", "30", "-H", "X-Request-Id: " + id}, args...)
	return exec.Command(need(c.T, "curl"), append(args, c.site+path)...)
}

// want runs curl, which has to end well, and holds both ends' events to the
// status and to the sizes of the bodies; -1 is any.
func (c *conversation) want(status, in, out int, path string, args ...string) string {
	c.Helper()
	id := c.id()
	got, err := c.curl(id, path, args...)
	if err != nil {
		c.Fatalf("curl: %v\n%.2000s", err, got)
	}
	c.recorded(id, status, in, out, "")
	return got
}

func (c *conversation) recorded(id string, status, in, out int, failure string) {
	c.Helper()
	o, i := c.mesh.both(id)
	for _, e := range []*audit.Event{o, i} {
		if e.Call.Status != status || e.Outcome != audit.Allowed || e.Call.Error != failure ||
			in >= 0 && e.Call.BytesIn != int64(in) || out >= 0 && e.Call.BytesOut != int64(out) {
			c.Errorf("on record at the %s end: %s, status %d, %q, %d bytes in, %d out; want status %d, %q, %d in, %d out",
				e.Call.End, e.Outcome, e.Call.Status, e.Call.Error, e.Call.BytesIn, e.Call.BytesOut, status, failure, in, out)
		}
	}
}

// random is a file of n bytes that no compression or repetition helps with.
func (c *conversation) random(n int) (name string, content []byte) {
	c.Helper()
	content = make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(content) // never fails
	name = filepath.Join(shortDir(c.T), "body")
	if err := os.WriteFile(name, content, 0o644); err != nil {
		c.Fatal(err)
	}
	return name, content
}

// serve puts content where nginx has it as path.
func (c *conversation) serve(content []byte) (path string) {
	c.Helper()
	name := fmt.Sprintf("served-%x", sha256.Sum256(content))
	if err := os.WriteFile(filepath.Join(c.nginx.files, name), content, 0o644); err != nil {
		c.Fatal(err)
	}
	return "public/files/" + name
}

// arrived compares what nginx kept with what was sent.
func (c *conversation) arrived(name string, want []byte) {
	c.Helper()
	got, err := os.ReadFile(filepath.Join(c.nginx.files, name))
	if err != nil || !bytes.Equal(got, want) {
		c.Errorf("nginx has %d bytes, %v; %d were sent", len(got), err, len(want))
	}
}

func (c *conversation) largeBodies() {
	file, content := c.random(24 << 20)
	name := c.id()
	c.want(http.StatusCreated, len(content), -1, "public/files/"+name, "-T", file)
	c.arrived(name, content)
	back := filepath.Join(shortDir(c.T), "back")
	c.want(http.StatusOK, 0, len(content), "public/files/"+name, "-o", back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
		c.Errorf("curl has %d bytes, %v; nginx has %d", len(got), err, len(content))
	}
}

// unknownLength is chunked by HTTP/1.1 and without a length by HTTP/2.
func (c *conversation) unknownLength() {
	_, content := c.random(3 << 20)
	name, id := c.id(), c.id()
	cmd := c.command(id, "public/files/"+name, "-T", "-")
	cmd.Stdin = bytes.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.Fatalf("curl: %v\n%s", err, out)
	}
	c.arrived(name, content)
	c.recorded(id, http.StatusCreated, len(content), -1, "")
}

func (c *conversation) head() {
	_, content := c.random(70 << 10)
	got := c.want(http.StatusOK, 0, 0, c.serve(content), "-I")
	if header(got, "Content-Length") != fmt.Sprint(len(content)) || header(got, "Etag") == "" {
		c.Errorf("curl got:\n%s", got)
	}
}

// notModified has no body whatever its head says, and the connection goes on.
func (c *conversation) notModified() {
	_, content := c.random(5000)
	path := c.serve(content)
	tag := header(c.want(http.StatusOK, 0, 0, path, "-I"), "Etag")
	got := c.want(http.StatusNotModified, 0, 0, path, "-i", "-H", "If-None-Match: "+tag)
	if !strings.Contains(got, " 304") || header(got, "Etag") != tag {
		c.Errorf("curl got:\n%s", got)
	}
	if c.http2() {
		return // this curl fails to use such a connection twice, without Parley as well
	}
	id := c.id()
	got, err := c.curl(id, path, "-H", "If-None-Match: "+tag, "-w", "%{http_code} %{num_connects}\n", c.site+path,
		"--next", c.version, "-s", "-S", "-o", os.DevNull, "-w", "%{http_code} %{num_connects} %{size_download}\n")
	if want := fmt.Sprintf("304 1\n200 0 %d\n", len(content)); err != nil || got != want {
		c.Errorf("curl saw %q, %v; want %q", got, err, want)
	}
}

func (c *conversation) byteRange() {
	file, content := c.random(9000)
	back := file + ".back"
	c.want(http.StatusPartialContent, 0, 100, c.serve(content), "-r", "8000-8099", "-o", back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content[8000:8100]) {
		c.Errorf("curl has %d other bytes, %v", len(got), err)
	}
}

// expect has curl wait for nginx's 100 before it sends the body. By HTTP/2 nginx
// sends none, and then the upload must not take long.
func (c *conversation) expect() {
	file, content := c.random(200 << 10)
	limit := 4 * time.Second
	if !c.http2() && c.app == "to http1" {
		limit = 700 * time.Millisecond // it is passed on at once
	}
	var took time.Duration
	for range 3 { // of which one goes undisturbed by what else the machine does
		name, began := c.id(), time.Now()
		got := c.want(http.StatusCreated, len(content), -1, "public/files/"+name, "-v", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-T", file)
		if took = time.Since(began); !strings.Contains(got, " 100") || !strings.Contains(got, " 201") {
			c.Errorf("curl saw:\n%s", got)
		}
		c.arrived(name, content)
		if took < limit {
			return
		}
	}
	c.Errorf("it took %s", took)
}

// tooLarge is refused by nginx before a byte of the body was sent.
func (c *conversation) tooLarge() {
	if c.http2() {
		c.earlyAnswer("public/small/"+c.id(), http.StatusRequestEntityTooLarge)
		return
	}
	file, _ := c.random(200 << 10)
	got := c.want(http.StatusRequestEntityTooLarge, 0, -1, "public/small/"+c.id(), "-i", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-T", file)
	if !strings.Contains(got, " 413") || strings.Contains(got, " 100") || !strings.Contains(strings.ToLower(got), "nginx") {
		c.Errorf("curl got:\n%s", got)
	}
}

// deniedUpload is refused by policy, without asking for the body, and nginx sees
// none of it.
func (c *conversation) deniedUpload() {
	if c.http2() {
		c.earlyAnswer("private", http.StatusForbidden)
		return
	}
	file, _ := c.random(200 << 10)
	id := c.id()
	got, err := c.curl(id, "private", "-i", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-T", file)
	if err != nil || !strings.Contains(got, " 403") || strings.Contains(got, " 100") || strings.Contains(got, "nginx") {
		c.Errorf("curl got: %v\n%s", err, got)
	}
	_, in := c.mesh.both(id)
	if in.Outcome != audit.Denied || in.ID != header(got, "Parley-Decision") {
		c.Errorf("on record: %s %s; curl has decision %q", in.Outcome, in.ID, header(got, "Parley-Decision"))
	}
}

func (c *conversation) http2() bool { return c.version == "--http2-prior-knowledge" }

// earlyAnswer wants an answer that comes while the body is being sent, by HTTP/2
// from net/http: this curl, when a server ends a stream whose body it did not wait
// for, fails, without Parley as well.
func (c *conversation) earlyAnswer(path string, status int) {
	c.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	id := c.id()
	req, err := http.NewRequest(http.MethodPut, c.own+path, bytes.NewReader(make([]byte, 8<<20)))
	if err != nil {
		c.Fatal(err)
	}
	req.Header.Set("X-Request-Id", id)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		c.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status || len(body) == 0 {
		c.Errorf("got %s with %d bytes, %v", resp.Status, len(body), err)
	}
	out, in := c.mesh.both(id)
	if out.Call.Status != status || in.Call.Status != status || out.Call.BytesIn >= 8<<20 || in.Call.BytesIn >= 8<<20 {
		c.Errorf("on record: %+v and %+v", out.Call, in.Call)
	}
}

// streamedResponse comes piece by piece: curl has each before the application
// makes the next.
func (c *conversation) streamedResponse() {
	id := c.id()
	cmd := c.command(id, "public/stream/down", "-N")
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	buf := make([]byte, 100)
	for i := range 5 {
		c.streams.down <- fmt.Sprintf("piece %d\n", i)
		n, err := out.Read(buf)
		if want := fmt.Sprintf("piece %d\n", i); err != nil || string(buf[:n]) != want {
			c.Fatalf("curl has %q, %v; want %q", buf[:n], err, want)
		}
	}
	c.streams.down <- ""
	if err := cmd.Wait(); err != nil {
		c.Errorf("curl: %v", err)
	}
	c.recorded(id, http.StatusOK, 0, 5*len("piece 0\n"), "")
}

// streamedRequest comes piece by piece: the application has each before curl
// gets the next.
func (c *conversation) streamedRequest() {
	id := c.id()
	cmd := c.command(id, "public/stream/up", "-N", "-T", "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	for i := range 5 {
		want := fmt.Sprintf("piece %d\n", i)
		if _, err := io.WriteString(in, want); err != nil {
			c.Fatal(err)
		}
		select {
		case got := <-c.streams.up:
			if got != want {
				c.Fatalf("the application has %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			c.Fatalf("the application did not get piece %d", i)
		}
	}
	in.Close()
	if got := <-c.streams.up; got != "" {
		c.Errorf("the application got %q at the end", got)
	}
	if err := cmd.Wait(); err != nil {
		c.Errorf("curl: %v", err)
	}
	c.recorded(id, http.StatusOK, 5*len("piece 0\n"), -1, "")
}

// brokenResponse ends in the middle: curl must not take it for the whole.
func (c *conversation) brokenResponse() {
	id := c.id()
	got, err := c.curl(id, "public/stream/broken")
	if err == nil || !strings.Contains(got, "a part") {
		c.Errorf("curl took a broken response for a whole one: %q, %v", got, err)
	}
	c.recorded(id, http.StatusOK, 0, len("a part"), "upstream_closed")
}

// streams is the application behind nginx that streams.
type streams struct {
	addr     string
	down, up chan string // pieces; an empty one is the end
}

func newStreams(t *testing.T) *streams {
	t.Helper()
	s := &streams{down: make(chan string), up: make(chan string, 10)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	server := &http.Server{Handler: s}
	go func() { _ = server.Serve(l) }() // ends with Close
	t.Cleanup(func() { server.Close() })
	return s
}

// ServeHTTP implements http.Handler.
func (s *streams) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	switch r.URL.Path {
	case "/public/stream/down":
		for piece := range s.down {
			if piece == "" {
				return
			}
			_, _ = io.WriteString(w, piece) // a client that left shows at the other end
			_ = control.Flush()             // as above
		}
	case "/public/stream/up":
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				s.up <- string(buf[:n])
			}
			if err != nil {
				s.up <- ""
				return
			}
		}
	case "/public/stream/broken":
		_, _ = io.WriteString(w, "a part") // as above
		_ = control.Flush()                // as above
		time.Sleep(100 * time.Millisecond) // so that the part is on its way
		panic(http.ErrAbortHandler)
	}
}

// TestManyConnections is one curl with many connections, many curls with one, and
// one curl with many HTTP/2 streams on one connection to the gateway.
func TestManyConnections(t *testing.T) {
	curl := need(t, "curl")
	r, ports := startConversations(t, startNginxFor(t, "127.0.0.1:1"))
	const calls = 600
	parallel := []string{"-s", "-S", "--no-progress-meter", "-o", os.DevNull, "-w", "%{http_code}\n", "-Z", "--parallel-max", "100"}
	url := fmt.Sprintf("http://127.0.0.1:%d/public/", ports[0])
	t.Run("connections", func(t *testing.T) {
		got := run(t, curl, append(parallel, "--http1.1", fmt.Sprintf("%sconnections/[1-%d]", url, calls))...)
		r.in(t).answered(got, "outbound", "/public/connections/", calls)
	})
	t.Run("streams", func(t *testing.T) {
		edge := fmt.Sprintf("https://localhost:%d/public/streams/[1-%d]", ports[4], calls)
		got := run(t, curl, append(parallel, "--http2", "--cacert", filepath.Join(r.dir, "data", "ca.pem"), edge)...)
		r.in(t).answered(got, "edge", "/public/streams/", calls)
	})
	t.Run("processes", func(t *testing.T) {
		got := make(chan string)
		const processes, each = 30, calls / 30
		for p := range processes {
			go func() {
				said, err := exec.Command(curl, "-s", "-S", "-o", os.DevNull, "-w", "%{http_code}\n", fmt.Sprintf("%sprocesses/%d/[1-%d]", url, p, each)).CombinedOutput()
				if err != nil {
					t.Errorf("curl: %v\n%s", err, said)
				}
				got <- string(said)
			}()
		}
		all := ""
		for range processes {
			all += <-got
		}
		r.in(t).answered(all, "outbound", "/public/processes/", calls)
	})
}

// answered holds curl to n answers of 200, and the record to exactly one event at
// each end of each call whose path begins with prefix.
func (r *running) answered(codes, near, prefix string, n int) {
	r.t.Helper()
	if got := strings.Count(codes, "200\n"); got != n || len(codes) != 4*n {
		r.t.Errorf("%d of %d calls were answered with 200:\n%.2000s", got, n, codes)
	}
	ends := map[string]map[string]int{}
	r.until("every call is on record", func() bool {
		ends = map[string]map[string]int{near: {}, "inbound": {}}
		for _, e := range r.list(api.ListEventsParams{To: "site", Outcome: string(audit.Allowed)}) {
			if e.Call != nil && strings.HasPrefix(e.Call.Path, prefix) {
				ends[e.Call.End][e.Call.Path]++
			}
		}
		return len(ends[near]) >= n && len(ends["inbound"]) >= n
	})
	for end, paths := range ends {
		for path, times := range paths {
			if times != 1 {
				r.t.Errorf("%s is on record %d times at the %s end", path, times, end)
			}
		}
		if len(paths) != n {
			r.t.Errorf("%d calls on record at the %s end, want %d", len(paths), end, n)
		}
	}
}
