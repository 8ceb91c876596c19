package visible_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/visible"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		"plain":                    "plain",
		"größe 東京":                 "größe 東京",
		"a\r\nb\tc":                `a\r\nb\tc`,
		"\x1b]0;title\a":           `\x1b]0;title\a`,
		"\u009b31m":                `\u009b31m`,
		"\x9b31m":                  `\x9b31m`,
		"\x00\x7f":                 `\x00\x7f`,
		"a\u2028b\u2029c\u0085d":   `a\u2028b\u2029c\u0085d`,
		"\u202eexe.\u2066\u2069":   `\u202eexe.\u2066\u2069`,
		"a\u200bb\ufeff":           `a\u200bb\ufeff`,
		"\xc0\xaf\xed\xa0\x80":     `\xc0\xaf\xed\xa0\x80`,
		"\U000e0041":               `\U000e0041`,
		"the real one: \ufffd":     "the real one: \ufffd",
		"a\u00a0b\u3000c\u2003d":   `a\u00a0b\u3000c\u2003d`,
		strings.Repeat("\n", 2):    `\n\n`,
		"already \\n written":      `already \n written`,
		"percent %0a, format %s%n": "percent %0a, format %s%n",
	} {
		if got := visible.Text(in); got != want {
			t.Errorf("Text(%q) is %q, want %q", in, got, want)
		}
	}
	if got, want := visible.Lines("a\tb\x1b\n\nc\r\n"), "a\tb\\x1b\n\nc\\r\n"; got != want {
		t.Errorf("Lines is %q, want %q", got, want)
	}
}

// FuzzText: whatever comes from outside, what is shown is one line of printable
// characters; a JSON document still means the same.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "plain", "\x1b[2J", "a\u202eb", "\xff\xfe", "tab\there", "\u0000", "é…", "\u009b0m", "\U000e0001", `\u0041"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text := visible.Text(s)
		if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || !utf8.ValidString(text) {
			t.Errorf("Text(%q) is %q", s, text)
		}
		for _, r := range visible.Lines(s) {
			if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
				t.Errorf("Lines(%q) has %q", s, r)
			}
		}
		for _, r := range string(visible.JSON([]byte(s))) {
			if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
				t.Errorf("JSON(%q) has %q", s, r)
			}
		}
		doc, err := json.MarshalIndent(map[string]any{"k" + s: []any{s, 1.5, nil}}, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		var before, after any
		if err := json.Unmarshal(doc, &before); err != nil {
			t.Fatal(err)
		}
		shown := visible.JSON(doc)
		if err := json.Unmarshal(shown, &after); err != nil || !reflect.DeepEqual(before, after) {
			t.Errorf("%q means another thing as %q: %v", doc, shown, err)
		}
	})
}
