package main

import (
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
)

// samples are those of ten minutes in which the heap holds base bytes, a leak grows
// by the second, and collections leave behind what was made while they ran.
func samples(base, leak, fds float64) (all []sample) {
	r := rand.New(rand.NewPCG(1, 2))
	for at := time.Duration(0); at < 10*time.Minute; at += time.Second / 4 {
		floating := r.Float64() * 800e3
		all = append(all, sample{at: at, heap: base + leak*at.Seconds() + floating, fds: 86 + fds*at.Minutes(), resident: 40e6})
	}
	return all
}

func TestJudgeMemory(t *testing.T) {
	t.Parallel()
	o := options{duration: 10 * time.Minute}
	for name, tt := range map[string]struct {
		all []sample
		ok  bool
	}{
		"level":             {samples(2.2e6, 0, 0), true},
		"under 5 percent":   {samples(2.2e6, 100, 0), true},
		"a leak":            {samples(2.2e6, 400, 0), false}, // 2 bytes a request
		"descriptors":       {samples(2.2e6, 0, 1), false},
		"nothing was taken": {nil, false},
	} {
		if err := judgeMemory(tt.all, o); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func event(id, end string) *audit.Event {
	return &audit.Event{
		Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed,
		Call: &audit.CallFacts{RequestID: id, End: end, Status: http.StatusOK},
	}
}

func TestTally(t *testing.T) {
	t.Parallel()
	const sent = 5
	whole := func() (all []*audit.Event) {
		for i := range sent {
			all = append(all, event(requestID(i), "outbound"), event(requestID(i), "inbound"))
		}
		return all
	}
	failed := event(requestID(1), "inbound")
	failed.Call.Error = "upstream_closed"
	denied := event(requestID(1), "inbound")
	denied.Outcome = audit.Denied
	security := &audit.Event{Class: audit.Security, Action: audit.SVIDIssued}
	for name, tt := range map[string]struct {
		all                    []*audit.Event
		missing, wrong, others int
	}{
		"exactly one at each end": {append(whole(), security), 0, 0, 0},
		"one lost":                {whole()[1:], 1, 0, 0},
		"both lost":               {whole()[2:], 1, 0, 0},
		"one twice":               {append(whole(), event(requestID(3), "inbound")), 0, 1, 0},
		"one that nobody sent":    {append(whole(), event("stranger", "inbound")), 0, 0, 1},
		"one that failed":         {append(whole()[:2*sent-1], failed), 1, 0, 1},
		"one that was denied":     {append(whole(), denied), 0, 0, 1},
		"the same end twice":      {append(whole()[:2*sent-1], event(requestID(sent-1), "outbound")), 0, 1, 0},
		"nothing":                 {nil, sent, 0, 0},
	} {
		c := tally{calls: map[string]ends{}}
		for _, e := range tt.all {
			c.add(e)
		}
		if m, w, o := c.judge(sent); m != tt.missing || w != tt.wrong || o != tt.others {
			t.Errorf("%s: %d missing, %d wrong, %d others; want %d, %d, %d", name, m, w, o, tt.missing, tt.wrong, tt.others)
		}
	}
}
