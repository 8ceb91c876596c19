package term

import (
	"strings"

	"github.com/parleymesh/parley/internal/visible"
)

// A Style is how important a text is. Only the 16 ANSI colours are used, so that
// the person's own theme decides what they look like.
type Style int

// The styles.
const (
	Plain  Style = iota
	Good         // as it should be: green
	Seen         // seen, not proven: cyan
	Warn         // somebody should look: bold yellow
	Bad          // somebody must look: bold red
	Dim          // secondary
	Strong       // what the reader acts on
)

var sequences = map[Style]string{
	Good: "\x1b[32m", Seen: "\x1b[36m", Warn: "\x1b[1;33m", Bad: "\x1b[1;31m", Dim: "\x1b[2m", Strong: "\x1b[1m",
}

// painted is text that is clean and may hold escape sequences of ours.
type painted string

// Paint is s, made harmless and in a style where standard output has colour. Its
// result is for the arguments of Printf.
func (t *Terminal) Paint(st Style, s string) any {
	return painted(paint(t.outColor, st, visible.Text(s)))
}

// paint colours the text and leaves the padding after it alone.
func paint(on bool, st Style, s string) string {
	text := strings.TrimRight(s, " ")
	if !on || sequences[st] == "" || text == "" {
		return s
	}
	return sequences[st] + text + "\x1b[0m" + s[len(text):]
}

// A Mark stands in the two columns before a line.
type Mark int

// The marks.
const (
	None    Mark = iota
	OK           // as it should be
	Observe      // seen, not proven
	Look         // somebody should look
	No           // refused, failed, exposed
	Unknown      // not known, which is never good
	Added
	Changed
	Removed
)

var marks = map[Mark]struct {
	symbol, word string
	style        Style
}{
	OK: {"✓", "ok", Good}, Observe: {"○", "ob", Seen}, Look: {"!", "!", Warn}, No: {"✗", "NO", Bad}, Unknown: {"?", "??", Dim},
	Added: {"+", "+", Good}, Changed: {"~", "~", Warn}, Removed: {"-", "-", Bad},
}

// markText is the mark without colour, at most two columns wide.
func (t *Terminal) markText(m Mark) string {
	if t.unicode {
		return marks[m].symbol
	}
	return marks[m].word
}

// Mark is a mark in its two columns. Its result is for the arguments of Printf.
func (t *Terminal) Mark(m Mark) any {
	return painted(paint(t.outColor, marks[m].style, pad(t.markText(m), 2, false)))
}
