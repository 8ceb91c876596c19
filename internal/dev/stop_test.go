package dev

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
)

// Whoever started an application and ended closed its input: a call that waits
// for somebody must not keep the process.
func TestApplicationEndsWithItsInput(t *testing.T) {
	t.Parallel()
	for name, op := range map[string]string{
		"waiting for the Workload API": `{"id":1,"op":"svid"}`,
		"waiting for an answer":        `{"id":1,"op":"tcp","addr":"ADDR"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(t.TempDir(), "w.sock")
			mute, err := net.Listen("unix", socket) // nobody accepts
			if err != nil {
				t.Fatal(err)
			}
			defer mute.Close()
			silent, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer silent.Close()
			op := bytes.ReplaceAll([]byte(op), []byte("ADDR"), []byte(silent.Addr().String()))

			in, asks := io.Pipe()
			ended := make(chan error, 1)
			go func() {
				ended <- RunApp(t.Context(), AppConfig{Name: "stranger", Socket: socket}, in, io.Discard, slog.New(slog.DiscardHandler))
			}()
			if _, err := asks.Write(append(op, '\n')); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond) // the call is under way
			asks.Close()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(callTimeout / 2):
				t.Error("still running when its call was half way to its own end")
			}
		})
	}
}

// A call that was refused for another reason than the one that the tour shows is
// none of its successes: a listener that refuses everybody would have them all.
func TestRefusalForAnotherReason(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		event *audit.Event
		ok    bool
	}{
		"as shown":       {&audit.Event{ID: "1", Outcome: audit.Denied, Reason: "chain_untrusted"}, true},
		"another reason": {&audit.Event{ID: "1", Outcome: audit.Denied, Reason: "handshake_timeout"}, false},
		"allowed":        {&audit.Event{ID: "1", Outcome: audit.Allowed, Reason: "chain_untrusted"}, false},
		"not recorded":   {nil, false},
	} {
		s := &seen{}
		if ok := s.refusal(tt.event, "chain_untrusted"); ok != tt.ok || (len(s.wrong) == 0) != tt.ok {
			t.Errorf("%s: %t, wrong %q", name, ok, s.wrong)
		}
	}
}

func TestInterruptedCallIsNoFailedOne(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	checks := []check{
		{"whole", pass, func(context.Context, *Mesh, *seen) {}},
		{"interrupted", pass, func(_ context.Context, _ *Mesh, s *seen) {
			interrupt()
			s.want(false, "no answer")
		}},
		{"never made", pass, func(context.Context, *Mesh, *seen) { t.Error("made after the interrupt") }},
	}
	var reported []string
	ok, err := new(Mesh).try(ctx, checks, func(l Line) { reported = append(reported, l.Call) })
	if ok || !errors.Is(err, context.Canceled) || len(reported) != 1 {
		t.Errorf("got %t, %v, reported %v", ok, err, reported)
	}
}
