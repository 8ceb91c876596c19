package health_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/parleymesh/parley/internal/health"
	"github.com/parleymesh/parley/internal/snapshot"
)

// serve serves on a network of its own until the test ends.
func serve(t *testing.T, network string, run func(net.Listener) error) string {
	t.Helper()
	at := "127.0.0.1:0"
	if network == "unix" {
		at = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() { _ = run(ln) }()
	if network == "unix" {
		return "unix:" + at
	}
	return ln.Addr().String()
}

func check(app string, h2 bool, h snapshot.Health) string {
	if h.Timeout == 0 {
		h.Timeout = 5 * time.Second
	}
	if err := health.Check(context.Background(), app, h2, &h); err != nil {
		return err.Error()
	}
	return "ok"
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/version":
			if r.ProtoMajor == 2 {
				w.WriteHeader(202)
			}
		case "/sick":
			w.WriteHeader(503)
		case "/moved":
			http.Redirect(w, r, "/version", http.StatusFound)
		case "/query":
			if r.URL.RawQuery != "deep=1" || r.UserAgent() != "parley-health" || r.Method != "GET" {
				w.WriteHeader(400)
			}
		case "/hangs":
			<-r.Context().Done()
		case "/header":
			w.Header().Set("X", strings.Repeat("x", 1<<20))
		}
	})
	both := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	both.Protocols.SetHTTP1(true)
	both.Protocols.SetUnencryptedHTTP2(true)
	for _, network := range []string{"tcp", "unix"} {
		app := serve(t, network, both.Serve)
		for _, tt := range []struct {
			h2   bool
			h    snapshot.Health
			want string
		}{
			{false, snapshot.Health{Path: "/version"}, "ok"},
			{true, snapshot.Health{Path: "/version", Status: 202}, "ok"},
			{false, snapshot.Health{Path: "/version", Status: 202}, "status 200, want 202"},
			{false, snapshot.Health{Path: "/sick"}, "status 503, want 2xx"},
			{false, snapshot.Health{Path: "/sick", Status: 503}, "ok"},
			{false, snapshot.Health{Path: "/moved"}, "status 302, want 2xx"},
			{false, snapshot.Health{Path: "/query?deep=1"}, "ok"},
			{false, snapshot.Health{Path: "/hangs", Timeout: 50 * time.Millisecond}, "no answer in 50ms"},
		} {
			tt.h.Kind = snapshot.HealthHTTP
			if got := check(app, tt.h2, tt.h); got != tt.want {
				t.Errorf("%s, %+v: %s, want %s", network, tt.h, got, tt.want)
			}
		}
		if got := check(app, false, snapshot.Health{Kind: snapshot.HealthHTTP, Path: "/header"}); got == "ok" {
			t.Error("a header of a mebibyte is taken")
		}
	}
	if got := check("127.0.0.1:1", false, snapshot.Health{Kind: snapshot.HealthHTTP, Path: "/"}); !strings.Contains(got, "refused") {
		t.Error(got)
	}
}

// The application of gRPC is the real one.
func TestGRPC(t *testing.T) {
	t.Parallel()
	states := grpchealth.NewServer()
	well, bare := grpc.NewServer(), grpc.NewServer()
	t.Cleanup(well.Stop)
	t.Cleanup(bare.Stop)
	healthpb.RegisterHealthServer(well, states)
	states.SetServingStatus("shop.Orders", healthpb.HealthCheckResponse_SERVING)
	states.SetServingStatus("shop.Sick", healthpb.HealthCheckResponse_NOT_SERVING)
	for _, network := range []string{"tcp", "unix"} {
		app, without := serve(t, network, well.Serve), serve(t, network, bare.Serve)
		for _, tt := range []struct{ app, service, want string }{
			{app, "", "ok"},
			{app, "shop.Orders", "ok"},
			{app, "shop.Sick", "NOT_SERVING"},
			{app, "shop.Other", `it does not know the service "shop.Other"`},
			{without, "", "it has no service grpc.health.v1.Health"},
			{serve(t, network, (&http.Server{Handler: http.NotFoundHandler()}).Serve), "", ""},
		} {
			got := check(tt.app, false, snapshot.Health{Kind: snapshot.HealthGRPC, Service: tt.service})
			if got != tt.want && (tt.want != "" || got == "ok") {
				t.Errorf("%s, %q: %s, want %s", network, tt.service, got, tt.want)
			}
		}
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := health.Check(ctx, "127.0.0.1:1", false, &snapshot.Health{Kind: snapshot.HealthHTTP, Path: "/", Timeout: time.Second})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func frame(message string) []byte {
	return append([]byte{0, 0, 0, 0, byte(len(message))}, message...)
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		body  []byte
		state uint64
		ok    bool
	}{
		"serving": {frame("\x08\x01"), 1, true}, "empty": {frame(""), 0, true}, "the last counts": {frame("\x08\x01\x08\x02"), 2, true},
		"other fields":  {frame("\x12\x03abc\x1d1234\x2112345678\x08\x01"), 1, true},
		"nothing":       {nil, 0, false},
		"compressed":    {append([]byte{1}, frame("\x08\x01")[1:]...), 0, false},
		"short":         {frame("\x08\x01")[:6], 0, false},
		"two messages":  {append(frame("\x08\x01"), frame("\x08\x01")...), 0, false},
		"no value":      {frame("\x08"), 0, false},
		"field 0":       {frame("\x00\x01"), 0, false},
		"a group":       {frame("\x0b\x0c"), 0, false},
		"too long":      {frame("\x12\x7fabc"), 0, false},
		"longer still":  {frame("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 0, false},
		"half a number": {frame("\x1d12"), 0, false},
	} {
		state, err := health.Answer(tt.body)
		if state != tt.state || (err == nil) != tt.ok {
			t.Errorf("%s: %d, %v", name, state, err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(frame("\x08\x01"))
	f.Add(frame("\x12\x03abc\x1d1234\x2112345678\x08\x02"))
	f.Add(health.Question("shop.Orders")) // a string where a number is expected
	f.Fuzz(func(t *testing.T, body []byte) {
		if state, err := health.Answer(body); err != nil && state != 0 {
			t.Errorf("%d with %v", state, err)
		}
	})
}
