package agent

import (
	"context"
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
	now := time.Now()
	if err := sp.Record(&audit.Event{ID: audit.NewID(now), Time: now, Class: audit.Security, Action: audit.ServerStarted, Outcome: audit.Success, Host: "a", Reporter: "agent"}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- sp.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ran })
	if err := sp.Wait(ctx, 0); err != nil {
		t.Fatal(err)
	}
	return a
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
