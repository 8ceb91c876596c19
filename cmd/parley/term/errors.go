package term

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/visible"
)

// Error writes err: faults with their code, place, excerpt and hint, on standard
// error; or for --json one document on standard output. exitCode is only told.
func (t *Terminal) Error(err error, exitCode int) {
	faults := fault.All(err)
	if t.json {
		p := problem{ExitCode: exitCode, Message: err.Error(), Faults: fault.List{}}
		for _, f := range faults {
			whole := *f
			whole.Message = message(f)
			p.Faults = append(p.Faults, &whole)
		}
		_ = t.Document("error", p) // there is nowhere left to complain
		return
	}
	var b strings.Builder
	if len(faults) == 0 {
		// Further lines are indented: none of them can pass for an error or a hint.
		fmt.Fprintf(&b, "%s: %s\n", paint(t.errColor, Bad, "error"), strings.ReplaceAll(visible.Lines(err.Error()), "\n", "\n  "))
	}
	placed := 0
	for i, f := range faults {
		if i > 0 {
			b.WriteByte('\n')
		}
		if f.File != "" {
			placed++
		}
		t.fault(&b, f)
	}
	if placed > 0 {
		them := "it"
		if len(faults) > 1 {
			them = "one of them"
		}
		fmt.Fprintf(&b, "\n%s, nothing was changed. About %s:  parley explain %s\n", Count(len(faults), "error"), them, faults[0].Code)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = t.err.Write([]byte(b.String()))
}

func (t *Terminal) fault(b *strings.Builder, f *fault.Fault) {
	fmt.Fprintf(b, "%s: %s\n", paint(t.errColor, Bad, fmt.Sprintf("error[%s]", f.Code)), visible.Text(message(f)))
	if f.File == "" {
		for line := range strings.Lines(f.Hint) {
			fmt.Fprintf(b, "hint: %s\n", visible.Text(strings.TrimRight(line, "\n")))
		}
		return
	}
	number := fmt.Sprint(f.Line)
	margin := strings.Repeat(" ", len(number))
	bar := func(text string) { b.WriteString(strings.TrimRight(margin+" | "+text, " ") + "\n") }
	if f.Line == 0 {
		fmt.Fprintf(b, "  --> %s\n", visible.Text(f.File))
	} else {
		fmt.Fprintf(b, "%s--> %s:%d:%d\n", margin, visible.Text(f.File), f.Line, f.Column)
	}
	if f.Line > 0 && len(f.Source) > 0 {
		bar("")
		t.excerpt(b, f, margin)
		bar("")
	}
	for line := range strings.Lines(f.Hint) {
		fmt.Fprintf(b, "%s = help: %s\n", margin, visible.Text(strings.TrimRight(line, "\n")))
	}
}

// message is what is wrong with its cause.
func message(f *fault.Fault) string {
	if f.Err != nil {
		return f.Message + ": " + f.Err.Error()
	}
	return f.Message
}

// excerpt writes the line before the fault's, the fault's, and the carets under
// it. The last of Source is the fault's line.
func (t *Terminal) excerpt(b *strings.Builder, f *fault.Fault, margin string) {
	for i, text := range f.Source {
		n := fmt.Sprint(f.Line - len(f.Source) + 1 + i)
		shown, _ := window(text, 0)
		if i == len(f.Source)-1 {
			shown, _ = window(text, f.Column-1)
		}
		fmt.Fprintf(b, "%s\n", strings.TrimRight(pad(n, len(margin), true)+" | "+shown, " "))
	}
	last := f.Source[len(f.Source)-1]
	_, at := window(last, f.Column-1)
	from, to := clamp(f.Column-1, len(last)), clamp(f.EndColumn-1, len(last))
	carets := 1
	if to > from {
		carets = utf8.RuneCountInString(expand(last[from:to]))
	}
	carets = min(carets, max(1, sourceWidth-at))
	mark := strings.Repeat(" ", at) + paint(t.errColor, Bad, strings.Repeat("^", carets))
	if f.Label != "" {
		mark += " " + visible.Text(f.Label)
	}
	fmt.Fprintf(b, "%s | %s\n", margin, mark)
}

const sourceWidth = 88 // columns of an excerpt that are shown

// window is a source line as it is shown, and the column in it of byte at: tabs
// become spaces, nothing moves the cursor, and of a long line only the part
// around at is left.
func window(line string, at int) (shown string, column int) {
	before := expand(line[:clamp(at, len(line))])
	text := []rune(expand(line))
	column = utf8.RuneCountInString(before)
	if len(text) <= sourceWidth {
		return string(text), column
	}
	start := max(0, min(column-sourceWidth/2, len(text)-sourceWidth))
	return string(text[start : start+sourceWidth]), column - start
}

func expand(s string) string { return visible.Text(strings.ReplaceAll(s, "\t", "    ")) }

func clamp(n, limit int) int { return max(0, min(n, limit)) }
