package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/logging"
)

// levelTime bounds how long an agent is waited for that is to log another level.
const levelTime = 3 * time.Second

// SetLogLevel makes host's agent log another level for d, or where level is empty the
// one that it was started with, and waits, briefly, until it says that it does.
func (f *Fleet) SetLogLevel(ctx context.Context, host, level string, d time.Duration) error {
	ctx, done := context.WithTimeout(ctx, levelTime)
	defer done()
	connection, number, err := f.orderLevel(host, level, d)
	if err != nil {
		return err
	}
	for {
		f.mu.Lock()
		reported, a := f.reported, f.agents[host]
		here, told := a != nil && a.connection == connection, a != nil && a.level.Number >= number
		f.mu.Unlock()
		switch {
		case !here:
			return notConnected(host)
		case told:
			return nil
		}
		select {
		case <-reported:
		case <-ctx.Done():
			return fault.New(fault.Unreachable, "see whether it does: parley log level", "the agent of host %s has not answered yet", host)
		}
	}
}

func notConnected(host string) error {
	return fault.New(fault.Unreachable, "see what is: parley log level", "the agent of host %s is not connected", host)
}

// orderLevel notes the order, and refuses what cannot be done.
func (f *Fleet) orderLevel(host, level string, d time.Duration) (connection, number uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	switch {
	case a == nil || a.connection == 0:
		return 0, 0, notConnected(host)
	case a.local():
		return 0, 0, fault.New(fault.BadRequest, "leave --host out", "the agent of host %s is in the server's own process, and so is its log", host)
	case !slices.Contains(a.capabilities, link.LogLevels):
		return 0, 0, fault.New(fault.NotRunning, "update it, or start it again with --log-level", "the agent of host %s is too old to change what it logs: it lacks %s", host, link.LogLevels)
	}
	number = a.level.Number
	if a.leveled != nil {
		number = max(number, a.leveled.Number)
	}
	number++
	a.leveled = &link.LogOrder{Number: number, Level: level}
	if level != "" {
		a.leveled.Seconds = int64(d / time.Second)
	}
	f.wakeTellers()
	return a.connection, number, nil
}

// levelOrder is what the agent was not sent yet, and notes that it is.
func (f *Fleet) levelOrder(host string, connection uint64) *link.LogOrder {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil || a.connection != connection || a.leveled == nil || a.leveled.Number == a.relevel {
		return nil
	}
	a.relevel = a.leveled.Number
	return a.leveled
}

// leveled takes what an agent says that it logs.
func (f *Fleet) leveled(host string, connection uint64, s *link.LogState) error {
	for _, name := range []string{s.Level, s.Normal} {
		if _, err := logging.ParseLevel(name); err != nil {
			return fmt.Errorf("%w: %w", link.ErrMessage, err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.agents[host]; a != nil && a.connection == connection {
		a.level = *s
		if a.leveled == nil || s.Number > a.leveled.Number {
			a.level.Number = 0 // nobody has done what was not asked
		}
		f.wake()
	}
	return nil
}
