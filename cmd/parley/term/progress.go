package term

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/visible"
)

// When progress shows itself.
const (
	spinAfter = 300 * time.Millisecond
	spinEach  = 100 * time.Millisecond
	tellAfter = 2 * time.Second  // seconds are counted; the first line of a log
	tellEach  = 30 * time.Second // the next ones
)

// Progress says on standard error what is being waited for, until the returned
// function is called: on a terminal a spinner after 0.3 s, with the seconds after
// 2 s; elsewhere a line after 2 s and one each 30 s. What ends sooner says nothing.
func (t *Terminal) Progress(ctx context.Context, clk clock.Clock, what string) (stop func()) {
	if t.quiet || t.json {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if t.errTTY {
			t.spin(ctx, clk, what)
		} else {
			t.tell(ctx, clk, what)
		}
	})
	return func() { cancel(); wg.Wait() }
}

func (t *Terminal) spin(ctx context.Context, clk clock.Clock, what string) {
	start := clk.Now()
	if clk.Sleep(ctx, spinAfter) != nil {
		return
	}
	for i := 0; ; i++ {
		waited := ""
		if d := clk.Now().Sub(start); d >= tellAfter {
			waited = fmt.Sprintf(" (%s)", Span(d))
		}
		t.talk(fmt.Sprintf("\r\x1b[K%c %s%s", `|/-\`[i%4], visible.Text(what), waited))
		if clk.Sleep(ctx, spinEach) != nil {
			t.talk("\r\x1b[K")
			return
		}
	}
}

func (t *Terminal) tell(ctx context.Context, clk clock.Clock, what string) {
	start := clk.Now()
	for wait := tellAfter; clk.Sleep(ctx, wait) == nil; wait = tellEach {
		t.talk(fmt.Sprintf("%s (%s)\n", visible.Text(what), Span(clk.Now().Sub(start))))
	}
}

func (t *Terminal) talk(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = t.err.Write([]byte(s))
}
