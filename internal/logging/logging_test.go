package logging_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/logging/xtest"
)

// writesItself is a value that would like to decide how it looks.
type writesItself struct{ text string }

func (w writesItself) MarshalJSON() ([]byte, error) { return []byte(`{"raw":"` + w.text + `"}`), nil }
func (w writesItself) MarshalText() ([]byte, error) { return []byte(w.text), nil }
func (w writesItself) String() string               { return w.text }

type logsItself struct{ text string }

func (l logsItself) LogValue() slog.Value {
	return slog.GroupValue(slog.String(l.text, l.text), slog.Any("error", errors.New(l.text)))
}

type panics struct{}

func (panics) Error() string { panic("no") }

// TestOneLine logs each hostile string wherever a string can be.
func TestOneLine(t *testing.T) {
	all := xtest.HostileStrings()
	if len(all) < 200 {
		t.Fatalf("%d hostile strings are not 200", len(all))
	}
	for _, f := range []logging.Format{logging.Text, logging.JSON} {
		for _, h := range all {
			s := h.Text
			ctx := logging.NewContext(context.Background(), slog.String("request_id", s))
			for where, do := range map[string]func(*slog.Logger){
				"message": func(l *slog.Logger) { l.Info(s) },
				"value":   func(l *slog.Logger) { l.Info("m", "k", s) },
				"key":     func(l *slog.Logger) { l.Info("m", s, 1) },
				"error":   func(l *slog.Logger) { l.Info("m", "error", fmt.Errorf("it: %w", errors.New(s))) },
				"joined":  func(l *slog.Logger) { l.Info("m", "error", errors.Join(errors.New(s), errors.New(s))) },
				"slice":   func(l *slog.Logger) { l.Info("m", "list", []string{s, s}) },
				"bytes":   func(l *slog.Logger) { l.Info("m", "bytes", []byte(s)) },
				"map":     func(l *slog.Logger) { l.Info("m", "map", map[string]string{s: s}) },
				"raw":     func(l *slog.Logger) { l.Info("m", "json", json.RawMessage(s)) },
				"itself":  func(l *slog.Logger) { l.Info("m", "v", writesItself{s}) },
				"valuer":  func(l *slog.Logger) { l.Info("m", "v", logsItself{s}) },
				"with":    func(l *slog.Logger) { l.With("k", s, s, s).Info("m") },
				"group":   func(l *slog.Logger) { l.WithGroup("g"+s).Info("m", "k", s) },
				"context": func(l *slog.Logger) { l.InfoContext(ctx, "m") },
			} {
				var b bytes.Buffer
				do(logging.New(&b, f, slog.LevelInfo, clock.System{}))
				line := b.String()
				if err := xtest.Harmless(line); err != nil || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
					t.Errorf("%s, %s in %s: %v, %d lines", f, h.Name, where, err, strings.Count(line, "\n"))
				}
				if len(line) > 128<<10 {
					t.Errorf("%s, %s in %s: a line of %d bytes", f, h.Name, where, len(line))
				}
				if f == logging.JSON && !json.Valid(b.Bytes()) {
					t.Errorf("%s in %s is no JSON: %.300s", h.Name, where, line)
				}
				if f == logging.Text && strings.Contains(line, " level=ERROR") && !strings.Contains(line, `"`) {
					t.Errorf("%s in %s passes for a value: %.300s", h.Name, where, line)
				}
			}
		}
	}
}

// TestNothingIsLost: a short string comes out of JSON as it went in, and what is no
// UTF-8 can still be read.
func TestNothingIsLost(t *testing.T) {
	for _, h := range xtest.HostileStrings() {
		var b bytes.Buffer
		logging.New(&b, logging.JSON, slog.LevelInfo, clock.System{}).Info("m", "k", h.Text)
		var line struct {
			K string `json:"k"`
		}
		if err := json.Unmarshal(b.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if utf8.ValidString(h.Text) && len(h.Text) < 4096 && line.K != h.Text {
			t.Errorf("%s: %q became %q", h.Name, h.Text, line.K)
		}
	}
	var b bytes.Buffer
	logging.New(&b, logging.JSON, slog.LevelInfo, clock.System{}).Info("m", "k", "a\xffb", "error", panics{}, "nil", nil)
	if !strings.Contains(b.String(), `"k":"a\\xffb"`) || !strings.Contains(b.String(), "PANIC=Error method: no") {
		t.Error(b.String())
	}
}

func TestShape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := logging.New(&b, logging.JSON, slog.LevelInfo, clock.System{})
		l.With("component", "gate").Info("m", "n", 7, "ok", true, "wait", 1500*time.Millisecond, "at", time.Now(), "id", logsItself{"x"})
		want := `{"time":"2000-01-01T00:00:00.000000Z","level":"INFO","msg":"m","component":"gate","n":7,"ok":true,"wait":"1.5s","at":"2000-01-01T00:00:00Z","id":{"x":"x","error":"x"}}` + "\n"
		if b.String() != want {
			t.Errorf("%swant\n%s", b.String(), want)
		}
		b.Reset()
		logging.New(&b, logging.Text, slog.LevelInfo, clock.System{}).Info("a message", "k", "v w", "n", 7)
		if want := "time=2000-01-01T00:00:00.000000Z level=INFO msg=\"a message\" k=\"v w\" n=7\n"; b.String() != want {
			t.Errorf("%swant\n%s", b.String(), want)
		}
	})
}

// TestLevels: a level holds for as long as it was set, the last one set counts, and
// those who wait hear of each.
func TestLevels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := logging.New(&b, logging.Text, slog.LevelWarn, clock.System{})
		levels := logging.Of(l.With("component", "gate"))
		is := func(when string, level slog.Level, until time.Duration) {
			t.Helper()
			now, _ := levels.State()
			if left := time.Until(now.Until); now.Level != level || now.Normal != slog.LevelWarn || now.Until.IsZero() != (until == 0) || until > 0 && left != until {
				t.Errorf("%s: %+v, %s left, want %s for %s", when, now, left, level, until)
			}
			if !l.Enabled(t.Context(), level) || l.Enabled(t.Context(), level-1) {
				t.Errorf("%s: %s is not what is written", when, level)
			}
		}
		is("at first", slog.LevelWarn, 0)
		_, changed := levels.State()
		levels.Set(slog.LevelDebug, 10*time.Minute)
		is("when set", slog.LevelDebug, 10*time.Minute)
		<-changed
		time.Sleep(9 * time.Minute)
		levels.Set(slog.LevelInfo, 3*time.Minute)
		is("when set again", slog.LevelInfo, 3*time.Minute)
		time.Sleep(2 * time.Minute) // past the end of the first
		synctest.Wait()
		is("after the end of the first", slog.LevelInfo, time.Minute)
		_, changed = levels.State()
		time.Sleep(time.Minute)
		<-changed
		synctest.Wait()
		is("in the end", slog.LevelWarn, 0)
		levels.Set(slog.LevelError, 1000*time.Hour)
		is("for very long", slog.LevelError, logging.MaxChange)
		levels.Reset()
		is("when reset", slog.LevelWarn, 0)
		if got := b.String(); !strings.Contains(got, "from=warn to=debug until=") {
			t.Error(got)
		}
		if logging.Of(slog.New(slog.DiscardHandler)) != nil {
			t.Error("another log has levels")
		}
	})
}

func TestParse(t *testing.T) {
	for _, name := range []string{"debug", "info", "warn", "error"} {
		if l, err := logging.ParseLevel(name); err != nil || logging.LevelName(l) != name {
			t.Error(name, l, err)
		}
	}
	for _, name := range []string{"", "DEBUG", "trace", "info+1", "\x1b[2J"} {
		if _, err := logging.ParseLevel(name); err == nil || xtest.Harmless(err.Error()) != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := logging.ParseFormat("xml"); err == nil {
		t.Error("xml is a format")
	}
}

// TestPanicked: neither the value nor an argument of a panic is told.
func TestPanicked(t *testing.T) {
	var b bytes.Buffer
	l := logging.New(&b, logging.Text, slog.LevelInfo, clock.System{})
	for _, v := range []any{"secret-value", errors.New("secret-value"), []byte("secret-value"), fmt.Errorf("secret-value: %w", io.EOF)} {
		func() {
			defer func() { l.Error("panic", logging.Panicked(recover())) }()
			explode("secret-value", v)
		}()
	}
	func() {
		defer func() { l.Error("panic", logging.Panicked(recover())) }()
		var list []int
		explode("secret-value", list[len(b.String())])
	}()
	got := b.String()
	if strings.Contains(got, "secret-value") || !strings.Contains(got, "index out of range") || strings.Count(got, "logging_test.explode") != 4 || strings.Count(got, "\n") != 5 {
		t.Error(got)
	}
}

//go:noinline
func explode(_ string, v any) { panic(v) }

func TestRemarks(t *testing.T) {
	var b bytes.Buffer
	l := logging.New(&b, logging.Text, slog.LevelDebug, clock.System{})
	logging.Remarks(l, "proxy").Printf("http: TLS handshake error from 1.2.3.4:5: %q is not TLS; left \"open\\\" secret", "se\"cret")
	if got := b.String(); strings.Contains(got, "cret") || !strings.Contains(got, "1.2.3.4:5") || !strings.Contains(got, "component=proxy") {
		t.Error(got)
	}
}

// TestOffCostsNothing: a level that is not written is one look at a number.
func TestOffCostsNothing(t *testing.T) {
	l := logging.New(io.Discard, logging.JSON, slog.LevelInfo, clock.System{}).With("component", "gate")
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		if l.Enabled(ctx, slog.LevelDebug) {
			t.Error("debug is on")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkOff(b *testing.B) {
	l := logging.New(io.Discard, logging.JSON, slog.LevelInfo, clock.System{})
	for b.Loop() {
		_ = l.Enabled(b.Context(), slog.LevelDebug)
	}
}
