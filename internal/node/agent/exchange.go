package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/audit/witness"
	"github.com/parleymesh/parley/internal/fault"
)

// exchangeEvery is how often agent and server show each other their logs: what is
// younger could be taken back by whoever has the server, its database and its keys.
const exchangeEvery = 5 * time.Second

// pinsDir is where the server's log is pinned, beside the agent's own, and serverLog
// what it is called there.
const (
	pinsDir   = "pins"
	serverLog = "server"
)

// An exchange is what agent and server do so that neither can take back what is in
// its log: the agent hands over its signed checkpoint, and pins the server's.
type exchange struct {
	server collect.Counterpart
	pins   *witness.Witness

	// talking is full while they talk, which is as slow as the server, and guards what
	// follows. It is no mutex, so that nobody waits for it longer than they want to.
	talking  chan struct{}
	stated   uint64 // the size of the own log that the server has witnessed
	early    *note  // what the server had too little of the log for, nil for nothing
	said     string // the last failure, which is logged once
	recorded bool   // that the server's log shows another past

	mu  sync.Mutex // guards own
	own error      // the server has another past of the own log
}

// A note is a signed checkpoint of the own log.
type note struct {
	size uint64
	text []byte
}

func newExchange(cfg *Config, log string) (*exchange, error) {
	key, err := cfg.logKey(log)
	if err != nil {
		return nil, err
	}
	pins, err := witness.Open(filepath.Join(cfg.Dir, "log", pinsDir), key, cfg.Clock)
	return &exchange{
		server: cfg.Counterpart, pins: pins, talking: make(chan struct{}, 1), recorded: err == nil && len(pins.Forks()) > 0,
	}, err
}

// exchanging goes on until ctx ends.
func (a *Agent) exchanging(ctx context.Context) error {
	for {
		a.exchange(ctx)
		// Agents that started together do not come together.
		if err := a.cfg.Clock.Sleep(ctx, exchangeEvery*3/4+rand.N(exchangeEvery/2)); err != nil {
			return err
		}
	}
}

// exchange shows the server the agent's log, and looks at the server's.
func (a *Agent) exchange(ctx context.Context) {
	x := a.logs
	select {
	case x.talking <- struct{}{}:
		defer func() { <-x.talking }()
	case <-ctx.Done():
		return
	}
	err := errors.Join(a.state(ctx, x), a.lookAtServer(ctx, x))
	if ctx.Err() != nil || errors.Is(err, errors.ErrUnsupported) {
		return // it is over; or the server is an older one
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != x.said {
		a.cfg.Logger.Error("the audit logs of agent and server are not witnessed", "error", err)
	}
	x.said = text
}

// state hands over the newest checkpoint of the agent's log. As long as events come
// faster than they are collected, the server has never all that it is of: then it is
// shown that of the time before, too.
func (a *Agent) state(ctx context.Context, x *exchange) error {
	newest := new(note)
	newest.size, newest.text = a.spool.Checkpoint()
	if newest.size == 0 || newest.size == x.stated {
		return nil
	}
	taken, err := a.stateOne(ctx, x, newest)
	if taken || err != nil {
		return err
	}
	if x.early != nil {
		if taken, err = a.stateOne(ctx, x, x.early); !taken {
			return err
		}
	}
	x.early = newest
	return nil
}

// stateOne says whether the server has witnessed n.
func (a *Agent) stateOne(ctx context.Context, x *exchange, n *note) (taken bool, err error) {
	receipt, err := x.server.Witness(ctx, a.spool.Log(), collect.Statement{Host: a.cfg.Host, Key: a.spool.Key().String(), Note: n.text})
	switch known := fault.All(err); {
	case errors.Is(err, collect.ErrFork), errors.Is(err, collect.ErrKey), len(known) > 0 && known[0].Code == fault.LogForked:
		x.contradicted(err)
	case err == nil && len(receipt) > 0:
		x.stated, x.early, taken = n.size, nil, true
		x.contradicted(nil)
	}
	return taken, err
}

// contradicted notes that the server has another past of the own log, or with nil that
// it has not.
func (x *exchange) contradicted(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.own = err
}

// lookAtServer pins what the server's log has become, or records that it is not what
// it was.
func (a *Agent) lookAtServer(ctx context.Context, x *exchange) error {
	g, err := x.server.Growth(ctx, x.pins.Seen(serverLog))
	if err != nil {
		return err
	}
	key, err := checkpoint.ParseVerifier(g.Key)
	if err != nil {
		return err
	}
	_, err = x.pins.Take(serverLog, g.Note, key, g.Proof)
	var fork *witness.Fork
	if errors.As(err, &fork) && !x.recorded {
		x.recorded = true
		now := a.cfg.Clock.Now()
		a.Record(&audit.Event{
			ID: audit.NewID(now), Time: now, Class: audit.Security, Action: audit.Forked, Outcome: audit.Denied,
			Reason: "fork_server", Message: fork.Error(), Object: &audit.Object{Kind: "log", Name: fork.Origin},
		})
		a.changed.send()
	}
	return err
}

// faults are what the exchange has found that stays until somebody looks into it.
func (x *exchange) faults(dir string) (all []*fault.Fault) {
	for _, f := range x.pins.Forks() {
		all = append(all, fault.Wrap(f, fault.LogForked, "keep the server's data and "+filepath.Join(dir, pinsDir)+" as they are: parley explain "+string(fault.LogForked), "%s", f.Error()))
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.own != nil {
		all = append(all, fault.Wrap(x.own, fault.LogForked, "parley audit verify, and parley explain "+string(fault.LogForked), "what the server has collected of this host's log is not what the host signed"))
	}
	return all
}
