package term

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/parleymesh/parley/internal/visible"
)

// A Column of a table.
type Column struct {
	Title string
	// Right aligns numbers.
	Right bool
	// Drop says when a column gives way in a narrow terminal: 1 first; 0 never.
	Drop int
	// Min lets the column be shortened in the middle to that many characters; 0
	// does not.
	Min int
	// Stream is the width that the column has in a stream of rows, where nothing
	// can be measured.
	Stream int
}

// A Cell is a text in a style. A cell with a Mark is that mark.
type Cell struct {
	Text  string
	Style Style
	Mark  Mark
}

// A Table is rows under titles: two spaces between columns, no boxes.
type Table struct {
	Columns []Column
	rows    [][]Cell
}

const (
	indent = "  "
	gap    = "  "
)

// Row appends a row; cells are strings, Marks or Cells.
func (tab *Table) Row(cells ...any) { tab.rows = append(tab.rows, row(cells)) }

// Len is the number of rows.
func (tab *Table) Len() int { return len(tab.rows) }

func row(cells []any) []Cell {
	out := make([]Cell, len(cells))
	for i, c := range cells {
		switch v := c.(type) {
		case Cell:
			out[i] = v
		case Mark:
			out[i] = Cell{Mark: v}
		default:
			out[i] = Cell{Text: fmt.Sprint(v)}
		}
		out[i].Text = visible.Text(out[i].Text)
	}
	return out
}

// Table writes the table so that it fits the terminal: it shortens, then leaves
// out columns and says so; below 50 columns it writes one block a record.
func (t *Terminal) Table(tab *Table) {
	if t.width > 0 && t.width < blockWidth {
		for i, r := range tab.rows {
			if i > 0 {
				t.Printf("\n")
			}
			t.block(tab.Columns, r)
		}
		return
	}
	shown, widths, hidden := t.fit(tab.Columns, measure(tab))
	titles := make([]Cell, len(tab.Columns))
	for i, c := range tab.Columns {
		titles[i] = Cell{Text: c.Title}
	}
	t.line(tab.Columns, shown, widths, titles, true)
	for _, r := range tab.rows {
		t.line(tab.Columns, shown, widths, r, false)
	}
	if hidden > 0 {
		t.Hintf("%s hidden, use -o wide\n", Count(hidden, "column"))
	}
}

// fit chooses the columns to show and their widths, of those that they would
// like to have.
func (t *Terminal) fit(columns []Column, wanted []int) (shown []bool, widths []int, hidden int) {
	shown = make([]bool, len(columns))
	for i := range shown {
		shown[i] = true
	}
	for {
		widths = slices.Clone(wanted)
		excess := total(shown, widths) - t.width
		if t.width == 0 || excess <= 0 || shrink(columns, shown, widths, excess) {
			return shown, widths, hidden
		}
		next := -1
		for i, c := range columns {
			if shown[i] && c.Drop > 0 && (next < 0 || c.Drop < columns[next].Drop) {
				next = i
			}
		}
		if next < 0 {
			return shown, widths, hidden
		}
		shown[next], hidden = false, hidden+1
	}
}

func measure(tab *Table) []int {
	widths := make([]int, len(tab.Columns))
	for i, c := range tab.Columns {
		widths[i] = utf8.RuneCountInString(c.Title)
		for _, r := range tab.rows {
			widths[i] = max(widths[i], r[i].width())
		}
	}
	return widths
}

// width is the number of characters of a cell; a mark has two columns.
func (c Cell) width() int {
	if c.Mark != None {
		return 2
	}
	return utf8.RuneCountInString(c.Text)
}

func total(shown []bool, widths []int) int {
	n := len(indent) - len(gap)
	for i, w := range widths {
		if shown[i] {
			n += w + len(gap)
		}
	}
	return n
}

// shrink takes excess from the columns that may be shortened, the widest first,
// and says whether that was enough.
func shrink(columns []Column, shown []bool, widths []int, excess int) bool {
	for ; excess > 0; excess-- {
		widest := -1
		for i, c := range columns {
			if shown[i] && c.Min > 0 && widths[i] > max(c.Min, utf8.RuneCountInString(c.Title)) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return false
		}
		widths[widest]--
	}
	return true
}

func (t *Terminal) line(columns []Column, shown []bool, widths []int, cells []Cell, title bool) {
	var b strings.Builder
	for i, c := range columns {
		if !shown[i] {
			continue
		}
		text, style := cells[i].Text, cells[i].Style
		if cells[i].Mark != None {
			text, style = t.markText(cells[i].Mark), marks[cells[i].Mark].style
		}
		if title {
			style = Dim
		}
		text = t.shorten(text, widths[i])
		b.WriteString(gap)
		b.WriteString(paint(t.outColor, style, pad(text, widths[i], c.Right)))
	}
	t.Printf("%s\n", painted(strings.TrimRight(b.String(), " ")))
}

// block is a record of a terminal that is too narrow for rows.
func (t *Terminal) block(columns []Column, cells []Cell) {
	for i, c := range columns {
		text := cells[i].Text
		if cells[i].Mark != None {
			text = t.markText(cells[i].Mark)
		}
		if text != "" && c.Title != "" {
			t.Printf("%s: %s\n", strings.ToLower(c.Title), text)
		} else if text != "" {
			t.Printf("%s\n", text)
		}
	}
}

// A Stream writes rows one by one, in columns whose width cannot be measured
// beforehand.
type Stream struct {
	t       *Terminal
	columns []Column
	shown   []bool
	widths  []int
}

// widest is to how many characters the column of a stream may grow.
const widest = 60

// Stream is a table whose rows are not known yet.
func (t *Terminal) Stream(columns []Column) *Stream {
	wanted := make([]int, len(columns))
	for i, c := range columns {
		wanted[i] = c.Stream
	}
	s := &Stream{t: t, columns: columns}
	s.shown, s.widths, _ = t.fit(columns, wanted)
	return s
}

// Row writes one row. Where nothing is shortened, a long text widens its column
// from there on, so that the rows after it stand under each other again; one that
// is longer than widest moves the rest of its own line only.
func (s *Stream) Row(cells ...any) {
	r := row(cells)
	if s.t.width > 0 && s.t.width < blockWidth {
		s.t.block(s.columns, r)
		s.t.Printf("\n")
		return
	}
	if s.t.width == 0 {
		for i, c := range r {
			if w := c.width(); w <= widest {
				s.widths[i] = max(s.widths[i], w)
			}
		}
	}
	s.t.line(s.columns, s.shown, s.widths, r, false)
}

// shorten cuts the middle out, so that both a trust domain and a name stay
// readable; where the terminal has no limit it cuts nothing.
func (t *Terminal) shorten(s string, width int) string {
	n := utf8.RuneCountInString(s)
	if t.width == 0 || n <= width {
		return s
	}
	dots := "..."
	if t.unicode {
		dots = "…"
	}
	r, keep := []rune(s), width-utf8.RuneCountInString(dots)
	if keep < 2 {
		return string(r[:max(width, 0)])
	}
	head := keep / 2
	return string(r[:head]) + dots + string(r[n-(keep-head):])
}

func pad(s string, width int, right bool) string {
	fill := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
	if right {
		return fill + s
	}
	return s + fill
}
