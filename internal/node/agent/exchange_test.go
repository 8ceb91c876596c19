package agent

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/audit/spool"
	"github.com/parleymesh/parley/internal/audit/witness"
	"github.com/parleymesh/parley/internal/clock"
)

// silent is a server that says that it was asked, and answers nothing.
type silent chan struct{}

func (s silent) Witness(ctx context.Context, _ string, _ collect.Statement) ([]byte, error) {
	s <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s silent) Growth(ctx context.Context, _ uint64) (*collect.Growth, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// slow is a server that has collected so many entries; it notes of how many it has
// witnessed a checkpoint.
type slow struct{ has, witnessed uint64 }

func (s *slow) Witness(_ context.Context, _ string, st collect.Statement) ([]byte, error) {
	c, err := checkpoint.Unverified(st.Note)
	if err != nil || c.Size > s.has {
		return nil, err
	}
	s.witnessed = max(s.witnessed, c.Size)
	return st.Note, nil
}

func (*slow) Growth(context.Context, uint64) (*collect.Growth, error) {
	return nil, errors.ErrUnsupported
}

// exchanger is an agent that has nothing but a log, with one event, and a server to
// show it to.
func exchanger(t *testing.T, server collect.Counterpart) *Agent {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	key := func(log string) (*checkpoint.Signer, error) {
		return checkpoint.GenerateKey(checkpoint.Origin("shop.example", log))
	}
	sp, err := spool.Open(spool.Config{Dir: t.TempDir(), Log: "a", Key: key, Clock: clock.System{}, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sp.Close() })
	signer, err := key(sp.Log())
	if err != nil {
		t.Fatal(err)
	}
	pins, err := witness.Open(t.TempDir(), signer, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{
		cfg: Config{Host: "a", Clock: clock.System{}, Logger: logger}, spool: sp,
		logs: &exchange{server: server, pins: pins, talking: make(chan struct{}, 1)},
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- sp.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ran })
	a.append(t)
	return a
}

// append adds an event to the log, and waits until it is signed.
func (a *Agent) append(t *testing.T) {
	t.Helper()
	next, now := a.spool.Next(), time.Now()
	if err := a.spool.Record(&audit.Event{ID: audit.NewID(now), Time: now, Class: audit.Security, Action: audit.ServerStarted, Outcome: audit.Success, Host: "a", Reporter: "agent"}); err != nil {
		t.Fatal(err)
	}
	if err := a.spool.Wait(t.Context(), next); err != nil {
		t.Fatal(err)
	}
}

// A server that is always behind with collecting witnesses the log all the same.
func TestALogThatGrowsAllTheTimeIsWitnessed(t *testing.T) {
	t.Parallel()
	server := new(slow)
	a := exchanger(t, server)
	for round := range 5 {
		a.exchange(t.Context())
		if want := uint64(round); server.witnessed != want {
			t.Errorf("of %d entries, of which the server has %d, %d are witnessed, want %d", a.spool.Next(), server.has, server.witnessed, want)
		}
		server.has = a.spool.Next() // by the next time
		a.append(t)
	}
}

// A server that does not answer holds up neither the agent's report nor a question that
// waits a while for the logs.
func TestAServerThatDoesNotAnswerHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	asked := make(silent, 2)
	a := exchanger(t, asked)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { a.exchange(ctx); close(ended) }()
	<-asked
	free := make(chan struct{})
	go func() {
		a.logs.faults("log")
		brief, done := context.WithTimeout(ctx, 10*time.Millisecond)
		defer done()
		a.exchange(brief)
		close(free)
	}()
	select {
	case <-free:
	case <-time.After(5 * time.Second):
		t.Error("they wait for the server")
	}
	stop()
	<-ended
}
