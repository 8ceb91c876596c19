package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// However a call ends, it is recorded once at each end.
func TestAborts(t *testing.T) {
	t.Parallel()
	hold, entered := make(chan struct{}), make(chan struct{}, 1)
	t.Cleanup(func() { close(hold) })
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/never":
			entered <- struct{}{}
			select {
			case <-r.Context().Done():
			case <-hold:
			}
		case "/half":
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(make([]byte, 50_000))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/halfchunked":
			_, _ = w.Write(make([]byte, 50_000))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/gone":
			panic(http.ErrAbortHandler)
		case "/early":
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}
	}))
	for _, v := range versions {
		p := newPair(t, pairConfig{protocol: call.HTTP, h2: v.h2, app: app})
		c := client(t, v.client)
		for _, tt := range []struct {
			path, error string
			status      int
			do          func(url string) error
		}{
			{"/never", route.ClientClosed, 0, func(url string) error {
				ctx, cancel := context.WithCancel(context.Background())
				go func() {
					<-entered
					cancel()
				}()
				req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
				_, err := c.Do(req)
				if err == nil {
					return errors.New("answered")
				}
				return nil
			}},
			{"/half", route.UpstreamClosed, 200, broken(c)},
			{"/halfchunked", route.UpstreamClosed, 200, broken(c)},
			{"/gone", route.UpstreamClosed, 502, func(url string) error {
				resp, err := c.Post(url, "text/plain", nil)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				body, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != 502 || !strings.Contains(string(body), "upstream_closed") || strings.Contains(string(body), "127.0.0.1") || strings.Contains(string(body), "EOF") {
					return fmt.Errorf("got %d %s", resp.StatusCode, body)
				}
				return nil
			}},
			{"/early", "", 413, func(url string) error {
				resp, err := c.Post(url, "text/plain", io.MultiReader(bytes.NewReader(make([]byte, 8<<20))))
				if err != nil {
					return nil // the connection may end while we still write
				}
				defer resp.Body.Close()
				if resp.StatusCode != 413 {
					return fmt.Errorf("got %d", resp.StatusCode)
				}
				return nil
			}},
		} {
			t.Run(v.name+" "+tt.path, func(t *testing.T) {
				p.web.gate.Reset()
				p.orders.gate.Reset()
				if err := tt.do(p.url + tt.path); err != nil {
					t.Error(err)
				}
				out, in := p.web.gate.Finished(1)[0], p.orders.gate.Finished(1)[0]
				if tt.path == "/early" {
					return // whoever writes first sees another end; once each is the point
				}
				if in.Outcome.Error != tt.error || in.Outcome.Status != tt.status {
					t.Errorf("inbound recorded %+v", in.Outcome)
				}
				if tt.status == 502 {
					tt.error = "" // for the outbound it is an answer
				}
				if out.Outcome.Error != tt.error || out.Outcome.Status != tt.status {
					t.Errorf("outbound recorded %+v", out.Outcome)
				}
			})
		}
	}
}

// An answer that does not wait for the request's body is sent at once, and the
// connection is not closed right behind it: a client that is still writing could see
// a reset in the answer's place.
func TestEarlyAnswerIsNotOvertaken(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/known" {
			w.Header().Set("Content-Length", "2")
		}
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		if r.URL.Path != "/empty" {
			_, _ = io.WriteString(w, "no")
		}
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, h2: true, app: app})
	open := func(path string) bool {
		c, err := net.Dial("tcp", p.web.addr("web.calls.orders"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n")
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close || resp.ContentLength < 0 {
			t.Fatalf("%s: got %+v", path, resp)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != map[bool]string{true: "", false: "no"}[path == "/empty"] {
			t.Fatalf("%s: got %q, %v", path, body, err)
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = in.ReadByte()
		return errors.Is(err, os.ErrDeadlineExceeded)
	}
	for _, path := range []string{"/empty", "/known"} {
		found := false
		for range 10 { // on a busy machine the time is over before we look
			found = found || open(path)
		}
		if !found {
			t.Errorf("%s: the connection ends with the answer", path)
		}
	}
}

func broken(c *http.Client) func(string) error {
	return func(url string) error {
		resp, err := c.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); err == nil {
			return fmt.Errorf("a broken response ended well after %d bytes", n)
		}
		return nil
	}
}

// A client that leaves while it uploads, a chunk that is none, and a client that
// leaves while it downloads.
func TestClientLeaves(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/down" {
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, app: app})
	for name, tt := range map[string]struct {
		raw    string
		status int
	}{
		"upload":    {"POST /up HTTP/1.1\r\nHost: orders\r\nContent-Length: 1000\r\n\r\nabc", 0},
		"bad chunk": {"POST /up HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nzz\r\n", 400},
		"download":  {"GET /down HTTP/1.1\r\nHost: orders\r\n\r\n", 200},
	} {
		t.Run(name, func(t *testing.T) {
			p.web.gate.Reset()
			p.orders.gate.Reset()
			c, err := net.Dial("tcp", p.web.addr("web.calls.orders"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, tt.raw)
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if name == "upload" { // it is under way at both ends, and nothing is answered
				for began := time.Now(); len(p.orders.gate.Entries()) == 0 && time.Since(began) < 20*time.Second; {
					time.Sleep(5 * time.Millisecond)
				}
			} else if _, err := c.Read(make([]byte, 100)); err != nil {
				t.Error(err)
			}
			_ = c.Close()
			if e := p.web.gate.Finished(1)[0]; e.Outcome.Error != route.ClientClosed || e.Outcome.Status != tt.status {
				t.Errorf("outbound recorded %+v", e.Outcome)
			}
			p.orders.gate.Finished(1)
		})
	}
}

func TestUpstreamFailures(t *testing.T) {
	t.Parallel()
	ask := func(t *testing.T, p *pair, status int, code string) {
		t.Helper()
		p.web.gate.Reset()
		resp, body := get(t, client(t, false), p.url)
		var problem struct{ Code, Caller string }
		if err := json.Unmarshal([]byte(body), &problem); err != nil || resp.StatusCode != status || problem.Code != code || resp.Header.Get("Parley-Decision") == "" {
			t.Errorf("got %d %s, want %d %s", resp.StatusCode, body, status, code)
		}
		if strings.Contains(body, "127.0.0.1") || strings.Contains(body, "tls") || strings.Contains(body, "certificate of") {
			t.Errorf("the client is told of the upstream: %s", body)
		}
		if e := p.web.gate.Finished(1)[0]; e.Outcome.Error != code || e.Outcome.Status != status || e.Outcome.Upstream == "" {
			t.Errorf("recorded %+v", e.Outcome)
		}
	}
	pairOf := func(t *testing.T) *pair { return newPair(t, pairConfig{protocol: call.HTTP, app: "127.0.0.1:1"}) }
	t.Run("nobody there", func(t *testing.T) {
		p := pairOf(t)
		p.out.Services[0].Outbound[0].Endpoints = []string{"127.0.0.1:1"}
		p.web.apply(&p.out)
		ask(t, p, 502, route.UpstreamRefused)
	})
	t.Run("another service", func(t *testing.T) {
		p := pairOf(t)
		p.out.Services[0].Outbound[0].ToID = p.ca.ID(t, "web")
		p.web.apply(&p.out)
		ask(t, p, 502, route.UpstreamUntrusted)
	})
	t.Run("we are refused", func(t *testing.T) {
		p := pairOf(t)
		p.orders.sources[p.ca.ID(t, "orders")].SetTrust(mtlstest.Trust(2, []*mtlstest.CA{p.ca}, p.ca.ID(t, "orders")))
		ask(t, p, 502, route.UpstreamRefused)
	})
	t.Run("no credential", func(t *testing.T) {
		p := pairOf(t)
		p.web.sources[p.ca.ID(t, "web")].SetCredential(nil)
		ask(t, p, 503, route.NoCredential)
	})
	t.Run("expired", func(t *testing.T) {
		p := pairOf(t)
		p.web.sources[p.ca.ID(t, "web")].SetCredential(p.ca.Credential(t, "web", -time.Second))
		ask(t, p, 503, route.NoCredential)
	})
	t.Run("second endpoint", func(t *testing.T) {
		app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
		p := newPair(t, pairConfig{protocol: call.HTTP, app: app})
		p.out.Services[0].Outbound[0].Endpoints = []string{"127.0.0.1:1", p.orders.addr("orders.inbound"), "127.0.0.1:1"}
		p.web.apply(&p.out)
		if _, body := get(t, client(t, false), p.url); body != "ok" {
			t.Errorf("got %q", body)
		}
	})
}

// Renewal of every leaf, and changes of trust, under load: no request fails and
// none travels on a connection whose leaf has ended.
func TestRenewalUnderLoad(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "ok")
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, app: app})
	var late atomic.Int64
	p.orders.gate.Decide(func(r *call.Request) call.Verdict {
		if time.Now().After(r.Peer.NotAfter) {
			late.Add(1)
		}
		return call.Verdict{Allow: true}
	})
	webID, ordersID := p.ca.ID(t, "web"), p.ca.ID(t, "orders")
	stop := make(chan struct{})
	var requests atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		// However slow the machine is, there is load, and a renewal in the midst of it.
		for i := 0; i < 12 || requests.Load() < 100; i++ {
			p.web.sources[webID].SetCredential(p.ca.Credential(t, "web", 3*time.Second))
			p.orders.sources[ordersID].SetCredential(p.ca.Credential(t, "orders", 3*time.Second))
			if i%4 == 3 {
				trust := mtlstest.Trust(uint64(i), []*mtlstest.CA{p.ca}, webID, ordersID)
				for _, s := range []*mtlstest.Source{p.web.sources[webID], p.orders.sources[ordersID]} {
					s.SetTrust(trust)
				}
				p.web.proxy.TrustChanged(trust)
				p.orders.proxy.TrustChanged(trust)
			}
			time.Sleep(250 * time.Millisecond)
		}
		close(stop)
	})
	for i := range 8 {
		c := client(t, i%2 == 0)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := c.Post(p.url, "text/plain", strings.NewReader("body"))
				if err != nil {
					t.Errorf("a request failed: %v", err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("a request failed: %d %s %v", resp.StatusCode, body, err)
					return
				}
				requests.Add(1)
			}
		})
	}
	wg.Wait()
	n := int(requests.Load())
	p.web.gate.Finished(n)
	p.orders.gate.Finished(n)
	if late.Load() > 0 {
		t.Errorf("%d requests came on connections whose leaf had ended", late.Load())
	}
}

// A stream whose client has nothing to say at the moment ends for the client when the
// connection to the upstream is cut, and the record does not blame the client.
func TestSilentStreamIsCut(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	for _, v := range versions {
		if !v.client {
			continue // over HTTP/1.1 a response is read by itself
		}
		t.Run(v.name, func(t *testing.T) {
			p := newPair(t, pairConfig{protocol: call.HTTP, h2: v.h2, app: app})
			body, silent := io.Pipe()
			defer silent.Close()
			resp, err := client(t, true).Post(p.url+"/", "text/plain", body)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			ended := make(chan error, 1)
			go func() {
				_, err := io.ReadAll(resp.Body)
				ended <- err
			}()
			trust := mtlstest.Trust(2, []*mtlstest.CA{p.ca}, p.ca.ID(t, "orders"))
			p.orders.sources[p.ca.ID(t, "orders")].SetTrust(trust)
			p.orders.proxy.TrustChanged(trust)
			select {
			case err := <-ended:
				if err == nil {
					t.Error("it ended well")
				}
			case <-time.After(5 * time.Second):
				t.Fatal("it goes on for the client")
			}
			if e := p.web.gate.Finished(1)[0]; e.Outcome.Error != route.UpstreamClosed {
				t.Errorf("outbound recorded %+v", e.Outcome)
			}
			if e := p.orders.gate.Finished(1)[0]; e.Outcome.Error != route.TrustWithdrawn {
				t.Errorf("inbound recorded %+v", e.Outcome)
			}
		})
	}
}

// A withdrawn caller's HTTP connections are cut, idle ones and busy ones.
func TestWithdrawnHTTP(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			_, _ = w.Write([]byte("x"))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	for _, v := range versions[:2] {
		t.Run(v.name, func(t *testing.T) {
			p := newPair(t, pairConfig{protocol: call.HTTP, app: app})
			c := client(t, v.client)
			resp, err := c.Get(p.url + "/slow")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			trust := mtlstest.Trust(2, []*mtlstest.CA{p.ca}, p.ca.ID(t, "orders"))
			p.orders.sources[p.ca.ID(t, "orders")].SetTrust(trust)
			p.orders.proxy.TrustChanged(trust)
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("the response of a withdrawn caller ended well")
			}
			if e := p.orders.gate.Finished(1)[0]; e.Outcome.Error != route.TrustWithdrawn {
				t.Errorf("inbound recorded %+v", e.Outcome)
			}
			p.web.gate.Finished(1)
		})
	}
}

// An inbound wants mTLS: neither plaintext nor a stranger gets a byte of the
// application.
func TestAroundTheSidecar(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "secret") }))
	p := newPair(t, pairConfig{protocol: call.HTTP, app: app})
	addr := p.orders.addr("orders.inbound")
	if status, body := send(t, addr, "GET / HTTP/1.1\r\n"+tail); status != 0 || strings.Contains(body, "secret") {
		t.Errorf("plaintext got %d %s", status, body)
	}
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n"+tail)
		got, err := io.ReadAll(c)
		if len(got) > 0 || err == nil {
			t.Errorf("without a certificate got %q, %v", got, err)
		}
		_ = c.Close()
	}
	for _, e := range p.orders.gate.Finished(2) {
		if e.Code != route.HandshakeRefused || e.Request.End != call.Inbound || !e.Request.Remote.IsValid() {
			t.Errorf("recorded %+v", e)
		}
	}
}

// A connection is left before the leaf at its other end has ended, too.
func TestServerLeafEnds(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{protocol: call.HTTP, app: okApp(t, "ok")})
	ordersID := p.ca.ID(t, "orders")
	p.orders.sources[ordersID].SetCredential(p.ca.Credential(t, "orders", 3*time.Second))
	c := client(t, false)
	get(t, c, p.url)
	get(t, c, p.url)
	p.orders.sources[ordersID].SetCredential(p.ca.Credential(t, "orders", time.Hour))
	time.Sleep(1100 * time.Millisecond) // two seconds are left at most
	get(t, c, p.url)
	e := p.orders.gate.Finished(3)
	if e[0].Request.TLS.Connection != e[1].Request.TLS.Connection || e[1].Request.TLS.Connection == e[2].Request.TLS.Connection {
		t.Errorf("connections %s %s %s", e[0].Request.TLS.Connection, e[1].Request.TLS.Connection, e[2].Request.TLS.Connection)
	}
}
