package api_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// socket is a path short enough for a socket.
func socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "parley")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// answering is a client of a server that answers h.
func answering(t *testing.T, h http.HandlerFunc) *api.Client {
	t.Helper()
	path := socket(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	c, err := api.New("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func code(err error) fault.Code {
	if f := fault.All(err); len(f) > 0 {
		return f[0].Code
	}
	return ""
}

func TestNewTakesAPathOrAUnixURL(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"/run/parley/parley.sock": "/run/parley/parley.sock", "unix:///run/p.sock": "/run/p.sock",
		"unix:/run/p.sock": "/run/p.sock", ".parley/api.sock": ".parley/api.sock",
	} {
		c, err := api.New(address)
		if err != nil || c.Socket() != want {
			t.Errorf("%q: %v, %v", address, c, err)
		}
	}
	for address, want := range map[string]fault.Code{
		"": fault.Usage, "http://localhost:80": fault.Usage, "unix://": fault.Usage, "@abstract": fault.Usage, "/" + strings.Repeat("x", 120): fault.SocketPath,
	} {
		if _, err := api.New(address); code(err) != want {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// dead is a socket that its server left behind.
func dead(t *testing.T) string {
	t.Helper()
	path := socket(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	return path
}

func TestUnreachableServerSaysWhyAndWhatToDo(t *testing.T) {
	t.Parallel()
	server, demo := dead(t), dead(t)
	if err := os.MkdirAll(filepath.Join(filepath.Dir(demo), "bin", "parley"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, hint := range map[string]string{
		socket(t): "start one: parley dev", server: "start it again: parley server, with the flags that it had",
		demo: "start it again: parley dev --dir " + filepath.Dir(demo) + ", with the --file that it had",
	} {
		c, err := api.New(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Status(t.Context())
		if f := fault.All(err); len(f) != 1 || f[0].Code != fault.Unreachable || f[0].Hint != hint || !strings.Contains(f[0].Message, path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestSilentServerTimesOut(t *testing.T) {
	t.Parallel()
	c := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/version") { // half an answer is none
			fmt.Fprint(w, `{"version":`)
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	})
	c.Timeout = 50 * time.Millisecond
	if _, err := c.Status(t.Context()); code(err) != fault.Unreachable {
		t.Errorf("status: %v", err)
	}
	if _, err := c.Version(t.Context()); code(err) != fault.Unreachable {
		t.Errorf("version: %v", err)
	}
	if err := c.Tail(t.Context(), api.TailEventsParams{}, nil); code(err) != fault.Unreachable {
		t.Errorf("tail: %v", err)
	}
}

func TestCancelledCallIsNoFault(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c := answering(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) || code(err) != "" {
		t.Errorf("got %v", err)
	}
}

func TestProblemBecomesItsFaults(t *testing.T) {
	t.Parallel()
	reply := `{"type":"urn:parley:fault:PAR-1002","title":"Unprocessable Entity","status":422,"code":"PAR-1002","instance":"urn:parley:request:x","faults":[
		{"code":"PAR-1002","message":"unknown key","file":"parley.yaml","line":3,"column":5,"end_column":9,"label":"not a key","help":"calls","replacement":"calls"},
		{"code":"PAR-1007","message":"unknown service"}]}`
	c := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json; charset=utf-8")
		w.WriteHeader(422)
		fmt.Fprint(w, reply)
	})
	_, err := c.Apply(t.Context(), api.ApplyRequest{Name: "parley.yaml"})
	want := fault.List{
		{Code: fault.MeshUnknownKey, Message: "unknown key", File: "parley.yaml", Line: 3, Column: 5, EndColumn: 9, Label: "not a key", Hint: "calls", Replacement: "calls"},
		{Code: fault.MeshUnknownName, Message: "unknown service"},
	}
	if diff := cmp.Diff(want, fault.All(err)); diff != "" {
		t.Error(diff)
	}
}

func TestFaultSurvivesTheWire(t *testing.T) {
	t.Parallel()
	f := fault.Fault{Code: fault.MeshValue, Message: "m", File: "f", Line: 1, Column: 2, EndColumn: 3, Label: "l", Hint: "h", Replacement: "r"}
	wire := api.NewFault(&f)
	if diff := cmp.Diff(&f, wire.Fault()); diff != "" {
		t.Error(diff)
	}
	f.Err = errors.New("cause")
	if got := api.NewFault(&f).Message; got != "m: cause" {
		t.Errorf("message %q", got)
	}
}

func TestStrangeServerIsNotBelieved(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]http.HandlerFunc{
		"html error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<h1>no</h1>", http.StatusBadGateway) },
		"redirect":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"empty problem": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(500)
			fmt.Fprint(w, "{}")
		},
	} {
		if _, err := answering(t, h).Status(t.Context()); code(err) != fault.Unreachable {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := answering(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "not JSON") })
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("a reply that is no JSON was believed")
	}
}

func TestTailPassesOverEmptyLinesAndReportsACut(t *testing.T) {
	t.Parallel()
	c := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "\n"+`{"cursor":"1","event":{"a":1}}`+"\n\n")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	n := 0
	err := c.Tail(t.Context(), api.TailEventsParams{Follow: true}, func(e *api.Entry) error {
		n++
		if string(e.Event) != `{"a":1}` {
			t.Errorf("event %s", e.Event)
		}
		return nil
	})
	if n != 1 || code(err) != fault.Unreachable {
		t.Errorf("%d events, then %v", n, err)
	}
}
