package assess

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// cutTime is how long a connection of a banned identity may stay open once the ban is
// in force where it leads.
const cutTime = time.Second

// heldTime is how long an idle connection certainly stays open without a ban: a
// sidecar closes what is idle, and what outlives its certificate, after five minutes.
const heldTime = 4 * time.Minute

// A held is what is kept of an endpoint until the ban: what connected before it.
type held struct {
	target *target
	kept   *tickets
	answer *answer // an open connection, nil for TCP
	since  time.Time
}

func (h *held) close() {
	if h.answer != nil {
		_ = h.answer.conn.Close()
	}
}

// afterBan are the checks that need the ban.
func (t *target) afterBan() []Check {
	if t.edge.HTTP {
		return []Check{Banned, ResumeBan, CutByBan}
	}
	return []Check{Banned, ResumeBan}
}

// hold connects as the verification's own identity, which is a member and may make no
// call, and keeps the session, and over HTTP the connection, until it is banned. It
// has results only where that was not possible.
func (t *target) hold(ctx context.Context) (results []Result) {
	kept := &tickets{}
	ans, err := t.before(ctx, kept)
	if err == nil {
		h := &held{target: t, kept: kept, answer: ans, since: t.session.tools.Clock.Now()}
		t.session.mu.Lock()
		t.session.held = append(t.session.held, h)
		t.session.mu.Unlock()
		return nil
	}
	for _, c := range t.afterBan() {
		results = append(results, t.result(c, Inconclusive, "nothing to ban: "+err.Error()))
	}
	return results
}

func (t *target) before(ctx context.Context, kept *tickets) (*answer, error) {
	cert, err := t.session.cert(ctx, t.session.verify, "")
	if err != nil {
		return nil, fmt.Errorf("no certificate for probes: %w", err)
	}
	ans, err := t.ask(ctx, approach{cert: cert, probe: true, kept: kept}, t.edge.Allowed, false)
	if err != nil {
		return nil, err
	}
	_ = ans.conn.SetDeadline(time.Time{})
	if kept.count() == 0 {
		_ = ans.conn.Close()
		return nil, errors.New("no session ticket was issued, so there is nothing to resume")
	}
	if !t.edge.HTTP {
		_ = ans.conn.Close()
		return nil, nil
	}
	return ans, nil
}

// afterBan tries what the ban has to have ended.
func (h *held) afterBan(ctx context.Context) []Result {
	t := h.target
	defer h.close()
	results := []Result{}
	add := func(c Check, v verdict) {
		r := t.result(c, v.outcome, v.detail)
		r.Help = t.help(c, v.outcome)
		results = append(results, r)
	}
	cert, err := t.session.cert(ctx, t.session.verify, "")
	if err != nil {
		for _, c := range t.afterBan() {
			add(c, verdict{Inconclusive, err.Error()})
		}
		return results
	}
	add(Banned, t.try(ctx, approach{cert: cert, probe: true}))
	add(ResumeBan, t.try(ctx, approach{cert: cert, probe: true, kept: h.kept}))
	if h.answer != nil {
		add(CutByBan, h.cut())
	}
	return results
}

// cut says whether the connection of before is closed.
func (h *held) cut() verdict {
	c, now := h.answer.conn, h.target.session.tools.Clock.Now()
	if open := now.Sub(h.since); open >= heldTime {
		return verdict{Inconclusive, fmt.Sprintf("the ban came %s after it was opened, so it may be closed for that", open.Round(time.Second))}
	}
	_ = c.SetDeadline(now.Add(cutTime))
	n, err := c.Read(make([]byte, 1))
	v := refusal(err)
	if n > 0 || v.outcome != OK {
		return verdict{Failed, fmt.Sprintf("it was still open %s after the ban was in force", cutTime)}
	}
	return v
}
