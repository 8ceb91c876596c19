package mesh

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/parleymesh/parley/internal/fault"
)

// maxExcerpt is the longest line that a fault shows, in bytes.
const maxExcerpt = 1024

// A span is a piece of one line: line and columns count from 1, columns in
// bytes, end is one past the last byte. The zero span is nowhere.
type span struct{ line, col, end int }

// A place is where a value of the document stands, with its key if it has one.
type place struct {
	key, value span
	flow       bool // written as {...} or [...]
}

// mark is the span to point at: the value, or the key of a value that is a
// block or empty.
func (p place) mark() span {
	if p.value.line == 0 {
		return p.key
	}
	return p.value
}

// A source is a document's text by lines.
type source struct {
	name  string
	lines []string
}

func newSource(name, text string) *source {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "\r")
	}
	return &source{name: name, lines: lines}
}

// line is the text of line number n, empty outside of the document.
func (s *source) line(n int) string {
	if n < 1 || n > len(s.lines) {
		return ""
	}
	return s.lines[n-1]
}

// excerpt is line n and the one before it, for a fault: none where n is too
// long to be shown.
func (s *source) excerpt(n int) []string {
	text, before := s.line(n), s.line(n-1)
	switch {
	case n < 1 || len(text) > maxExcerpt:
		return nil
	case n == 1 || len(before) > maxExcerpt:
		return []string{text}
	}
	return []string{before, text}
}

// start is where a node begins. YAML counts columns in characters, a span in
// bytes.
func (s *source) start(n *yaml.Node) span {
	text, col := s.line(n.Line), 0
	for i := 1; i < n.Column && col < len(text); i++ {
		_, size := utf8.DecodeRuneInString(text[col:])
		col += size
	}
	return span{n.Line, col + 1, col + 2}
}

// scalar is the span of a scalar's text with its quotes, as far as it stands on
// its first line.
func (s *source) scalar(n *yaml.Node) span {
	at := s.start(n)
	text := s.line(at.line)[at.col-1:]
	switch {
	case n.Value == "" && n.Style == 0 || text == "":
		return span{} // nothing is written
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
	case n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		at.end = at.col + quoted(text)
	case strings.HasPrefix(text, n.Value):
		at.end = at.col + len(n.Value)
	default: // a plain scalar of several lines
		at.end = at.col + len(strings.TrimRight(text, " \t"))
	}
	return at
}

// quoted is the length of the quoted scalar that text begins with.
func quoted(text string) int {
	quote := text[0]
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '\\' && quote == '"':
			i++
		case text[i] == quote && quote == '\'' && i+1 < len(text) && text[i+1] == quote:
			i++
		case text[i] == quote:
			return i + 1
		}
	}
	return len(text)
}

// whole is the span of a line without the space around it.
func (s *source) whole(n int) span {
	text := s.line(n)
	trimmed := strings.TrimSpace(text)
	col := strings.Index(text, trimmed) + 1
	return span{n, col, col + max(len(trimmed), 1)}
}

// A flaw is what is wrong with one value, before it has a position.
type flaw struct {
	code                     fault.Code
	message                  string
	label, hint, replacement string
}

// A reporter collects the faults of one document, at most MaxFaults.
type reporter struct {
	src    *source
	faults fault.List
	more   bool
}

// full says that checking ends; whoever asks has something left to check.
func (r *reporter) full() bool {
	r.more = r.more || len(r.faults) >= MaxFaults
	return r.more
}

// add places a flaw.
func (r *reporter) add(at span, f flaw) {
	if r.full() {
		return
	}
	out := &fault.Fault{
		Code: f.code, Message: printable(f.message), File: r.src.name, Line: at.line, Column: at.col, EndColumn: at.end,
		Label: printable(f.label), Hint: printable(f.hint), Replacement: f.replacement,
	}
	out.Source = r.src.excerpt(at.line)
	r.faults = append(r.faults, out)
}

// maxText bounds a message, a label or a hint, in bytes.
const maxText = 500

// printable is s for a terminal: it may repeat names of the document, which hold
// what they like and are as long as they like.
func printable(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return utf8.RuneError
		}
		return c
	}, s)
}

// err is everything found, in order of place.
func (r *reporter) err() error {
	sortFaults(r.faults)
	if r.more {
		r.faults = append(r.faults, fault.New(fault.MeshTooLarge, "correct these first",
			"%s has at least %d errors, checking ended there", r.src.name, MaxFaults))
	}
	return r.faults.Err()
}

// where is a line of the document as a person writes it: parley.yaml:31.
func (s *source) where(line int) string { return fmt.Sprintf("%s:%d", s.name, line) }
