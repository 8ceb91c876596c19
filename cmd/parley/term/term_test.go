package term_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestColor(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config term.Config
		want   bool
	}{
		"terminal":                   {term.Config{Terminal: true, Getenv: env()}, true},
		"piped":                      {term.Config{Getenv: env()}, false},
		"NO_COLOR":                   {term.Config{Terminal: true, Getenv: env("NO_COLOR", "1")}, false},
		"dumb terminal":              {term.Config{Terminal: true, Getenv: env("TERM", "dumb")}, false},
		"forced":                     {term.Config{Getenv: env("FORCE_COLOR", "1")}, true},
		"forced by the other name":   {term.Config{Getenv: env("CLICOLOR_FORCE", "1")}, true},
		"forced by 0 is not forced":  {term.Config{Getenv: env("FORCE_COLOR", "0")}, false},
		"NO_COLOR beats force":       {term.Config{Terminal: true, Getenv: env("FORCE_COLOR", "1", "NO_COLOR", "1")}, false},
		"flag beats NO_COLOR":        {term.Config{Color: "always", Getenv: env("NO_COLOR", "1")}, true},
		"flag beats force":           {term.Config{Terminal: true, Color: "never", Getenv: env("FORCE_COLOR", "1")}, false},
		"documents are not coloured": {term.Config{Color: "always", JSON: true, Getenv: env()}, false},
	} {
		var out bytes.Buffer
		tc.config.Out, tc.config.Err = &out, &out
		tm, err := term.New(tc.config)
		if err != nil {
			t.Fatal(err)
		}
		tm.Printf("%s", tm.Paint(term.Bad, "NO"))
		if got := strings.Contains(out.String(), "\x1b["); got != tc.want {
			t.Errorf("%s: colour %v, want %v", name, got, tc.want)
		}
	}
	if _, err := term.New(term.Config{Color: "loud", Getenv: env()}); err == nil {
		t.Error("--color=loud was taken")
	}
}

func TestHintsAreForPeople(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config term.Config
		want   string
	}{
		"terminals": {term.Config{Terminal: true}, "note hint"},
		"piped":     {term.Config{}, "note "},
		"quiet":     {term.Config{Terminal: true, Quiet: true}, ""},
		"document":  {term.Config{Terminal: true, JSON: true}, ""},
	} {
		var out, errs bytes.Buffer
		tc.config.Out, tc.config.Err, tc.config.Getenv = &out, &errs, env()
		tm, err := term.New(tc.config)
		if err != nil {
			t.Fatal(err)
		}
		tm.Notef("note ")
		tm.Hintf("hint")
		if errs.String() != tc.want || out.Len() > 0 {
			t.Errorf("%s: %q on standard error and %q on standard output, want %q", name, &errs, &out, tc.want)
		}
	}
}

func TestWords(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for got, want := range map[string]string{
		term.Number(0): "0", term.Number(999): "999", term.Number(1000): "1,000", term.Number(int64(-1204881)): "-1,204,881",
		term.Count(1, "place"): "1 place", term.Count(2, "place"): "2 places", term.Count(0, "column"): "0 columns",
		term.Span(59 * time.Second): "59s", term.Span(59 * time.Minute): "59m", term.Span(47 * time.Hour): "47h", term.Span(48 * time.Hour): "2d",
		term.Relative(now.Add(11*time.Minute), now): "in 11m", term.Relative(now.Add(5*time.Minute-time.Millisecond), now): "in 5m", term.Relative(now.Add(-time.Second), now): "1s ago", term.Relative(now, now): "just now",
		term.Relative(now.Add(-400*time.Millisecond), now): "just now", term.Relative(now.Add(400*time.Millisecond), now): "now", term.Relative(time.Time{}, now): "",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	for name, tc := range map[string]struct {
		tty  bool
		wait time.Duration
		want string
	}{
		"short, terminal": {true, 200 * time.Millisecond, ""},
		"short, piped":    {false, time.Second, ""},
		"spinner":         {true, 350 * time.Millisecond, "\r\x1b[K| waiting\r\x1b[K"},
		"lines":           {false, 40 * time.Second, "waiting (2s)\nwaiting (32s)\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var errs bytes.Buffer
				tm, err := term.New(term.Config{Out: &bytes.Buffer{}, Err: &errs, Getenv: env(), Terminal: tc.tty})
				if err != nil {
					t.Fatal(err)
				}
				stop := tm.Progress(context.Background(), clock.System{}, "waiting")
				time.Sleep(tc.wait)
				stop()
				if errs.String() != tc.want {
					t.Errorf("%q, want %q", &errs, tc.want)
				}
			})
		})
	}
}

// TestStream: in a terminal columns are shortened before any is left out; in a pipe
// nothing is shortened, and the rows after a long text stand under each other.
func TestStream(t *testing.T) {
	t.Parallel()
	rows := [][]any{{"a", "one", "end"}, {"b", strings.Repeat("x", 30), "end"}, {"c", strings.Repeat("y", 90), "end"}, {"d", "four", "end"}}
	for name, tc := range map[string]struct {
		width int
		want  []int // where END begins in each row
	}{
		"pipe":   {0, []int{17, 37, 97, 37}},
		"wide":   {100, []int{17, 17, 17, 17}},
		"narrow": {50, []int{17, 17, 17, 17}},
	} {
		var out bytes.Buffer
		tm, err := term.New(term.Config{Out: &out, Err: &out, Getenv: env(), Terminal: tc.width > 0, Width: tc.width})
		if err != nil {
			t.Fatal(err)
		}
		s := tm.Stream([]term.Column{{Stream: 1}, {Title: "WHAT", Stream: 10, Min: 4}, {Title: "END", Stream: 3}})
		for _, r := range rows {
			s.Row(r...)
		}
		var got []int
		for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
			got = append(got, strings.Index(line, "end"))
		}
		if len(got) > 0 {
			got[0] += 2 // TrimSpace took the indent
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: END is at %v, want %v\n%s", name, got, tc.want, &out)
		}
	}
}

// TestHostileText: whatever comes from outside, what is written is printable, a line
// stays one line, and a document is JSON in every stream.
func TestHostileText(t *testing.T) {
	type named string
	const bad = "a\r\nb\x1b[2J\u009b31m\u202ec\u2028d\x7f\xff\U000e0041\u200b"
	write := map[string]func(tm *term.Terminal){
		"Printf": func(tm *term.Terminal) { tm.Printf("%s %v %q %8s %d\n", bad, named(bad), []string{bad}, named(bad), 7) },
		"Paint":  func(tm *term.Terminal) { tm.Printf("%s\n", tm.Paint(term.Bad, bad)) },
		"Notef":  func(tm *term.Terminal) { tm.Notef("%s %s\n", named(bad), bad) },
		"Folded": func(tm *term.Terminal) { tm.Printf("%s\n", tm.Folded(bad, 2)) },
		"Table": func(tm *term.Terminal) {
			tab := &term.Table{Columns: make([]term.Column, 2)}
			tab.Row(bad, named(bad))
			tm.Table(tab)
		},
		"Stream": func(tm *term.Terminal) { tm.Stream([]term.Column{{Stream: 4}}).Row(bad) },
		"Error":  func(tm *term.Terminal) { tm.Error(errors.New(strings.ReplaceAll(bad, "\n", "")), 3) },
		"fault": func(tm *term.Terminal) {
			tm.Error(fault.New(fault.MeshValue, strings.ReplaceAll(bad, "\n", ""), "%s", bad), 3)
		},
		"Document": func(tm *term.Terminal) { check(t, tm.DocumentLine("test", map[string]string{bad: bad})) },
		"Record":   func(tm *term.Terminal) { check(t, tm.Record([]byte("\"\u009b\u202e\x7f\""))) },
	}
	for name, f := range write {
		for _, c := range []term.Config{{}, {JSON: true}, {Terminal: true, Color: "never"}} {
			var out, errs bytes.Buffer
			c.Out, c.Err, c.Getenv = &out, &errs, env()
			tm, err := term.New(c)
			check(t, err)
			f(tm)
			got := out.String() + errs.String()
			if strings.ContainsFunc(got, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) || !utf8.ValidString(got) {
				t.Errorf("%s with %+v wrote %q", name, c, got)
			}
			if n := strings.Count(got, "\n"); !c.JSON && name != "Table" && n > 2 {
				t.Errorf("%s made %d lines: %q", name, n, got)
			}
			if c.JSON && out.Len() > 0 && (name == "Document" || name == "Error" || name == "fault" || name == "Record") && !json.Valid(out.Bytes()) {
				t.Errorf("%s is no JSON: %q", name, got)
			}
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzError: no fault, wherever it claims to be, breaks the excerpt.
func FuzzError(f *testing.F) {
	f.Add("message", "parley.yaml", "a: b", "label", "hint", 3, 1, 2)
	f.Add("", "f", "\tx\xff", "", "a\nb", 1, 900, -4)
	f.Add("m", "f", strings.Repeat("x", 500), "l", "", 1<<30, 400, 450)
	f.Fuzz(func(t *testing.T, message, file, source, label, hint string, line, column, end int) {
		var errs bytes.Buffer
		tm, err := term.New(term.Config{Out: &bytes.Buffer{}, Err: &errs, Getenv: env()})
		if err != nil {
			t.Fatal(err)
		}
		tm.Error(&fault.Fault{
			Code: fault.MeshValue, Message: message, File: file, Line: line, Column: column, EndColumn: end, Label: label, Hint: hint,
			Source: []string{"before", source},
		}, 2)
		for _, r := range errs.String() {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Errorf("%q is written", r)
			}
		}
	})
}
