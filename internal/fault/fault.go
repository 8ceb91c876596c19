// Package fault is the error a person reads: a stable code, what is wrong,
// where, and what to do next. Rooms return it where an operator can act;
// cmd/parley prints it as `error[PAR-nnnn]:` and `hint:` lines, or as JSON.
//
// It refuses to decide exit codes or to print: that is cmd/parley's.
package fault

import (
	"errors"
	"fmt"
	"strings"
)

// A Code is a stable name of one kind of fault, "PAR-" and four digits. Codes
// are never reused and never change their meaning; `parley explain CODE` has a
// page for each, checked by a test.
type Code string

// A Fault is one thing that is wrong. The zero values of the position say that
// there is none.
type Fault struct {
	Code Code `json:"code"`
	// Message says what is wrong: lower case, no full stop, no advice.
	Message string `json:"message"`
	// File, Line and Column place it; Line and Column count from 1, Column in
	// bytes. EndColumn is one past the last byte.
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"`
	Column    int    `json:"column,omitempty"`
	EndColumn int    `json:"end_column,omitempty"`
	// Label stands under the marked source text: why this place is wrong.
	Label string `json:"label,omitempty"`
	// Hint is the next thing to do, a command where there is one.
	Hint string `json:"help,omitempty"`
	// Replacement is what an editor may put between Column and EndColumn.
	Replacement string `json:"replacement,omitempty"`
	// Source is the line of File at Line and the one before it, for the excerpt.
	Source []string `json:"-"`
	// Err is the cause, if any; it is appended to the text.
	Err error `json:"-"`
}

// Error is the fault in one line.
func (f *Fault) Error() string {
	var b strings.Builder
	if f.File != "" {
		fmt.Fprintf(&b, "%s:", f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", f.Line, f.Column)
		}
		b.WriteByte(' ')
	}
	b.WriteString(f.Message)
	if f.Err != nil {
		fmt.Fprintf(&b, ": %v", f.Err)
	}
	return b.String()
}

// Unwrap is the cause.
func (f *Fault) Unwrap() error { return f.Err }

// New is a fault without a position.
func New(code Code, hint, format string, args ...any) *Fault {
	return &Fault{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// Wrap is a fault with a cause.
func Wrap(err error, code Code, hint, format string, args ...any) *Fault {
	return &Fault{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint, Err: err}
}

// A List is several faults found in one run. An empty List is no error: use Err.
type List []*Fault

// Err is the list as an error, or nil when it is empty.
func (l List) Err() error {
	if len(l) == 0 {
		return nil
	}
	return l
}

// Error joins the faults, one a line.
func (l List) Error() string {
	lines := make([]string, len(l))
	for i, f := range l {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.Is and errors.As every fault.
func (l List) Unwrap() []error {
	errs := make([]error, len(l))
	for i, f := range l {
		errs[i] = f
	}
	return errs
}

// All is every fault inside err, in order; none when err holds no fault.
func All(err error) List {
	var l List
	if errors.As(err, &l) {
		return l
	}
	var f *Fault
	if errors.As(err, &f) {
		return List{f}
	}
	return nil
}
