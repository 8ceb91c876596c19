package proxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
)

// A wire is an application that keeps every byte of the one request that it
// reads from a connection, and whatever came behind it, and answers 200.
type wire struct {
	mu   sync.Mutex // guards seen
	seen []string
}

func (w *wire) serve(c net.Conn) {
	var raw bytes.Buffer
	req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &raw)))
	if err == nil {
		// The body too: closing with unread bytes would be a reset.
		_, err = io.Copy(io.Discard, req.Body)
	}
	if raw.Len() == 0 {
		return
	}
	w.mu.Lock()
	w.seen = append(w.seen, raw.String())
	w.mu.Unlock()
	if err == nil {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	}
}

func (w *wire) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// send writes raw to addr and returns the status and the whole answer.
func send(t *testing.T, addr, raw string) (int, string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, raw)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

const tail = "Host: orders\r\nConnection: close\r\n\r\n"

// What is ambiguous is refused before it reaches the application, and recorded.
func TestRefusedOnTheWire(t *testing.T) {
	t.Parallel()
	app := &wire{}
	p := newPair(t, pairConfig{protocol: call.HTTP, app: tcpApp(t, "tcp", app.serve)})
	addr := p.web.addr("web.calls.orders")
	for name, tt := range map[string]struct {
		raw    string
		status int
		code   string // empty: net/http itself refuses, before the proxy sees a request
	}{
		"underscore":           {"GET / HTTP/1.1\r\nX_Auth_User: root\r\n" + tail, 400, "header_refused"},
		"underscore forwarded": {"GET / HTTP/1.1\r\nX_Forwarded_For: 1.1.1.1\r\n" + tail, 400, "header_refused"},
		"connection names one": {"GET / HTTP/1.1\r\nX-Auth-User: root\r\nConnection: X-Auth-User\r\nHost: orders\r\n\r\n", 400, "header_refused"},
		"h2c upgrade":          {"GET / HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", 501, "upgrade_refused"},
		"websocket":            {"GET / HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 501, "upgrade_refused"},
		"encoded slash":        {"GET /public/..%2fadmin;x HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"encoded backslash":    {"GET /a%5cb HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"backslash":            {"GET /a\\b HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"NUL":                  {"GET /a%00 HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"double encoding":      {"GET /a%252e HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"dot segment":          {"GET /a/../b HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"encoded dot segment":  {"GET /a/%2E%2e/b HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"empty segment":        {"GET //admin HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"fragment":             {"GET /a#b HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"absolute form":        {"GET http://admin/ HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"asterisk":             {"OPTIONS * HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"raw UTF-8":            {"GET /\xc3\xa9 HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"encoded non-UTF-8":    {"GET /%ff HTTP/1.1\r\n" + tail, 400, "path_refused"},
		"bad percent":          {"GET /%zz HTTP/1.1\r\n" + tail, 400, ""},
		"two Authorization":    {"GET / HTTP/1.1\r\nAuthorization: a\r\nAuthorization: b\r\n" + tail, 400, "header_refused"},
		"trailing dot":         {"GET / HTTP/1.1\r\nHost: orders.\r\n\r\n", 400, "host_refused"},
		"no host value":        {"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "host_refused"},
		"TRACE":                {"TRACE / HTTP/1.1\r\n" + tail, 405, "method_refused"},
		"CONNECT":              {"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n", 405, "method_refused"},
		"lower-case method":    {"get / HTTP/1.1\r\n" + tail, 405, "method_refused"},
		"trailer":              {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For\r\n" + tail + "0\r\n\r\n", 400, "header_refused"},
		"two Host":             {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, ""},
		"no Host":              {"GET / HTTP/1.1\r\n\r\n", 400, ""},
		"two lengths":          {"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n" + tail + "ab", 400, ""},
		"signed length":        {"POST / HTTP/1.1\r\nContent-Length: +1\r\n" + tail + "a", 400, ""},
		"two codings":          {"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n" + tail + "0\r\n\r\n", 501, ""},
		"spaced colon":         {"GET / HTTP/1.1\r\nX-A : b\r\n" + tail, 400, ""},
		"control in value":     {"GET / HTTP/1.1\r\nX-A: b\x01\r\n" + tail, 400, ""},
		"version":              {"GET / HTTP/3.0\r\n" + tail, 505, ""},
		"large header":         {"GET / HTTP/1.1\r\nX-A: " + strings.Repeat("a", 80<<10) + "\r\n" + tail, 431, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p.web.gate.Reset()
			status, body := send(t, addr, tt.raw)
			if status != tt.status {
				t.Errorf("answered %d %s, want %d", status, body, tt.status)
			}
			if seen := app.take(); len(seen) > 0 {
				t.Errorf("the application saw %q", seen)
			}
			entries := p.web.gate.Entries()
			switch {
			case tt.code == "" && len(entries) > 0:
				t.Errorf("recorded %+v", entries)
			case tt.code != "" && (len(entries) != 1 || entries[0].Code != tt.code || entries[0].Err == nil || !strings.Contains(body, entries[0].Request.Verdict.ID)):
				t.Errorf("answered %s, recorded %+v", body, entries)
			}
		})
	}
}

// TestStandardLibraryLimits holds what net/http's parser accepts although a strict
// one would refuse it, and that what is forwarded is canonical all the same: one
// length, one host, CRLF line ends, no folded line. The disagreement that a
// smuggled request needs does not reach the application. An engine that parses by
// itself will refuse these.
func TestStandardLibraryLimits(t *testing.T) {
	t.Parallel()
	app := &wire{}
	p := newPair(t, pairConfig{protocol: call.HTTP, app: tcpApp(t, "tcp", app.serve)})
	addr := p.web.addr("web.calls.orders")
	for name, tt := range map[string]struct{ raw, has string }{
		"length and chunked": {"POST / HTTP/1.1\r\nContent-Length: 30\r\nTransfer-Encoding: chunked\r\n" + tail + "1\r\nx\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", "Transfer-Encoding: chunked\r\n"},
		"same length twice":  {"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n" + tail + "a", "Content-Length: 1\r\n"},
		"bare LF":            {"GET / HTTP/1.1\nX-A: b\nHost: orders\nConnection: close\n\n", "X-A: b\r\n"},
		"folded line":        {"GET / HTTP/1.1\r\nX-A: b\r\n c\r\n" + tail, "X-A: b c\r\n"},
		"leading space":      {"GET / HTTP/1.1\r\nX-A:    b   \r\n" + tail, "X-A: b\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := send(t, addr, tt.raw)
			if status != 200 {
				t.Fatalf("answered %d %s", status, body)
			}
			seen := app.take()
			if len(seen) != 1 {
				t.Fatalf("the application saw %d requests: %q", len(seen), seen)
			}
			head, body, _ := strings.Cut(seen[0], "\r\n\r\n")
			head += "\r\n"
			if strings.Contains(body, "smuggled") {
				t.Errorf("the application was sent %q", body)
			}
			if !strings.Contains(head, tt.has) || strings.Contains(strings.ReplaceAll(head, "\r\n", ""), "\n") || strings.Contains(head, "\r\n ") {
				t.Errorf("the application saw %q", head)
			}
			if n := strings.Count(head, "Content-Length") + strings.Count(head, "Transfer-Encoding"); n > 1 || strings.Count(head, "Host:") != 1 {
				t.Errorf("the application saw %q", head)
			}
		})
	}
}

// A client's own words in the proxy's fields are gone, whatever their spelling.
func TestStrippedOnTheWire(t *testing.T) {
	t.Parallel()
	app := &wire{}
	p := newPair(t, pairConfig{protocol: call.HTTP, app: tcpApp(t, "tcp", app.serve)})
	names := []string{
		"x-forwarded-for", "X-FORWARDED-Host", "X-Forwarded-Client-Cert", "Forwarded", "X-Real-Ip", "X-Spiffe-Id", "Parley-Caller", "PARLEY-DECISION", "parley-Identity",
		"X-Parley-User", "X-Forwarded-Prefix", "Proxy-Authorization", "Keep-Alive", "Proxy-Connection", "X-Original-Url",
	}
	raw := "GET /a?b HTTP/1.1\r\n"
	for i, n := range names {
		raw += fmt.Sprintf("%s: evil%d\r\n", n, i)
	}
	if status, body := send(t, p.web.addr("web.calls.orders"), raw+"X-Mine: yes\r\n"+tail); status != 200 {
		t.Fatalf("answered %d %s", status, body)
	}
	head := app.take()[0]
	if strings.Contains(head, "evil") || !strings.Contains(head, "X-Mine: yes") || !strings.HasPrefix(head, "GET /a?b HTTP/1.1\r\n") {
		t.Errorf("the application saw %q", head)
	}
	if strings.Contains(head, "User-Agent") || strings.Contains(head, "Accept-Encoding") {
		t.Errorf("the proxy made fields up: %q", head)
	}
}
