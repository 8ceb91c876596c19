// Package collect carries a log from where it is written to where it is kept:
// in order, in batches, from where it left off, and as often as it takes.
//
// It refuses to keep anything itself and to decide about an event: the position
// is the sink's, the entries are the source's until the sink has them.
package collect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
)

// Errors by which a Sink refuses a batch. None of it is then kept.
var (
	ErrHole = errors.New("the log has a hole")                        // entries before these are not there
	ErrLeaf = errors.New("the leaf hash is not the body's")           // or the body is no event
	ErrFork = errors.New("the log holds another entry at this index") // two logs of one name
	ErrKey  = errors.New("the log was signed by another key, or came from another host, before")
	ErrName = errors.New("the entry is of another log than the one it is for") // or the name is malformed
)

// A Source is a log that grows; audit/spool has it.
type Source interface {
	// Read returns up to max entries from index from on, none where there are none yet.
	Read(from uint64, max int) ([]audit.Entry, error)
	// Wait returns when entry from can be read, or ctx ends.
	Wait(ctx context.Context, from uint64) error
	// Discard lets go of entries below before.
	Discard(before uint64) error
}

// A Sink keeps logs; store has it, and the server's door for agents.
type Sink interface {
	// Cursor is the number of entries of log that are kept: the index that comes next.
	Cursor(ctx context.Context, log string) (uint64, error)
	// Collect keeps entries durably, all or none. It is idempotent by (log,
	// index), and refuses a hole and a leaf hash that is not the body's.
	Collect(ctx context.Context, log string, entries []audit.Entry) error
}

// A Statement is what the writer of a log says of it.
type Statement struct {
	// Host is whose agent says it, as whoever asks has made sure.
	Host string
	// Key is the public key of the log and Note its newest signed checkpoint, both as
	// audit/checkpoint writes them.
	Key  string
	Note []byte
}

// A Witness holds what is said of a log against the entries that it keeps; store is
// one, being the Sink too.
type Witness interface {
	// Witness keeps the newest checkpoint of log, with a cosignature: this is the
	// receipt for so many entries. There is none as long as there are fewer entries
	// than the checkpoint says. It refuses another root than the entries have
	// (ErrFork), and another key or host than the first that came (ErrKey).
	Witness(ctx context.Context, log string, s Statement) (receipt []byte, err error)
}

// A Growth is what the server's own log has become.
type Growth struct {
	// Key is the log's public key and Note its newest signed checkpoint, as
	// audit/checkpoint writes them.
	Key  string
	Note []byte
	// Proof shows that its tree grew from the one that was asked about; there is none
	// where that had no entries or more than it has.
	Proof []audit.Hash
}

// A Counterpart is what the writer of a log and the server do for each other, so
// that neither can take back what it said: the server witnesses the log, and shows
// its own.
type Counterpart interface {
	Witness
	// Growth is the server's own log now, seen from when it had so many entries.
	Growth(ctx context.Context, have uint64) (*Growth, error)
}

const (
	batch = 256
	// The waits after an error double from minWait to maxWait.
	minWait = 100 * time.Millisecond
	maxWait = 5 * time.Second
)

// Run tails source into sink until ctx ends, and then returns nil. It begins at
// the sink's cursor, discards from source what the sink has, and after any error
// asks for the cursor again: nothing is ever skipped. An error that repeats is
// logged once, and so is its end.
func Run(ctx context.Context, log string, source Source, sink Sink, clk clock.Clock, logger *slog.Logger) error {
	wait, last := minWait, ""
	for {
		progress, err := tail(ctx, log, source, sink, func() {
			if last != "" {
				logger.Info("audit events are delivered again", "log", log)
			}
			wait, last = minWait, ""
		})
		if ctx.Err() != nil {
			return nil
		}
		if text := err.Error(); text != last {
			logger.Error("audit events cannot be delivered", "log", log, "index", progress, "error", err)
			last = text
		}
		if clk.Sleep(ctx, wait) != nil {
			return nil
		}
		wait = min(2*wait, maxWait)
	}
}

// tail delivers until something fails, and calls delivered after every batch. It
// returns the index that it failed at.
func tail(ctx context.Context, log string, source Source, sink Sink, delivered func()) (uint64, error) {
	next, err := sink.Cursor(ctx, log)
	if err != nil {
		return 0, fmt.Errorf("ask for the cursor: %w", err)
	}
	for {
		if err := source.Discard(next); err != nil {
			return next, fmt.Errorf("discard: %w", err)
		}
		if err := source.Wait(ctx, next); err != nil {
			return next, fmt.Errorf("wait: %w", err)
		}
		entries, err := source.Read(next, batch)
		if err != nil {
			return next, fmt.Errorf("read: %w", err)
		}
		if len(entries) == 0 {
			return next, fmt.Errorf("read: entry %d is announced and not there", next)
		}
		if err := sink.Collect(ctx, log, entries); err != nil {
			return next, fmt.Errorf("collect: %w", err)
		}
		next += uint64(len(entries))
		delivered()
	}
}
