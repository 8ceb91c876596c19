package agent

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/firewall"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A PacketFilter closes ports. firewall.NFT does.
type PacketFilter interface {
	Put(context.Context, firewall.Rules) error
	Listed(context.Context) (string, error)
}

// closedEvery is how often the rules are looked at: whoever loads the host's own rules
// anew often takes everybody's away first.
const closedEvery = 10 * time.Second

// keepClosed keeps the ports of applications closed where the agent was told to. It has
// a goroutine of its own: nothing else waits for the program that changes the filter.
func (a *Agent) keepClosed(ctx context.Context) error {
	for a.cfg.Firewall != nil {
		applied := a.applied.wait()
		if u := a.current.Load(); u != nil {
			a.closer.look(ctx, u.Snapshot)
		}
		tick, done := context.WithCancel(ctx)
		go func() {
			select {
			case <-applied:
			case <-tick.Done():
			}
			done()
		}()
		_ = a.cfg.Clock.Sleep(tick, closedEvery) // an early end is what it waits for
		done()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// A closer is what keepClosed works with.
type closer struct {
	filter  PacketFilter
	listens []string
	clk     clock.Clock
	logger  *slog.Logger

	text    string // the rules that were tried last
	tried   time.Time
	inForce bool   // they were put in
	listed  string // as the kernel had them then

	mu     sync.Mutex // guards what follows
	found  []*fault.Fault
	closed []firewall.Port // in force
}

// look puts the rules for s in, where they are others than before, or are not there any
// more. They stay when the agent ends: a port that is closed harms nobody. It is called
// by one goroutine.
func (c *closer) look(ctx context.Context, s *snapshot.Snapshot) {
	rules, open := firewall.New(s, firewall.ThisHost(os.Geteuid(), c.listens...))
	now, text := c.clk.Now(), rules.String()
	changed := text != c.text
	if !changed && !now.Before(c.tried) && now.Sub(c.tried) < closedEvery {
		return
	}
	err := c.put(ctx, rules, changed)
	if ctx.Err() != nil {
		return // the agent ends, which says nothing of the filter
	}
	c.text, c.tried, c.inForce = text, now, err == nil
	found := append(fault.All(err), fault.All(open)...)
	for _, limit := range rules.Limits(s) {
		found = append(found, fault.New(fault.PortNotClosed, "parley explain "+string(fault.PortNotClosed), "%s", limit))
	}
	for _, f := range found {
		if !slices.ContainsFunc(c.found, func(was *fault.Fault) bool { return was.Message == f.Message }) {
			c.logger.Warn("an app port is not closed to everybody else", "component", "firewall", "error", f)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found, c.closed = found, nil
	if c.inForce {
		c.closed = rules.Ports
	}
}

// closes says that a port is open to this agent's user alone.
func (c *closer) closes(port uint16) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.closed, func(p firewall.Port) bool { return p.Port == port })
}

// put puts rules in unless they are in force.
func (c *closer) put(ctx context.Context, rules firewall.Rules, changed bool) error {
	if !changed && c.inForce {
		listed, err := c.filter.Listed(ctx)
		if err != nil || listed == c.listed {
			return err
		}
		c.logger.Warn("the rules that close app ports were changed or removed, and are put in again", "component", "firewall")
	}
	if err := c.filter.Put(ctx, rules); err != nil {
		return err
	}
	listed, err := c.filter.Listed(ctx)
	if c.listed = listed; err == nil && changed {
		c.logger.Info("app ports are open to this agent alone", "component", "firewall", "count", len(rules.Ports))
	}
	return err
}

// findings are what of it is not as it should be.
func (c *closer) findings() (out []api.Finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.found {
		out = append(out, api.Finding{Code: string(f.Code), Message: f.Message, Help: f.Hint})
	}
	return out
}
