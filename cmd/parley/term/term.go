// Package term is how the command speaks: streams, colour, symbols, tables,
// hints, progress and the text of errors, by one set of rules.
//
// Standard output is data, standard error is talk. Meaning is in words; colour
// and symbols only repeat it. What is piped has no colour, no animation and
// nothing shortened. Bytes from outside are made harmless before they reach a
// terminal.
//
// It refuses to decide exit codes, to read the process environment by itself and
// to know what a command is about.
package term

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/visible"
)

// Widths, in columns.
const (
	maxWidth     = 100 // lines are no longer, however wide the terminal is
	defaultWidth = 80  // of a terminal that does not say
	blockWidth   = 50  // below it a table becomes one block a record
)

// Config says where a Terminal writes and what the person asked for.
type Config struct {
	// Out and Err are the process's standard streams, or what stands for them.
	// An *os.File is asked whether it is a terminal; anything else is none.
	Out, Err io.Writer
	// Getenv reads the environment: NO_COLOR, FORCE_COLOR, CLICOLOR_FORCE, TERM,
	// COLUMNS, LC_ALL, LC_CTYPE, LANG.
	Getenv func(string) string
	// Color is "auto", "always" or "never"; empty is auto.
	Color string
	// JSON makes every answer one document; Wide shows every column in full;
	// Quiet leaves out all talk but errors.
	JSON, Wide, Quiet bool
	// Width overrides the terminal's, 0 does not. Terminal says that both
	// streams are terminals, whatever they are. Both are for tests.
	Width    int
	Terminal bool
}

// A Terminal is the two streams with the rules for each. Its methods are safe
// for concurrent use.
type Terminal struct {
	mu       sync.Mutex // guards out and err, a line at a time
	out, err io.Writer

	outTTY, errTTY     bool
	outColor, errColor bool
	unicode            bool
	width              int // 0: nothing is shortened
	json, quiet        bool
	lost               error // guarded by mu
}

// New judges the streams one by one.
func New(c Config) (*Terminal, error) {
	switch c.Color {
	case "", "auto", "always", "never":
	default:
		return nil, fmt.Errorf("--color is auto, always or never, not %q", c.Color)
	}
	t := &Terminal{out: c.Out, err: c.Err, json: c.JSON, quiet: c.Quiet}
	outWidth, outTTY := size(c.Out)
	_, errTTY := size(c.Err)
	t.outTTY, t.errTTY = outTTY || c.Terminal, errTTY || c.Terminal
	t.outColor, t.errColor = colors(c, t.outTTY), colors(c, t.errTTY)
	t.unicode = t.outTTY && utf8Locale(c.Getenv)
	if t.outTTY && !c.Wide {
		t.width = width(c, outWidth)
	}
	if c.Width > 0 && !c.Wide {
		t.width = c.Width
	}
	return t, nil
}

// JSON says that answers are to be documents.
func (t *Terminal) JSON() bool { return t.json }

// Wide says that nothing is shortened or left out.
func (t *Terminal) Wide() bool { return t.width == 0 }

// Interactive says that a person sees both streams.
func (t *Terminal) Interactive() bool { return t.outTTY && t.errTTY && !t.json && !t.quiet }

// Watched says that a person sees standard error.
func (t *Terminal) Watched() bool { return t.errTTY }

// Printf writes data to standard output. Arguments are made harmless.
func (t *Terminal) Printf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := fmt.Fprintf(t.out, format, clean(args)...); err != nil && t.lost == nil {
		t.lost = err
	}
}

// Folded is a sentence that begins behind indent columns, folded between words so
// that it fits the terminal; a command in it, from "parley" on, stays whole, to be
// pasted.
func (t *Terminal) Folded(text string, indent int) any {
	prose, command := text, ""
	if i := strings.Index(" "+text, " parley "); i >= 0 {
		prose, command = text[:i], text[i:]
	}
	if t.width == 0 || indent+utf8.RuneCountInString(text) <= t.width || strings.TrimSpace(prose) == "" {
		return text
	}
	margin := strings.Repeat(" ", indent)
	lines := strings.Split(Wrap(visible.Text(prose), margin, t.width), "\n")
	if last := lines[len(lines)-1]; command == "" || utf8.RuneCountInString(last+" "+command) <= t.width {
		lines[len(lines)-1] = strings.TrimRight(last+" "+visible.Text(command), " ")
	} else {
		lines = append(lines, margin+visible.Text(command))
	}
	return painted(strings.TrimPrefix(strings.Join(lines, "\n"), margin))
}

// Lost is why a part of the answer could not be written, nil where all of it was.
func (t *Terminal) Lost() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost
}

// Notef writes talk to standard error: what was done, beside the data.
func (t *Terminal) Notef(format string, args ...any) {
	if t.quiet || t.json {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.err, format, clean(args)...)
}

// Hintf suggests what to do next, on standard error, and only where a person
// sees both streams: a hint in a pipe spoils what reads it.
func (t *Terminal) Hintf(format string, args ...any) {
	if t.Interactive() {
		t.Notef(format, args...)
	}
}

// Raw writes bytes to standard output as they are: a document that was asked
// for, such as a mesh file. A terminal gets them made harmless.
func (t *Terminal) Raw(data []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.outTTY {
		data = []byte(visible.Lines(string(data)))
	}
	_, err := t.out.Write(data)
	if err != nil && t.lost == nil {
		t.lost = err
	}
	return err
}

// colors applies the rules in order: the flag, NO_COLOR, the forcing variables,
// the stream and the terminal's kind.
func colors(c Config, tty bool) bool {
	forced := func(name string) bool { v := c.Getenv(name); return v != "" && v != "0" }
	switch {
	case c.JSON || c.Color == "never":
		return false
	case c.Color == "always":
		return true
	case c.Getenv("NO_COLOR") != "":
		return false
	case forced("FORCE_COLOR") || forced("CLICOLOR_FORCE"):
		return true
	}
	return tty && c.Getenv("TERM") != "dumb"
}

// width is the terminal's, else COLUMNS, else 80, and never above 100.
func width(c Config, tty int) int {
	w := tty
	if w <= 0 {
		w, _ = strconv.Atoi(c.Getenv("COLUMNS"))
	}
	if w <= 0 {
		w = defaultWidth
	}
	return min(w, maxWidth)
}

func utf8Locale(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// size is a terminal's width in columns, and whether w is a terminal at all.
func size(w io.Writer) (columns int, tty bool) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, false
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	return int(ws.Col), true
}

// clean makes args harmless, whatever they are.
func clean(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case painted:
			out[i] = string(v)
		case string:
			out[i] = visible.Text(v)
		case error:
			out[i] = visible.Lines(v.Error())
		case int, int64, uint64, float64, bool:
			out[i] = a
		default:
			out[i] = shown{a}
		}
	}
	return out
}

// shown is a value of which only fmt knows how it will look.
type shown struct{ value any }

// Format implements fmt.Formatter.
func (s shown) Format(state fmt.State, verb rune) {
	_, _ = io.WriteString(state, visible.Text(fmt.Sprintf(fmt.FormatString(state, verb), s.value)))
}
