// Package logging is the log for operators: lines of text or of JSON by log/slog,
// whose level can be changed while the process runs. It is apart from the audit log,
// which is evidence and has every call; at the level info this one has none.
//
// Whatever is logged passes one handler: a string of any origin, a key and a message
// too, is cut to a bounded length and stays on its line, with line ends, escape
// sequences, marks of direction and bytes that are no UTF-8 as visible escapes.
//
// It refuses to know what a secret is: who logs has to leave it out.
package logging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/visible"
)

// Limits of one line, in bytes before anything is escaped.
const (
	maxString = 4 << 10  // of one value, or the message
	maxKey    = 64       // of the name of a value
	maxLine   = 16 << 10 // of all values together
)

// mark ends a string that was cut.
const mark = "…"

// A Format is how lines look.
type Format string

// The formats.
const (
	Text Format = "text"
	JSON Format = "json"
)

// ParseFormat reads the name of a format.
func ParseFormat(s string) (Format, error) {
	if f := Format(s); f == Text || f == JSON {
		return f, nil
	}
	return "", fmt.Errorf("a log is text or json, not %q", s)
}

// levels are the names of the levels, as they are typed and shown.
var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// ErrLevel refuses what is no level.
var ErrLevel = errors.New("a log level is debug, info, warn or error")

// ParseLevel reads the name of a level.
func ParseLevel(s string) (slog.Level, error) {
	if l, ok := levels[s]; ok {
		return l, nil
	}
	return 0, fmt.Errorf("%w, not %q", ErrLevel, visible.Text(s[:min(len(s), maxKey)]))
}

// LevelName is the name of a level that ParseLevel reads.
func LevelName(l slog.Level) string {
	for name, of := range levels {
		if of == l {
			return name
		}
	}
	return l.String()
}

// New is a log to w, at a level that its Levels (Of) change.
func New(w io.Writer, f Format, level slog.Level, clk clock.Clock) *slog.Logger {
	l := newLevels(level, clk)
	o := &slog.HandlerOptions{Level: slog.Level(-1 << 10), ReplaceAttr: utc} // Enabled decides
	h := &handler{levels: l}
	if out := (lines{w, f == JSON}); f == JSON {
		h.next = slog.NewJSONHandler(out, o)
	} else {
		h.next = slog.NewTextHandler(out, o)
	}
	logger := slog.New(h)
	l.logger = logger
	return logger
}

// Of are the levels of a log that New made, nil for any other.
func Of(l *slog.Logger) *Levels {
	if h, ok := l.Handler().(*handler); ok {
		return h.levels
	}
	return nil
}

// utc writes the time of a line in UTC with microseconds.
func utc(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
		a.Value = slog.StringValue(a.Value.Time().UTC().Format("2006-01-02T15:04:05.000000Z"))
	}
	return a
}

type contextKey struct{}

// NewContext is ctx with what every line says that is logged with it: the ids of a
// request.
func NewContext(ctx context.Context, attrs ...slog.Attr) context.Context {
	return context.WithValue(ctx, contextKey{}, attrs)
}

// A handler makes everything that passes harmless.
type handler struct {
	levels *Levels
	next   slog.Handler
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.levels.level.Level() }

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	left := maxLine
	out := slog.NewRecord(r.Time, r.Level, bounded(r.Message, &left), r.PC)
	if attrs, ok := ctx.Value(contextKey{}).([]slog.Attr); ok {
		out.AddAttrs(harmless(attrs, &left)...)
	}
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(harmless([]slog.Attr{a}, &left)...)
		return true
	})
	return h.next.Handle(ctx, out)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	left := maxLine
	return &handler{h.levels, h.next.WithAttrs(harmless(attrs, &left))}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	left := maxKey
	return &handler{h.levels, h.next.WithGroup(bounded(name, &left))}
}

// harmless are attrs as numbers, booleans, times and bounded strings, whatever they
// were: nothing writes itself.
func harmless(attrs []slog.Attr, left *int) []slog.Attr {
	out := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		key := maxKey
		v := a.Value.Resolve()
		switch v.Kind() {
		case slog.KindBool, slog.KindFloat64, slog.KindInt64, slog.KindUint64:
		case slog.KindGroup:
			v = slog.GroupValue(harmless(v.Group(), left)...)
		case slog.KindTime:
			v = slog.StringValue(v.Time().UTC().Format(time.RFC3339Nano))
		case slog.KindDuration:
			v = slog.StringValue(v.Duration().String())
		case slog.KindString:
			v = slog.StringValue(bounded(v.String(), left))
		default:
			v = slog.StringValue(bounded(fmt.Sprint(v.Any()), left))
		}
		out[i] = slog.Attr{Key: bounded(a.Key, &key), Value: v}
	}
	return out
}

// bounded is s as UTF-8, cut to what is left for it. The lines make it printable:
// each format has escapes of its own.
func bounded(s string, left *int) string {
	limit, end := min(maxString, *left), ""
	if len(s) > limit {
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		s, end = s[:limit], mark
	}
	*left -= len(s)
	if utf8.ValidString(s) {
		return s + end
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			b.WriteString(visible.Text(s[i : i+1]))
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String() + end
}

// lines is the end of the way: what a handler of log/slog writes, which is one line
// in one write, leaves as one line of printable characters.
type lines struct {
	w    io.Writer
	json bool
}

// Write implements io.Writer.
func (l lines) Write(p []byte) (int, error) {
	line := strings.TrimSuffix(string(p), "\n")
	if l.json {
		line = strings.NewReplacer("\n", " ", "\t", " ").Replace(string(visible.JSON([]byte(line))))
	} else {
		line = visible.Text(line)
	}
	if _, err := io.WriteString(l.w, line+"\n"); err != nil {
		return 0, err
	}
	return len(p), nil
}
