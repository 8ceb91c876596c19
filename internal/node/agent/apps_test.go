package agent

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// hand is a clock that a test moves.
type hand struct {
	clock.System
	ahead time.Duration
}

func (h *hand) Now() time.Time { return time.Unix(1, 0).Add(h.ahead) }

// unasked has no health to be asked by.
func unasked(string) (appState, bool) { return appState{}, false }

func called(apps ...string) *snapshot.Snapshot {
	s := &snapshot.Snapshot{Services: []snapshot.Service{{Name: "caller"}}}
	for _, app := range apps {
		s.Services = append(s.Services, snapshot.Service{Name: "orders", Inbound: &snapshot.Inbound{App: app}})
	}
	return s
}

// counting counts the connections that are made to addr.
func counting(t *testing.T, network, addr string) (net.Listener, *atomic.Int32) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var n atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			c.Close()
		}
	}()
	return l, &n
}

// TestAppsComeAndGo: what does not listen is told until it does, is logged once,
// and notices nothing of being looked at.
func TestAppsComeAndGo(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]struct{ network, listen, app string }{
		"ipv4":    {"tcp4", "127.0.0.1:0", ""},
		"ipv6":    {"tcp6", "[::1]:0", ""},
		"for all": {"tcp", ":0", "127.0.0.1:"},
		"unix":    {"unix", filepath.Join(t.TempDir(), "s"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clk, log := &hand{}, &bytes.Buffer{}
			a := newApps(clk, slog.New(slog.NewTextHandler(log, nil)), unasked)
			l, first := counting(t, at.network, at.listen)
			addr := l.Addr().String()
			listenAt := addr
			switch {
			case at.network == "unix":
				addr = "unix:" + addr
			case at.app != "":
				_, port, _ := net.SplitHostPort(addr)
				addr = at.app + port
			}
			look := func() appState {
				clk.ahead += lookEvery
				return a.look(t.Context(), called(addr))["orders"]
			}
			l.Close()
			if got := look(); got.Down == nil || got.Seen || got.Down.Code != fault.AppDown || !strings.Contains(got.Down.Error(), "nothing listens on "+addr+", the application of orders") || !strings.Contains(got.Down.Hint, "ss -") {
				t.Errorf("before it is there: %+v", got)
			}
			if log.Len() > 0 {
				t.Errorf("logged before it was ever there: %s", log)
			}
			l, second := counting(t, at.network, listenAt)
			for range 3 {
				if got := look(); got.Down != nil || !got.Seen {
					t.Errorf("it is there: %+v", got)
				}
			}
			l.Close()
			for range 3 {
				if got := look(); got.Down == nil || !got.Seen {
					t.Errorf("it is gone: %+v", got)
				}
			}
			if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "service=orders") {
				t.Errorf("logged %d lines: %s", n, log)
			}
			_, third := counting(t, at.network, listenAt)
			if got := look(); got.Down != nil {
				t.Errorf("it is back: %+v", got)
			}
			if n := strings.Count(log.String(), "\n"); n != 2 {
				t.Errorf("logged %d lines: %s", n, log)
			}
			if n := first.Load() + second.Load() + third.Load(); n != 0 {
				t.Errorf("it got %d connections", n)
			}
			if got := a.look(t.Context(), called()); len(got) != 0 || len(a.all) != 0 {
				t.Errorf("what left is kept: %v", got)
			}
		})
	}
}

// What listens nowhere here, and takes connections all the same, is there; it is
// connected to every lookEvery, however often somebody asks.
func TestAppsAreTriedSeldom(t *testing.T) {
	t.Parallel()
	clk := &hand{}
	a := newApps(clk, slog.New(slog.DiscardHandler), unasked)
	var tries int
	var answer error
	a.try = func(context.Context, string) error { tries++; return answer }
	free, _ := counting(t, "tcp4", "127.0.0.1:0")
	free.Close()
	look := func(ctx context.Context, what string, up bool, want int) {
		t.Helper()
		got := a.look(ctx, called(free.Addr().String()))["orders"]
		if (got.Down == nil) != up || tries != want {
			t.Errorf("%s: %+v after %d tries, want %d", what, got, tries, want)
		}
	}
	look(t.Context(), "first", true, 1)
	answer = errors.New("no route to host")
	look(t.Context(), "at once", true, 1)
	clk.ahead += lookEvery
	look(t.Context(), "later", false, 2)
	answer = nil
	look(t.Context(), "at once", false, 2)
	clk.ahead += lookEvery
	gone, leave := context.WithCancel(t.Context())
	leave()
	answer = gone.Err()
	look(gone, "asked by somebody who left", false, 3)
	clk.ahead += lookEvery
	answer = nil
	look(t.Context(), "back", true, 4)
}

func TestAppDownSaysWhy(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{"127.0.0.1:80": "; what listens there: ss -ltnp 'sport = :80'", "unix:/run/a": "; what listens there: ss -xlp"} {
		if f := appDown("orders", addr, syscall.ECONNREFUSED); !strings.HasSuffix(f.Hint, "inbound.app of orders"+want) {
			t.Errorf("%s: %s", addr, f.Hint)
		}
	}
	for want, f := range map[string]*fault.Fault{
		"the agent may not connect to unix:/run/a/s, the application of orders: permission denied": appDown("orders", "unix:/run/a/s", &net.OpError{Op: "dial", Err: fs.ErrPermission}),
		"no connection to 10.0.0.1:80, the application of orders: i/o timeout":                     appDown("orders", "10.0.0.1:80", errors.New("i/o timeout")),
	} {
		if f.Hint == "" || strings.ReplaceAll(f.Error(), "dial: ", "") != want {
			t.Errorf("got %s, want %s (%s)", f, want, f.Hint)
		}
	}
}
