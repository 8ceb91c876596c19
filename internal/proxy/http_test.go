package proxy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
)

// Each way an application may speak: the client's version of HTTP, and the app's.
var versions = []struct {
	name       string
	client, h2 bool
}{{"h1", false, false}, {"h2", true, true}, {"h2 to h1", true, false}, {"h1 to h2", false, true}}

func TestHTTP(t *testing.T) {
	t.Parallel()
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			seen := make(chan *http.Request, 1)
			app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				seen <- r.Clone(context.Background())
				w.Header().Set("Parley-Decision", "forged")
				w.Header().Set("X-App", "yes")
				_, _ = io.WriteString(w, "hello")
			}))
			p := newPair(t, pairConfig{protocol: call.HTTP, h2: v.h2, app: app})
			req, _ := http.NewRequest("GET", p.url+"/orders/%37/a%c3%a9?x=1;y=%zz", nil)
			req.Host = "Orders.Shop.Example:8080"
			req.Header = http.Header{
				"X-Request-Id": {"client-made.1"}, "Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
				"Tracestate": {"a=b"}, "X-Forwarded-For": {"6.6.6.6"}, "Parley-Caller": {"root"}, "X-Keep": {"1"}, "Accept-Encoding": {"br"},
			}
			resp, err := client(t, v.client).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != 200 || string(body) != "hello" || resp.Header.Get("X-App") != "yes" || resp.Header.Get("Parley-Decision") != "" {
				t.Fatalf("got %d %q %v", resp.StatusCode, body, resp.Header)
			}
			r := <-seen
			if r.RequestURI != "/orders/7/a%C3%A9?x=1;y=%zz" || r.Host != "orders.shop.example" {
				t.Errorf("the app saw %s on %s", r.RequestURI, r.Host)
			}
			for _, name := range []string{"X-Forwarded-For", "Parley-Caller", "User-Agent"} {
				if name != "User-Agent" && r.Header.Get(name) != "" {
					t.Errorf("the app saw %s: %s", name, r.Header.Get(name))
				}
			}
			if r.Header.Get("X-Keep") != "1" || r.Header.Get("X-Request-Id") != "client-made.1" || r.Header.Get("Tracestate") != "a=b" || r.Header.Get("Accept-Encoding") != "br" {
				t.Errorf("the app saw %v", r.Header)
			}
			out, in := p.web.gate.Finished(1)[0], p.orders.gate.Finished(1)[0]
			checkPair(t, p, out.Request, in.Request)
			if r.Header.Get("Traceparent") != call.FormatTraceParent(in.Request.Trace) {
				t.Errorf("the app's parent is %s", r.Header.Get("Traceparent"))
			}
			if in.Outcome.Status != 200 || in.Outcome.BytesOut != 5 || in.Outcome.Upstream != app || out.Outcome.BytesOut != 5 || out.Outcome.Status != 200 {
				t.Errorf("outcomes %+v %+v", out.Outcome, in.Outcome)
			}
			if out.Outcome.UpstreamTLS.Connection == "" || out.Outcome.UpstreamTLS.Connection != in.Request.TLS.Connection {
				t.Errorf("the ends name the connection %q and %q", out.Outcome.UpstreamTLS.Connection, in.Request.TLS.Connection)
			}
			if want := map[bool]string{false: "http/1.1", true: "h2"}[v.client]; in.Request.TLS.ALPN != want {
				t.Errorf("between the sidecars %s, want the caller's %s", in.Request.TLS.ALPN, want)
			}
		})
	}
}

// checkPair holds the two ends' records of one call against each other.
func checkPair(t *testing.T, p *pair, out, in call.Request) {
	t.Helper()
	if out.End != call.Outbound || out.Listener != "web.calls.orders" || out.Local != "web" || out.Target != "orders" || out.Process.PID != 42 {
		t.Errorf("outbound %+v", out)
	}
	if in.End != call.Inbound || in.Listener != "orders.inbound" || in.Target != "orders" || in.PolicyTarget != "orders" || in.Peer.ID != p.ca.ID(t, "web") {
		t.Errorf("inbound %+v", in)
	}
	if in.Path != "/orders/7/a%C3%A9" || in.Host != "orders.shop.example" || in.Method != "GET" || out.Path != in.Path {
		t.Errorf("inbound decided on %s %s %s", in.Method, in.Host, in.Path)
	}
	if in.RequestID != "client-made.1" || in.Trace.TraceID != "0af7651916cd43dd8448eb211c80319c" || in.Trace.ParentID != out.Trace.SpanID || out.Trace.ParentID != "b7ad6b7169203331" {
		t.Errorf("traces %+v %+v", out.Trace, in.Trace)
	}
	if in.TLS.Version != "1.3" || !in.Remote.IsValid() || in.Start.IsZero() {
		t.Errorf("inbound %+v", in)
	}
}

func TestDenied(t *testing.T) {
	t.Parallel()
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("h2 ", h2), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairConfig{protocol: call.HTTP, app: "127.0.0.1:1"})
			p.orders.gate.Decide(func(r *call.Request) call.Verdict {
				r.Caller.Workload = r.Peer.ID
				return call.Verdict{Status: 403, Code: "call_not_allowed", Reason: "path_not_allowed", Rule: "orders.allow[0]"}
			})
			c := client(t, h2)
			resp, err := c.Post(p.url+"/charge", "text/plain", bytes.NewReader(make([]byte, 100_000)))
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			raw, _ := io.ReadAll(resp.Body)
			if err := json.Unmarshal(raw, &got); err != nil {
				t.Fatalf("%v: %s", err, raw)
			}
			in := p.orders.gate.Finished(1)[0]
			id := in.Request.Verdict.ID
			for k, want := range map[string]any{
				"type": "https://parley.example/problems/call-not-allowed", "title": "This call is not allowed", "status": 403.0,
				"detail": "orders does not accept POST /charge from web.", "instance": "urn:parley:decision:" + id, "code": "call_not_allowed",
				"caller": "spiffe://shop.example/web", "help": "Ask the owner of orders and quote the decision, or run: parley why " + id,
			} {
				if got[k] != want {
					t.Errorf("%s is %v, want %v", k, got[k], want)
				}
			}
			if len(got) != 8 || resp.StatusCode != 403 || resp.Header.Get("Content-Type") != "application/problem+json" ||
				resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Parley-Decision") != id {
				t.Errorf("%d %v %s", resp.StatusCode, resp.Header, raw)
			}
			if strings.Contains(string(raw), "allow[0]") || strings.Contains(string(raw), "127.0.0.1") {
				t.Errorf("the denial tells too much: %s", raw)
			}
			if in.Outcome.Status != 403 || in.Outcome.BytesOut != int64(len(raw)) {
				t.Errorf("recorded %+v", in.Outcome)
			}
			req, _ := http.NewRequest("GET", p.url+"/charge", nil)
			req.Header.Set("Accept", "text/html, */*")
			resp, err = c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			raw, _ = io.ReadAll(resp.Body)
			if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") || !strings.Contains(string(raw), "parley why ID") {
				t.Errorf("%s: %s", ct, raw)
			}
			if out := p.web.gate.Finished(2)[0]; out.Outcome.Status != 403 || out.Outcome.Error != "" {
				t.Errorf("outbound recorded %+v", out.Outcome)
			}
		})
	}
}

// The record is there before the response ends: whoever read the whole response
// finds the outcome reported at both ends.
func TestRecordedBeforeTheEnd(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 300_000)
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/known":
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			_, _ = io.WriteString(w, big)
		case "/chunked":
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, big)
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.WriteHeader(304)
		case "/empty":
		case "/trailer":
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "x")
			w.Header().Set("X-Sum", "7")
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		}
	}))
	for _, v := range versions {
		p := newPair(t, pairConfig{protocol: call.HTTP, h2: v.h2, app: app})
		c := client(t, v.client)
		for _, tt := range []struct {
			method, path string
			bytes        int64
		}{{"GET", "/known", 300_000}, {"GET", "/chunked", 300_000}, {"GET", "/204", 0}, {"GET", "/304", 0}, {"GET", "/empty", 0}, {"HEAD", "/known", 0}, {"GET", "/trailer", 1}} {
			t.Run(v.name+" "+tt.method+tt.path, func(t *testing.T) {
				p.web.gate.Reset()
				p.orders.gate.Reset()
				req, _ := http.NewRequest(tt.method, p.url+tt.path, nil)
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, resp.Body)
				if err != nil || n != tt.bytes {
					t.Fatalf("read %d bytes, %v", n, err)
				}
				out, in := p.web.gate.Entries(), p.orders.gate.Entries()
				if len(out) != 1 || len(in) != 1 || !out[0].Done || !in[0].Done {
					t.Fatalf("the response has ended and the records are %+v %+v", out, in)
				}
				if out[0].Outcome.BytesOut != tt.bytes || in[0].Outcome.Status != resp.StatusCode {
					t.Errorf("recorded %+v %+v", out[0].Outcome, in[0].Outcome)
				}
				if tt.path == "/trailer" && (resp.Trailer.Get("X-Sum") != "7" || resp.Trailer.Get("Grpc-Status") != "0") {
					t.Errorf("trailers %v", resp.Trailer)
				}
				if tt.method == "HEAD" && resp.ContentLength != 300_000 {
					t.Errorf("HEAD says %d bytes", resp.ContentLength)
				}
			})
		}
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			_ = http.NewResponseController(w).EnableFullDuplex()
			if r.ContentLength >= 0 {
				w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
			}
			_, _ = io.Copy(w, r.Body)
		case "/trailer":
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, r.Trailer.Get("X-Sum"))
		case "/stream": // answers each chunk as it comes
			_ = http.NewResponseController(w).EnableFullDuplex()
			buf := make([]byte, 100)
			for {
				n, err := r.Body.Read(buf)
				_, _ = w.Write(buf[:n])
				w.(http.Flusher).Flush()
				if err != nil {
					return
				}
			}
		}
	}))
	body := make([]byte, 3<<20)
	_, _ = rand.Read(body)
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairConfig{protocol: call.HTTP, h2: v.h2, app: app})
			c := client(t, v.client)
			for name, r := range map[string]io.Reader{"known": bytes.NewReader(body), "chunked": io.MultiReader(bytes.NewReader(body))} {
				resp, err := c.Post(p.url+"/echo", "application/octet-stream", r)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil || !bytes.Equal(got, body) {
					t.Fatalf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			for _, e := range append(p.web.gate.Finished(2), p.orders.gate.Finished(2)...) {
				if e.Outcome.BytesIn != int64(len(body)) || e.Outcome.BytesOut != int64(len(body)) || e.Outcome.Error != "" {
					t.Errorf("recorded %+v", e.Outcome)
				}
			}
			trailed, _ := http.NewRequest("POST", p.url+"/trailer", io.MultiReader(strings.NewReader("x")))
			trailed.Trailer = http.Header{"X-Sum": {"9"}}
			resp, err := c.Do(trailed)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := io.ReadAll(resp.Body); string(got) != "9" {
				t.Errorf("the app's trailer is %q", got)
			}
			expect, _ := http.NewRequest("POST", p.url+"/echo", bytes.NewReader(body[:100]))
			expect.Header.Set("Expect", "100-continue")
			start := time.Now()
			resp, err = c.Do(expect)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := io.ReadAll(resp.Body); !bytes.Equal(got, body[:100]) || time.Since(start) > 2*time.Second {
				t.Errorf("100-continue: %d bytes after %v", len(got), time.Since(start))
			}
			testStream(t, c, p.url+"/stream")
		})
	}
}

// testStream: what one side says is answered before it says more.
func testStream(t *testing.T, c *http.Client, url string) {
	t.Helper()
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", url, pr)
	type result struct {
		resp *http.Response
		err  error
	}
	answered := make(chan result, 1)
	go func() {
		resp, err := c.Do(req)
		answered <- result{resp, err}
	}()
	_, _ = pw.Write([]byte("one"))
	r := <-answered
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.resp.Body.Close()
	buf := make([]byte, 3)
	for _, word := range []string{"one", "two", "end"} {
		if word != "one" {
			_, _ = pw.Write([]byte(word))
		}
		if _, err := io.ReadFull(r.resp.Body, buf); err != nil || string(buf) != word {
			t.Fatalf("got %q, %v", buf, err)
		}
	}
	_ = pw.Close()
	if rest, err := io.ReadAll(r.resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("at the end %q, %v", rest, err)
	}
}
