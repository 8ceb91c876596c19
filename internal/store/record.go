package store

import (
	"context"
	"database/sql"
	"sync"

	"github.com/parleymesh/parley/internal/audit"
)

// Log implements control.Events. Those who log at the same time share a transaction:
// each waits for the disk once, and not for all before it.
func (s *Store) Log(ctx context.Context, e *audit.Event) error {
	doing := "record " + string(e.Action)
	if err := ctx.Err(); err != nil {
		return s.explain(doing, err)
	}
	r, err := s.encode(e)
	if err != nil {
		return s.explain(doing, err)
	}
	l := &logged{record: r, done: make(chan error, 1)}
	if s.queue.add(l) {
		go s.drain()
	}
	select {
	case err := <-l.done:
		return s.explain(doing, err)
	case <-ctx.Done():
		return s.explain(doing, unsure{ctx.Err()}) // it may be on its way
	}
}

// logged is an event that waits for its transaction.
type logged struct {
	record
	done chan error
}

// A logQueue is the events that wait.
type logQueue struct {
	mu      sync.Mutex // guards the rest
	waiting []*logged
	busy    bool // drain runs
}

// add says whether drain has to be started.
func (q *logQueue) add(l *logged) (start bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, l)
	start, q.busy = !q.busy, true
	return start
}

// maxLogged bounds how many events share a transaction.
const maxLogged = 256

// take is what comes next; drain ends where it is nothing.
func (q *logQueue) take() []*logged {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.waiting), maxLogged)
	next := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	q.busy = n > 0
	return next
}

// drain records what waits until nothing does.
func (s *Store) drain() {
	// Whoever gives up is one of several: the others still wait.
	ctx := context.Background()
	for {
		next := s.queue.take()
		if len(next) == 0 {
			return
		}
		all := make([]record, len(next))
		for i, l := range next {
			all[i] = l.record
		}
		err := s.update(ctx, "write to the log", func(tx *sql.Tx) error { return s.recordAll(ctx, tx, all) })
		for _, l := range next {
			l.done <- err
		}
	}
}

// A record is an event as it goes into the own log.
type record struct {
	body []byte
	columns
}

// encode fills in what e leaves open of id, time, class, host and reporter; e itself
// is not changed.
func (s *Store) encode(e *audit.Event) (record, error) {
	now := s.cfg.Clock.Now()
	c := *e
	if c.Time.IsZero() {
		c.Time = now
	}
	if c.ID == "" {
		c.ID = audit.NewID(now)
	}
	if c.Class == "" {
		c.Class = audit.Security
	}
	if c.Host == "" {
		c.Host = s.cfg.Host
	}
	if c.Reporter == "" {
		c.Reporter = "server"
	}
	body, err := audit.Encode(nil, &c)
	return record{body, s.columnsOf(&c)}, err
}

// record appends e to the own log, for the change that tx makes.
func (s *Store) record(ctx context.Context, tx *sql.Tx, e *audit.Event) error {
	r, err := s.encode(e)
	if err != nil {
		return err
	}
	return s.recordAll(ctx, tx, []record{r})
}

// recordAll appends events to the own log, with the tree that they make, signed.
func (s *Store) recordAll(ctx context.Context, tx *sql.Tx, all []record) error {
	bytes := 0
	for _, r := range all {
		bytes += len(r.body)
	}
	size, err := s.grow(ctx, tx, s.log, len(all), bytes)
	if err != nil {
		return err
	}
	first := uint64(size) - uint64(len(all))
	entries, cols, leaves := make([]audit.Entry, len(all)), make([]columns, len(all)), make([]audit.Hash, len(all))
	for i, r := range all {
		leaves[i] = audit.LeafHash(r.body)
		entries[i] = audit.Entry{Log: s.log, Index: first + uint64(i), Leaf: leaves[i], Body: r.body}
		cols[i] = r.columns
	}
	if err := s.insert(ctx, tx, entries, cols); err != nil {
		return err
	}
	edge, err := s.plant(ctx, tx, s.log, first, leaves)
	if err != nil {
		return err
	}
	return s.sign(ctx, tx, edge)
}
