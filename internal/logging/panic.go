package logging

import (
	"errors"
	"fmt"
	"log"
	"log/slog"
	"regexp"
	"runtime"
	"strings"
)

// maxFrames bounds the calls of a stack that are told.
const maxFrames = 24

// Panicked is what may be told of a panic, from the function that recovered it: what
// the runtime says of its own errors, of any other value the type alone, since it may
// hold what a client sent; and the names and lines of the calls, without arguments.
func Panicked(v any) slog.Attr {
	what := fmt.Sprintf("%T", v)
	if err, ok := v.(error); ok {
		if re := runtime.Error(nil); errors.As(err, &re) {
			what = re.Error()
		}
	}
	var pcs [maxFrames]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	var stack []string
	for {
		f, more := frames.Next()
		stack = append(stack, fmt.Sprintf("%s:%d", f.Function, f.Line))
		if !more {
			break
		}
	}
	return slog.Group("panic", slog.String("what", what), slog.String("stack", strings.Join(stack, " ")))
}

// quoted is what a remark repeats of what a peer sent.
var quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"?`)

// Remarks is a log of the standard library's kind, for net/http, whose remarks are
// about misbehaving peers: each becomes a line of level debug, without what it quotes.
func Remarks(l *slog.Logger, component string) *log.Logger {
	return log.New(remarks{l, component}, "", 0)
}

type remarks struct {
	logger    *slog.Logger
	component string
}

// Write implements io.Writer.
func (r remarks) Write(line []byte) (int, error) {
	r.logger.Debug("remark of the HTTP library", "component", r.component, "remark", quoted.ReplaceAllString(strings.TrimSpace(string(line)), `"…"`))
	return len(line), nil
}
