package parley_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/workload/xtest"
)

// A log is what a Workload wrote.
type logged struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// process is a Workload as an agent's service called name, of ca.
func process(t *testing.T, ca *mtlstest.CA, name string, allow ...string) (*parley.Workload, *xtest.API, *logged) {
	t.Helper()
	a := xtest.Start(t)
	if ca != nil {
		a.CA = ca
	}
	a.Set(a.Identity(name, 1))
	log := &logged{}
	w := &parley.Workload{Socket: a.Socket, Allow: allow, Logger: slog.New(slog.NewTextHandler(log, nil))}
	t.Cleanup(func() { w.Close() })
	return w, a, log
}

func listen(t *testing.T, w *parley.Workload) net.Listener {
	t.Helper()
	l, err := w.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// hello serves HTTP that names the caller, and says at which address.
func hello(t *testing.T, w *parley.Workload) string {
	t.Helper()
	return serveWith(t, w, func(rw http.ResponseWriter, r *http.Request) {
		c, ok := parley.CallerFrom(r.Context())
		fmt.Fprintf(rw, "%s %s %s %v", r.Proto, c.ID, c.Service, ok)
	})
}

// serveWith serves HTTP by next, and says at which address.
func serveWith(t *testing.T, w *parley.Workload, next http.HandlerFunc) string {
	t.Helper()
	l := listen(t, w)
	srv := &http.Server{Handler: w.Handler(next)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return "https://" + l.Addr().String()
}

func get(t *testing.T, c *http.Client, url string) (status int, body string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestAnAllowedCallerIsServedByName(t *testing.T) {
	t.Parallel()
	orders, a, _ := process(t, nil, "orders", "web")
	web, _, _ := process(t, a.CA, "web")
	url := hello(t, orders)
	status, body, err := get(t, web.HTTPClient("orders"), url)
	if err != nil || status != 200 || body != "HTTP/2.0 spiffe://shop.example/web web true" {
		t.Errorf("got %d %q, %v", status, body, err)
	}
	if orders.ID() != "spiffe://shop.example/orders" {
		t.Errorf("ID is %q", orders.ID())
	}
}

func TestAnyoneElseIsForbidden(t *testing.T) {
	t.Parallel()
	for name, allow := range map[string][]string{
		"nobody is allowed":        nil,
		"somebody else is allowed": {"web", "spiffe://partner.example/mallory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			orders, a, log := process(t, nil, "orders", allow...)
			mallory, _, _ := process(t, a.CA, "mallory")
			url := hello(t, orders)
			// More calls than refusals are answered at once: each gets its answer.
			c := mallory.HTTPClient("orders")
			for range 100 {
				resp, err := c.Get(url + "/secret")
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusForbidden {
					t.Fatalf("got %s %q, %v", resp.Status, body, err)
				}
				var p struct{ Code, Instance, Caller string }
				if err := json.Unmarshal(body, &p); err != nil {
					t.Fatal(err)
				}
				decision, ok := strings.CutPrefix(p.Instance, "urn:parley:decision:")
				if !ok || p.Code != "call_not_allowed" || p.Caller != "spiffe://shop.example/mallory" || !strings.Contains(log.String(), "decision="+decision) {
					t.Fatalf("got %+v, log %s", p, log)
				}
				if got := resp.Header["Parley-Decision"]; len(got) != 1 || got[0] != decision {
					t.Fatalf("the header names decision %q, the body %s", got, decision)
				}
			}
		})
	}
}

// A handler that is served before its workload has started refuses everybody.
func TestNotStartedServesNobody(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	new(parley.Workload).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("served") })).
		ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if id := w.Header().Get("Parley-Decision"); w.Code != http.StatusServiceUnavailable || len(id) != 26 || !strings.Contains(w.Body.String(), id) {
		t.Errorf("got %d %v %s", w.Code, w.Header(), w.Body)
	}
}

func TestAStrangerGetsNothing(t *testing.T) {
	t.Parallel()
	orders, _, log := process(t, nil, "orders", "web")
	stranger, _, _ := process(t, nil, "web") // of another authority with the same name
	url := hello(t, orders)
	if status, body, err := get(t, stranger.HTTPClient("orders"), url); err == nil {
		t.Errorf("got %d %q", status, body)
	}
	cfg := &tls.Config{InsecureSkipVerify: true} // trusts anybody, has no certificate
	c, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), cfg)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("without a certificate: %v", err)
	}
	if !strings.Contains(log.String(), "handshake refused") {
		t.Errorf("log: %s", log)
	}
}

func TestOnlyTheNamedServiceIsCalled(t *testing.T) {
	t.Parallel()
	orders, a, _ := process(t, nil, "orders", "web")
	web, _, _ := process(t, a.CA, "web")
	url := hello(t, orders)
	addr := strings.TrimPrefix(url, "https://")
	if _, _, err := get(t, web.HTTPClient("payments"), url); err == nil {
		t.Error("orders was taken for payments by HTTP")
	}
	if c, err := web.Dial(t.Context(), "payments", addr); err == nil || c != nil {
		t.Error("orders was taken for payments")
	}
	if _, _, err := get(t, web.HTTPClient("orders"), "http://"+addr); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("in the clear: %v", err)
	}
	for _, name := range []string{"", "..", "Orders!", "spiffe://shop.example", "https://orders"} {
		if _, err := web.Dial(t.Context(), name, addr); err == nil {
			t.Errorf("dialled %q", name)
		}
	}
}

func TestRawConnections(t *testing.T) {
	t.Parallel()
	ledger, a, log := process(t, nil, "ledger", "spiffe://shop.example/web")
	web, _, _ := process(t, a.CA, "web")
	mallory, _, _ := process(t, a.CA, "mallory")
	l := listen(t, ledger)
	callers := make(chan parley.Caller, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(callers)
				return
			}
			who, _ := ledger.CallerOf(c)
			callers <- who
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	c, err := mallory.Dial(t.Context(), "ledger", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.Write([]byte("give me everything"))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("mallory read %d bytes, %v", n, err)
	}
	c.Close()

	if c, err = web.Dial(t.Context(), "ledger", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	echo := make([]byte, 4)
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, echo); err != nil || string(echo) != "ping" {
		t.Errorf("got %q, %v", echo, err)
	}
	if _, ok := ledger.CallerOf(c); ok {
		t.Error("ledger takes its caller's end for a call to itself")
	}
	c.Close()
	ledger.Close()
	var got []string
	for who := range callers {
		got = append(got, who.Service)
		if who.Serial == "" {
			t.Error("no serial")
		}
	}
	if len(got) != 1 || got[0] != "web" {
		t.Errorf("callers were %q", got)
	}
	if !strings.Contains(log.String(), "caller=spiffe://shop.example/mallory") {
		t.Errorf("log: %s", log)
	}
}

func TestRenewalDropsNothing(t *testing.T) {
	t.Parallel()
	orders, oa, _ := process(t, nil, "orders", "web")
	web, wa, _ := process(t, oa.CA, "web")
	url, client := hello(t, orders), web.HTTPClient("orders")
	for round := range 4 {
		for range 20 {
			if status, body, err := get(t, client, url); err != nil || status != 200 {
				t.Fatalf("round %d: got %d %q, %v", round, status, body, err)
			}
		}
		oa.Set(oa.Identity("orders", 1))
		wa.Set(wa.Identity("web", 1))
	}
}

func TestHandlerVerifiesByItself(t *testing.T) {
	t.Parallel()
	orders, a, _ := process(t, nil, "orders", "web")
	h := orders.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	serve := func(cs *tls.ConnectionState) (int, string) {
		rec := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.TLS = cs
		h.ServeHTTP(rec, req)
		var p struct{ Code string }
		_ = json.Unmarshal(rec.Body.Bytes(), &p)
		return rec.Code, p.Code
	}
	chain := func(certs []*x509.Certificate) *tls.ConnectionState {
		return &tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: certs}
	}
	web := a.CA.Credential(t, "web", time.Hour).Chain
	if status, code := serve(chain(web)); status != http.StatusServiceUnavailable || code != "not_ready" {
		t.Errorf("before the start: got %d %s", status, code)
	}
	if err := orders.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	soon := a.CA.Credential(t, "web", 1500*time.Millisecond).Chain
	for name, tc := range map[string]struct {
		cs     *tls.ConnectionState
		status int
		code   string
	}{
		"allowed":           {chain(web), 200, ""},
		"allowed once more": {chain(web), 200, ""},
		"about to end":      {chain(soon), 200, ""},
		"no TLS":            {nil, 403, "credentials_required"},
		"no certificate":    {chain(nil), 403, "credentials_required"},
		"not allowed":       {chain(a.CA.Credential(t, "db", time.Hour).Chain), 403, "call_not_allowed"},
		"ended":             {chain(a.CA.Credential(t, "web", -time.Second).Chain), 403, "credential_expired"},
		"another authority": {chain(mtlstest.NewCA(t, "shop.example").Credential(t, "web", time.Hour).Chain), 403, "credentials_invalid"},
		"TLS 1.2":           {&tls.ConnectionState{Version: tls.VersionTLS12, PeerCertificates: web}, 403, "credentials_invalid"},
	} {
		if status, code := serve(tc.cs); status != tc.status || code != tc.code {
			t.Errorf("%s: got %d %s, want %d %s", name, status, code, tc.status, tc.code)
		}
	}
	// What was found good is not good for longer than its certificate.
	time.Sleep(time.Until(soon[0].NotAfter) + 10*time.Millisecond)
	if status, code := serve(chain(soon)); status != 403 || code != "credential_expired" {
		t.Errorf("ended meanwhile: got %d %s", status, code)
	}
	// Nor longer than its authority is trusted.
	a.CA = mtlstest.NewCA(t, "shop.example")
	a.Set(a.Identity("orders", 2))
	for until := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if status, _ := serve(chain(web)); status == 403 {
			break
		}
		if time.Now().After(until) {
			t.Fatal("a caller of an authority that is no longer trusted is still served")
		}
	}
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	for name, tc := range map[string]struct{ socket, want string }{
		"no identity":  {a.URI(), "no service's runs_as matches process"},
		"no agent":     {a.Socket + ".not", "set SPIFFE_ENDPOINT_SOCKET=unix:///"},
		"TCP":          {"tcp://127.0.0.1:1", "Unix socket"},
		"wrong socket": {"run/sock", "unix://"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		w := &parley.Workload{Socket: tc.socket}
		if err := w.Start(ctx); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
		cancel()
	}
	a.Set(a.Identity("orders", 1))
	for _, name := range []string{"", "a b", "../web", "spiffe://shop.example", "*"} {
		w := &parley.Workload{Socket: a.Socket, Allow: []string{name}}
		if err := w.Start(t.Context()); err == nil {
			t.Errorf("Allow %q was accepted", name)
		}
		w.Close()
	}
}

func TestAWaitingStartIsNotSilent(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t) // nobody has an identity
	log := &logged{}
	w := &parley.Workload{Socket: a.Socket, Logger: slog.New(slog.NewTextHandler(log, nil))}
	t.Cleanup(func() { w.Close() })
	started := make(chan error, 1)
	go func() { started <- w.Start(t.Context()) }()
	for end := time.Now().Add(5 * time.Second); !strings.Contains(log.String(), `msg="waiting for an identity"`); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing was said in five seconds: %s", log)
		}
	}
	if !strings.Contains(log.String(), "no service's runs_as matches process") {
		t.Errorf("it does not say what to do: %s", log)
	}
	a.Set(a.Identity("orders", 1)) // and it goes on
	if err := <-started; err != nil {
		t.Error(err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	t.Parallel()
	orders, _, _ := process(t, nil, "orders")
	l := listen(t, orders)
	accepted := make(chan error, 1)
	go func() { _, err := l.Accept(); accepted <- err }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2 {
			if err := orders.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	for what, ch := range map[string]func(){
		"Close": func() { <-done },
		"Accept": func() {
			if err := <-accepted; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v", err)
			}
		},
	} {
		ok := make(chan struct{})
		go func() { ch(); close(ok) }()
		select {
		case <-ok:
		case <-time.After(5 * time.Second):
			t.Fatal(what + " does not return")
		}
	}
	_, listening := orders.Listen("tcp", "127.0.0.1:0")
	_, dialling := orders.Dial(t.Context(), "web", "127.0.0.1:1")
	for what, err := range map[string]error{"Start": orders.Start(t.Context()), "Listen": listening, "Dial": dialling} {
		if !errors.Is(err, parley.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}

func TestCloseEndsAWaitingStart(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t) // nobody has an identity
	w := &parley.Workload{Socket: a.Socket}
	got := make(chan error, 1)
	go func() { got <- w.Start(t.Context()) }()
	time.Sleep(20 * time.Millisecond)
	w.Close()
	select {
	case err := <-got:
		if !errors.Is(err, parley.ErrClosed) {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Start does not return")
	}
}
