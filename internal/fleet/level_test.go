package fleet_test

import (
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fleet"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/logging"
)

func hostOf(h *house, name string) fleet.Host {
	for _, host := range h.fleet.Hosts() {
		if host.Name == name {
			return host
		}
	}
	return fleet.Host{}
}

// hello opens a stream of host's agent, which has these capabilities.
func (h *house) hello(host string, capabilities ...string) *stream {
	h.t.Helper()
	s := h.raw(host).open()
	if err := s.SendMsg(&link.AgentMessage{Hello: &link.Hello{Protocol: link.Protocol, Version: "v1", Capabilities: capabilities, Host: host, Now: time.Now()}}); err != nil {
		h.t.Fatal(err)
	}
	var m link.ServerMessage
	if err := s.RecvMsg(&m); err != nil || m.Welcome == nil {
		h.t.Fatalf("%+v, %v", m, err)
	}
	return s
}

// TestLogLevel: an agent is told, does it, says so, and says when it is over.
func TestLogLevel(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.logger = logging.New(io.Discard, logging.Text, slog.LevelWarn, clock.System{})
	h.client("a", h.agentSource("a", time.Hour), h.addr)
	eventually(t, "it says what it logs", func() bool { l := hostOf(h, "a").Level; return l.Level == "warn" && l.Normal == "warn" })
	if err := h.fleet.SetLogLevel(t.Context(), "a", "debug", time.Hour); err != nil {
		t.Fatal(err)
	}
	if l := hostOf(h, "a").Level; l.Level != "debug" || l.Normal != "warn" || time.Until(l.Until) < 59*time.Minute || !h.logger.Enabled(t.Context(), slog.LevelDebug) {
		t.Errorf("it logs %+v", l)
	}
	if err := h.fleet.SetLogLevel(t.Context(), "a", "", 0); err != nil {
		t.Fatal(err)
	}
	if l := hostOf(h, "a").Level; l.Level != "warn" || !l.Until.IsZero() {
		t.Errorf("it logs %+v", l)
	}
	if err := h.fleet.SetLogLevel(t.Context(), "a", "error", time.Second); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says that it is over", func() bool { return hostOf(h, "a").Level.Level == "warn" })
}

// TestLogLevelIsRefused: who is not there, is too old, or does not answer is named.
func TestLogLevelIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.hello("a", link.Settles)
	silent := h.hello("b", link.LogLevels)
	eventually(t, "they are connected", func() bool { return hostOf(h, "a").Connected && hostOf(h, "b").Connected })
	for host, want := range map[string]string{"a": "too old to change what it logs: it lacks log_level", "b": "has not answered yet", "c": "is not connected"} {
		if err := h.fleet.SetLogLevel(t.Context(), host, "debug", time.Minute); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", host, err, want)
		}
	}
	var m link.ServerMessage
	if err := silent.RecvMsg(&m); err != nil || m.LogLevel == nil || m.LogLevel.Level != "debug" || m.LogLevel.Seconds != 60 {
		t.Errorf("it was sent %+v: %v", m, err)
	}
	// It may say that it did what nobody asked, and that counts for nothing.
	if err := silent.SendMsg(&link.AgentMessage{LogLevel: &link.LogState{Number: 1 << 60, Level: "debug", Normal: "info"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is heard", func() bool { return hostOf(h, "b").Level.Level == "debug" })
	if n := hostOf(h, "b").Level.Number; n != 0 {
		t.Errorf("order %d is done", n)
	}
	// What is no level ends the stream: it is shown to people.
	if err := silent.SendMsg(&link.AgentMessage{LogLevel: &link.LogState{Level: "\x1b[2J"}}); err != nil {
		t.Fatal(err)
	}
	if err := silent.RecvMsg(&m); err == nil || !strings.Contains(err.Error(), "a log level is") {
		t.Errorf("it was answered %+v, %v", m, err)
	}
}
