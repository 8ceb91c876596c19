package fleet

import (
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/fleet/link"
)

// What one agent may cost the server, which believes no agent but of its own host.
const (
	helloTime       = 10 * time.Second // to say who it is
	maxVersion      = 128              // bytes of its version, and of a capability
	maxCapabilities = 256

	spreadTime = 2 * time.Second // for other hosts to hear of a report

	formerTime = 30 * time.Second // for the calls over a connection that has a successor

	maxParts = 4096 // entries in each list of a report
	maxText  = 1024 // bytes of each text of a report

	// Above a burst, what an agent says is read at this pace only.
	reportPeriod, reportBurst = 50 * time.Millisecond, 40
	movePeriod, moveBurst     = time.Second, 20 // those that withdraw or announce endpoints
	comingPeriod, comingBurst = 10 * time.Second, 20
)

func long(s string) bool { return len(s) > maxVersion }

// A pace lets a burst through, and then one in each period. The zero value is
// ready.
type pace struct{ next time.Time }

// wait is how long the one that comes now has to wait for its turn.
func (p *pace) wait(now time.Time, period time.Duration, burst int) time.Duration {
	if p.next.Before(now) || p.next.Sub(now) > time.Duration(burst+1)*period { // the clock was set back
		p.next = now
	}
	wait := p.next.Sub(now) - time.Duration(burst-1)*period
	if wait <= 0 || wait <= period {
		p.next = p.next.Add(period)
	}
	return max(wait, 0)
}

// tame cuts a report to its bounds, and makes each state one that is known: it is
// kept in memory, and shown to people.
func tame(r *link.Report) {
	cut(&r.Fault)
	cut(&r.Delivery)
	r.Services = r.Services[:min(len(r.Services), maxParts)]
	for i := range r.Services {
		s := &r.Services[i]
		s.State = known(s.State)
		cut(&s.Name, &s.Note, &s.Serial)
	}
	r.Listeners = r.Listeners[:min(len(r.Listeners), maxParts)]
	for i := range r.Listeners {
		l := &r.Listeners[i]
		l.State = known(l.State)
		cut(&l.Name, &l.Address, &l.Protocol, &l.Note)
	}
	r.Findings = r.Findings[:min(len(r.Findings), maxParts)]
	for i := range r.Findings {
		cut(&r.Findings[i].Code, &r.Findings[i].Message, &r.Findings[i].Help)
	}
	r.Endpoints = r.Endpoints[:min(len(r.Endpoints), maxParts)]
	for i := range r.Endpoints {
		cut(&r.Endpoints[i].Service, &r.Endpoints[i].Address)
	}
	r.Plaintext = r.Plaintext[:min(len(r.Plaintext), maxParts)]
	for i := range r.Plaintext {
		cut(&r.Plaintext[i].Service, &r.Plaintext[i].Address)
	}
}

func cut(texts ...*string) {
	for _, s := range texts {
		if len(*s) > maxText {
			*s = strings.ToValidUTF8((*s)[:maxText], "") + "…"
		}
	}
}

func known(state string) string {
	switch state {
	case link.OK, link.Waiting:
		return state
	}
	return link.Failed
}
