package term

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Count is a number with its noun: "1 column", "2 columns".
func Count[N int | int64 | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return Number(n) + " " + noun + "s"
}

// Number groups the digits by three: "1,204,881".
func Number[N int | int64 | uint64](n N) string {
	s := strconv.FormatInt(int64(n), 10)
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// Span is a length of time in one unit, rounded down: "41m".
func Span(d time.Duration) string {
	switch d = d.Abs(); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Relative is a time as seen from now, to the second: "4m ago", "just now", "now",
// "in 11m"; "" for the zero time.
func Relative(at, now time.Time) string {
	switch d := at.Sub(now).Round(time.Second); {
	case at.IsZero():
		return ""
	case d == 0 && at.After(now):
		return "now"
	case d == 0:
		return "just now"
	case d > 0:
		return "in " + Span(d)
	default:
		return Span(d) + " ago"
	}
}

// Stamp is a time in UTC to the second.
func Stamp(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}

// Wrap breaks text at spaces into lines of at most width, all behind prefix.
func Wrap(text, prefix string, width int) string {
	var b strings.Builder
	line := prefix
	for word := range strings.FieldsSeq(text) {
		if line != prefix && len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = prefix
		}
		if line != prefix {
			line += " "
		}
		line += word
	}
	return b.String() + line
}
