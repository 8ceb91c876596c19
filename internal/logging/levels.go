package logging

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/clock"
)

// MaxChange is how long a changed level may last: what is to last longer is how the
// process is started.
const MaxChange = 24 * time.Hour

// Levels are what a log writes: the level that it was made with, or for a time
// another one. They are safe for concurrent use.
type Levels struct {
	level  slog.LevelVar // in force
	normal slog.Level
	clk    clock.Clock
	logger *slog.Logger

	mu      sync.Mutex // guards what follows
	until   time.Time  // zero at the normal level
	stop    context.CancelFunc
	changed chan struct{} // closed at the next change
}

// A State is what a log writes now.
type State struct {
	Level, Normal slog.Level
	// Until is when the level is the normal one again; zero where it is.
	Until time.Time
}

func newLevels(normal slog.Level, clk clock.Clock) *Levels {
	l := &Levels{normal: normal, clk: clk, stop: func() {}, changed: make(chan struct{})}
	l.level.Set(normal)
	return l
}

// Set makes level the one in force, and after d, which is at most MaxChange, the
// normal one again.
func (l *Levels) Set(level slog.Level, d time.Duration) {
	d = min(d, MaxChange)
	mine, stop := context.WithCancel(context.Background())
	l.change(context.Background(), level, l.clk.Now().Add(d), stop)
	go func() { // ends with the next change, or when it is over
		if l.clk.Sleep(mine, d) == nil {
			l.change(mine, l.normal, time.Time{}, func() {})
		}
	}()
}

// Reset makes the normal level the one in force.
func (l *Levels) Reset() {
	l.change(context.Background(), l.normal, time.Time{}, func() {})
}

// change does nothing where ctx has ended: another change came first.
func (l *Levels) change(ctx context.Context, level slog.Level, until time.Time, stop context.CancelFunc) {
	l.mu.Lock()
	if ctx.Err() != nil {
		l.mu.Unlock()
		return
	}
	l.stop()
	before := l.level.Level()
	l.stop, l.until = stop, until
	l.level.Set(level)
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	attrs := []any{"from", LevelName(before), "to", LevelName(level)}
	if !until.IsZero() {
		attrs = append(attrs, "until", until)
	}
	l.logger.Info("log level changed", attrs...)
}

// State is what is written now; changed is closed when that is another.
func (l *Levels) State() (now State, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return State{l.level.Level(), l.normal, l.until}, l.changed
}
