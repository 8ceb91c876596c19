package control

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/control/api"
)

// failedOf is the event that tells how a call which was allowed failed, nil where
// none does. The callee's end is nearer to the cause than the caller's, which sees
// what that end made of it.
func failedOf(all []recordedEvent) (e *audit.Event) {
	for _, r := range all {
		if r.event.Action == audit.Call && r.event.Call != nil && r.event.Call.Error != "" && (e == nil || isEnd(r.event, call.Inbound)) {
			e = r.event
		}
	}
	return e
}

// failedStep says what failed, where, and how that stands now.
func (s *Server) failedStep(ctx context.Context, e *audit.Event) (api.Step, error) {
	step := api.Step{Name: "call", State: api.StepNo, Text: "it was allowed and then failed: " + e.Call.Error, Help: "parley explain " + e.Call.Error}
	how := failures[e.Call.Error]
	if how == "" || e.Callee == nil {
		return step, nil
	}
	run, err := s.cfg.Runtime.Status(ctx)
	if err != nil {
		return step, fmt.Errorf("read what runs: %w", err)
	}
	callee, where, now, help := partyName(e.Callee), e.Call.Upstream, "", ""
	what := "the inbound of " + callee
	if isEnd(e, call.Inbound) {
		what = "the application of " + callee
		for _, v := range run.Services {
			if v.Name == callee {
				now, help = standing(v.State, v.Note), v.Help
			}
		}
	} else {
		for _, l := range run.Listeners {
			if l.Name == callee+".inbound" {
				now, help = standing(l.State, l.Note), l.Help
			}
		}
		banned, err := s.bannedThen(ctx, e)
		if err != nil {
			return step, err
		}
		if banned != "" { // its handshake was refused, whatever the listener is
			now, help = ", since "+banned+" was banned", "see who is: parley ban"
		}
	}
	step.Text = fmt.Sprintf("it was allowed, and then %s at %s %s (%s)%s", what, cmp.Or(where, "an address that is not on record"), how, e.Call.Error, now)
	step.Help = cmp.Or(help, seePort(where), step.Help)
	return step, nil
}

// bannedThen names who of e was banned when it happened, and is still.
func (s *Server) bannedThen(ctx context.Context, e *audit.Event) (string, error) {
	bans, err := s.cfg.Bans.Bans(ctx)
	if err != nil {
		return "", fmt.Errorf("read the bans: %w", err)
	}
	for _, p := range []*audit.Party{e.Caller, e.Callee} {
		if p != nil && slices.ContainsFunc(bans, func(b Ban) bool { return b.ID == p.ID && !b.Since.After(e.Time) }) {
			return partyName(p), nil
		}
	}
	return "", nil
}

// failures say what the far end of a call did.
var failures = map[string]string{
	"upstream_refused":   "took no connection",
	"upstream_timeout":   "did not answer in time",
	"upstream_closed":    "ended the connection in the middle",
	"upstream_untrusted": "showed a certificate that is not the callee's",
}

// standing is how it is now.
func standing(state api.State, note string) string {
	if state == api.StateOK {
		return "; now ok"
	}
	return fmt.Sprintf("; now %s: %s", state, note)
}

// seePort is how to see who listens, on the callee's host.
func seePort(addr string) string {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("see who listens: ss -ltnp 'sport = :%d'", at.Port())
}

func partyName(p *audit.Party) string {
	if p.Service != "" {
		return p.Service
	}
	return p.ID.Name()
}
