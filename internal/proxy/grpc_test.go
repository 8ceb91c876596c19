package proxy_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/proxy/xtest"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A stream that its server ends while its client goes on ends at once: with
// nothing but trailers, after its header, and after a message.
func TestServerEndsStreamFirst(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_, _ = io.ReadFull(r.Body, make([]byte, 3))
		status := "Grpc-Status"
		switch r.URL.Path {
		case "/message":
			_, _ = io.WriteString(w, "answer")
			fallthrough
		case "/header":
			_ = http.NewResponseController(w).Flush()
			status = http.TrailerPrefix + status
		}
		w.Header().Set(status, "5")
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, h2: true, app: app})
	for path, want := range map[string]string{"/trailers": "", "/header": "", "/message": "answer"} {
		t.Run(path, func(t *testing.T) {
			p.web.gate.Reset()
			p.orders.gate.Reset()
			pr, pw := io.Pipe()
			defer pw.Close()
			req, _ := http.NewRequest("POST", p.url+path, pr)
			req.Header.Set("Content-Type", "application/grpc")
			go func() { _, _ = io.WriteString(pw, "one") }()
			began := time.Now()
			resp, err := client(t, true).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || string(body) != want || resp.Header.Get("Grpc-Status")+resp.Trailer.Get("Grpc-Status") != "5" {
				t.Errorf("got %q, %v, %v, %v", body, err, resp.Header, resp.Trailer)
			}
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("the end came after %s", d)
			}
			p.web.gate.Finished(1)
			p.orders.gate.Finished(1)
		})
	}
}

// rpc is the answer to a call of gRPC, read to its end, with the status of it.
func rpc(t *testing.T, c *http.Client, url string, body io.Reader, fields ...string) (resp *http.Response, content, status string) {
	t.Helper()
	req, _ := http.NewRequest("POST", url, body)
	req.Header = http.Header{"Content-Type": {"application/grpc+proto"}, "Te": {"trailers"}, "Grpc-Timeout": {"9S"}}
	for i := 0; i < len(fields); i += 2 {
		req.Header[fields[i]] = []string{fields[i+1]}
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(raw), resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status")
}

// What is refused or fails is told to a client of gRPC as gRPC has it, with the
// decision and nothing of rules; and recorded as it was told.
func TestGRPCRefused(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, h2: true, app: "127.0.0.1:1"})
	c := client(t, true)
	deny := func(r *call.Request) call.Verdict {
		r.Caller.Workload = r.Peer.ID
		return call.Verdict{Status: 403, Code: "call_not_allowed", Reason: "path_not_allowed", Rule: "orders.allow[0]"}
	}
	for _, tt := range []struct {
		name   string
		decide func(*call.Request) call.Verdict
		fields []string
		status int
		says   string
		code   string // of a refused form, recorded by the caller's end alone
	}{
		{"denied", deny, nil, call.GRPCPermissionDenied, "orders does not accept POST /shop.Orders/Get from web. Decision ID", ""},
		{"not ready", func(*call.Request) call.Verdict { return call.Verdict{Status: 503, Code: "not_ready"} }, nil, call.GRPCUnavailable, "no configuration yet", ""},
		{"application gone", nil, nil, call.GRPCUnavailable, "could not be reached", ""},
		{"malformed", nil, []string{"X_Auth", "root"}, call.GRPCInternal, "header field is ambiguous", "header_refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p.web.gate.Reset()
			p.orders.gate.Reset()
			p.orders.gate.Decide(tt.decide)
			resp, body, status := rpc(t, c, p.url+"/shop.Orders/Get", strings.NewReader("\x00\x00\x00\x00\x00"), tt.fields...)
			message, id := resp.Header.Get("Grpc-Message"), resp.Header.Get("Parley-Decision")
			if resp.StatusCode != 200 || body != "" || status != fmt.Sprint(tt.status) || resp.Header.Get("Content-Type") != "application/grpc" || len(resp.Trailer) > 0 {
				t.Errorf("got %d %q, status %s, %v", resp.StatusCode, body, status, resp.Header)
			}
			if !strings.Contains(message, tt.says) || id == "" || !strings.HasSuffix(message, id) || strings.Contains(message, "allow[0]") || strings.Contains(message, "127.0.0.1") {
				t.Errorf("decision %s: %s", id, message)
			}
			out := p.web.gate.Finished(1)[0]
			if tt.code != "" {
				if out.Code != tt.code || !out.Request.GRPC {
					t.Errorf("recorded %+v", out)
				}
				return
			}
			in := p.orders.gate.Finished(1)[0]
			for _, e := range []call.Outcome{out.Outcome, in.Outcome} {
				if e.Status != 200 || e.GRPC == nil || *e.GRPC != tt.status {
					t.Errorf("recorded %+v", e)
				}
			}
			if in.Request.Verdict.ID != id || in.Outcome.BytesOut != 0 {
				t.Errorf("recorded %+v", in)
			}
		})
	}
	p.orders.gate.Decide(deny)
	for _, other := range []string{"application/grpc-web+proto", "application/json", "application/grpcx"} {
		if resp, _, status := rpc(t, c, p.url+"/shop.Orders/Get", nil, "Content-Type", other); resp.StatusCode != 403 || status != "" {
			t.Errorf("%s is answered %d, status %q", other, resp.StatusCode, status)
		}
	}
	p.web.setAttest(func(string, net.Conn) (call.Process, error) { return call.Process{}, errNotService })
	if resp, _, status := rpc(t, client(t, true), p.url+"/shop.Orders/Get", nil); resp.StatusCode != 200 || status != "7" {
		t.Errorf("a foreign process is answered %d, status %q", resp.StatusCode, status)
	}
}

// At an edge the client learns the same, and nothing of the services behind it.
func TestGRPCAtEdge(t *testing.T) {
	t.Parallel()
	e := newEdge(t, "127.0.0.1:1", true)
	e.snap.Gateways[0].Routes[0].Methods = nil
	e.gw.apply(&e.snap)
	decide := func(status int, code string) func(r *call.Request) call.Verdict {
		return func(r *call.Request) call.Verdict {
			r.Caller.Workload = r.Peer.ID
			return call.Verdict{Allow: status == 0, Status: status, Code: code}
		}
	}
	for _, tt := range []struct {
		name       string
		gw, orders func(*call.Request) call.Verdict
		status     string
	}{
		{"no key", decide(401, "credentials_required"), decide(0, ""), "16"},
		{"no route", decide(404, "route_not_found"), decide(0, ""), "12"},
		{"denied behind", decide(0, ""), decide(403, "call_not_allowed"), "7"},
		{"gone behind", decide(0, ""), decide(0, ""), "14"},
	} {
		e.gw.gate.Reset()
		e.orders.gate.Reset()
		e.gw.gate.Decide(tt.gw)
		e.orders.gate.Decide(tt.orders)
		resp, _, status := rpc(t, e.c, e.url+"/orders/Get", nil)
		message := resp.Header.Get("Grpc-Message")
		if resp.StatusCode != 200 || status != tt.status || message == "" || strings.Contains(message, "shop.example") || strings.Contains(message, "gateway") || strings.Contains(message, "from edge") {
			t.Errorf("%s: got %d, status %s, %v", tt.name, resp.StatusCode, status, resp.Header)
		}
		last := e.gw.gate.Finished(1)[0].Request.Verdict.ID
		if behind := e.orders.gate.Entries(); len(behind) > 0 {
			last = behind[0].Request.Verdict.ID
		}
		if resp.Header.Get("Parley-Decision") != last || !strings.Contains(message, last) {
			t.Errorf("%s: without decision %s: %v", tt.name, last, resp.Header)
		}
	}
}

// The status of a call that was let through is on record, wherever it stands in
// the response, and everything that the application said arrives.
func TestGRPCStatusRecorded(t *testing.T) {
	t.Parallel()
	seen := make(chan http.Header, 1)
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Clone()
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("X_initial", "1")
		switch r.URL.Path {
		case "/trailers":
			w.Header().Set("Grpc-Status", "5")
		case "/message":
			_, _ = io.WriteString(w, "answer")
			for name, value := range map[string]string{"Grpc-Status": "0", "X-Request-Id": "mine", "X_trailing-Bin": "AAE", "Parley-Decision": "forged", "Set-Cookie": "a=b"} {
				w.Header().Set(http.TrailerPrefix+name, value)
			}
		case "/none":
			_, _ = io.WriteString(w, "answer")
		case "/nonsense":
			w.Header().Set("Grpc-Status", "-5 <script>")
		}
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, h2: true, app: app})
	for path, want := range map[string]string{"/trailers": "5", "/message": "0", "/none": "none", "/nonsense": "none"} {
		t.Run(path, func(t *testing.T) {
			p.web.gate.Reset()
			p.orders.gate.Reset()
			resp, body, _ := rpc(t, client(t, true), p.url+path, strings.NewReader("x"))
			if h := <-seen; h.Get("Grpc-Timeout") != "9S" || h.Get("Te") != "trailers" {
				t.Errorf("the application saw %v", h)
			}
			if path == "/message" {
				tr := resp.Trailer
				if body != "answer" || tr.Get("X-Request-Id") != "mine" || len(tr["X_trailing-Bin"]) != 1 || tr.Get("Parley-Decision")+tr.Get("Set-Cookie") != "" {
					t.Errorf("got %q, %v", body, tr)
				}
			}
			for _, e := range append(p.web.gate.Finished(1), p.orders.gate.Finished(1)...) {
				got := "none"
				if e.Outcome.GRPC != nil {
					got = fmt.Sprint(*e.Outcome.GRPC)
				}
				if got != want || e.Outcome.Status != 200 || e.Outcome.Error != "" {
					t.Errorf("recorded %s, %+v", got, e.Outcome)
				}
			}
		})
	}
}

// arriving closes arrived when the head of a response for path is there.
type arriving struct {
	http.RoundTripper
	path    string
	arrived chan struct{}
}

func (a arriving) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := a.RoundTripper.RoundTrip(r)
	if r.URL.Path == a.path {
		close(a.arrived)
	}
	return resp, err
}

// A stream whose server breaks off ends with a status that says so; one whose
// client leaves is cancelled at its server.
func TestGRPCBroken(t *testing.T) {
	t.Parallel()
	cancelled, arrived := make(chan struct{}), make(chan struct{})
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		if r.URL.Path != "/late" {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
		}
		switch r.URL.Path {
		case "/waits":
			<-r.Context().Done()
			close(cancelled)
		case "/late", "/later":
			time.Sleep(60 * time.Millisecond)
		case "/gone":
			<-arrived // what was flushed has left the server only then
			_ = r.Context().Value(http.ServerContextKey).(*http.Server).Close()
		}
		panic(http.ErrAbortHandler)
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, h2: true, app: app})
	c := client(t, true)
	c.Transport = arriving{c.Transport, "/gone", arrived}
	broken := func(path, timeout, wantBody, wantStatus, wantError string) {
		t.Helper()
		p.orders.gate.Reset()
		p.web.gate.Reset()
		resp, body, status := rpc(t, c, p.url+path, nil, "Grpc-Timeout", timeout)
		in, out := p.orders.gate.Finished(1)[0], p.web.gate.Finished(1)[0]
		id, fields := in.Request.Verdict.ID, resp.Trailer
		if wantBody == "" {
			fields = resp.Header
		}
		if body != wantBody || status != wantStatus || fields.Get("Parley-Decision") != id || !strings.HasSuffix(fields.Get("Grpc-Message"), id) {
			t.Errorf("%s: got %q, %v %v", path, body, resp.Header, resp.Trailer)
		}
		if in.Outcome.Error != wantError || fmt.Sprint(*in.Outcome.GRPC, *out.Outcome.GRPC) != status+" "+status || in.Outcome.Status != 200 {
			t.Errorf("%s: recorded %+v %+v", path, in.Outcome, out.Outcome)
		}
	}
	broken("/breaks", "9S", "half", "13", route.UpstreamClosed)
	broken("/later", "50m", "half", "4", route.UpstreamTimeout)
	broken("/late", "50m", "", "4", route.UpstreamTimeout)
	broken("/late", "9S", "", "13", route.UpstreamClosed)

	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "POST", p.url+"/waits", nil)
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-cancelled:
	case <-time.After(5 * time.Second):
		t.Error("the server was not told")
	}
	for _, e := range []xtest.Entry{p.orders.gate.Finished(2)[1], p.web.gate.Finished(2)[1]} {
		if e.Outcome.Error != route.ClientClosed || e.Outcome.GRPC != nil {
			t.Errorf("recorded %+v", e.Outcome)
		}
	}
	broken("/gone", "9S", "half", "14", route.UpstreamClosed)
}

// A stream whose server does not read keeps up none of the others that share its
// connections. It moves much, and so not beside the tests that measure time.
func TestStalledStream(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stalled" {
			<-release
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, h2: true, app: app})
	c := client(t, true)
	c.Timeout = 0
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var stalled sync.WaitGroup
	defer stalled.Wait()
	defer cancel()
	const size = 16 << 20
	sent := new(atomic.Int64)
	for range 2 {
		req, _ := http.NewRequestWithContext(ctx, "POST", p.url+"/stalled", &counted{left: size, sent: sent})
		req.Header.Set("Content-Type", "application/grpc")
		stalled.Go(func() {
			if resp, err := c.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	// Until nothing more of them goes anywhere.
	for before := int64(-1); before != sent.Load() || before == 0; time.Sleep(200 * time.Millisecond) {
		before = sent.Load()
	}
	c.Timeout = 5 * time.Second
	if _, body, _ := rpc(t, c, p.url+"/other", bytes.NewReader(make([]byte, 2<<20))); body != fmt.Sprint(2<<20) {
		t.Errorf("got %q", body)
	}
	if n := sent.Load(); n == 2*size {
		t.Error("the stalled streams do not stall")
	}
}

// counted is left bytes that are counted as they are taken.
type counted struct {
	left int
	sent *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), c.left)
	c.left -= n
	c.sent.Add(int64(n))
	return n, nil
}

// Renewal, a change of trust and the removal of the listener leave a stream that
// is under way alone; the client is told not to begin another one.
func TestStreamOutlivesRenewalAndDrain(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_ = http.NewResponseController(w).Flush()
		buf := make([]byte, 3)
		for {
			if _, err := io.ReadFull(r.Body, buf); err != nil {
				break
			}
			_, _ = w.Write(buf)
			_ = http.NewResponseController(w).Flush()
		}
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, h2: true, app: app})
	c := client(t, true)
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", p.url+"/stream", pr)
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	echo := func(word string) {
		t.Helper()
		buf := make([]byte, 3)
		if _, err := io.WriteString(pw, word); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != word {
			t.Fatalf("got %q, %v", buf, err)
		}
	}
	echo("one")
	webID, ordersID := p.ca.ID(t, "web"), p.ca.ID(t, "orders")
	p.web.sources[webID].SetCredential(p.ca.Credential(t, "web", time.Hour))
	p.orders.sources[ordersID].SetCredential(p.ca.Credential(t, "orders", time.Hour))
	same := mtlstest.Trust(2, []*mtlstest.CA{p.ca}, webID, ordersID)
	for _, h := range []*house{p.web, p.orders} {
		for _, s := range h.sources {
			s.SetTrust(same)
		}
		h.proxy.TrustChanged(same)
	}
	echo("two")
	// Another call goes by the new leaves, and the stream by the old ones.
	if _, _, status := rpc(t, client(t, true), p.url+"/other", nil); status != "0" {
		t.Errorf("another call: status %q", status)
	}
	entries := p.orders.gate.Entries()
	if entries[0].Request.Peer.Serial == entries[1].Request.Peer.Serial {
		t.Error("another call goes by the old leaf")
	}
	echo("six")
	p.orders.apply(&snapshot.Snapshot{}) // drains
	p.web.apply(&snapshot.Snapshot{})
	echo("end")
	if _, err := client(t, true).Post(p.url, "application/grpc", nil); err == nil {
		t.Error("a removed listener takes a call")
	}
	_ = pw.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("at the end %q, %v, %v", rest, err, resp.Trailer)
	}
	if e := p.orders.gate.Finished(2)[0]; e.Outcome.Error != "" || *e.Outcome.GRPC != 0 {
		t.Errorf("recorded %+v", e.Outcome)
	}
}

// A client of HTTP/2 is told that its connection takes no more requests (GOAWAY, RFC
// 9113 section 6.8) while one is under way.
func TestDrainSaysGoAway(t *testing.T) {
	t.Parallel()
	entered, hold := make(chan struct{}), make(chan struct{})
	defer close(hold)
	app := httpApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(entered)
		<-hold
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, app: app})
	c := p.dial(t)
	const goAway, endStreamAndHeaders = 7, 5
	_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"+
		"\x00\x00\x0b\x01"+string(rune(endStreamAndHeaders))+"\x00\x00\x00\x01"+"\x82\x86\x84\x01\x06orders") // GET http / orders
	<-entered
	p.web.apply(&snapshot.Snapshot{})
	for head := make([]byte, 9); ; {
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatalf("no GOAWAY: %v", err)
		}
		if head[3] == goAway {
			return
		}
		if _, err := io.CopyN(io.Discard, c, int64(head[0])<<16|int64(head[1])<<8|int64(head[2])); err != nil {
			t.Fatal(err)
		}
	}
}
