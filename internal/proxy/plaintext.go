package proxy

import (
	"cmp"
	"slices"
	"time"
)

// serverFirst is how long a caller of a tcp service that is observed may be silent
// before it counts as one without TLS whose server speaks first. Callers of the mesh
// begin with their ClientHello. It has to be so long that one of theirs is never late,
// with two of its packets lost or a host that is busy: what is wrongly taken for
// plaintext is a call that fails.
const serverFirst = 2 * time.Second

// observe lets callers of l in that come without TLS until until, if l is an inbound,
// and cuts those that are in where that is over or was never so. It requires p.mu.
func (p *Proxy) observe(l *listener, until time.Time) {
	if l.tls == nil {
		return
	}
	if !p.cfg.Clock.Now().Before(until) {
		until = time.Time{}
	}
	l.plaintextUntil = until
	l.tls.Observe(until)
}

// PlaintextEnded ends what connections without TLS are left where callers are not let
// in without it any more, the time for that being over, and says where that is. Each
// listener is named once. New connections and requests are refused from the very
// moment on; this is for those that are open.
func (p *Proxy) PlaintextEnded() (ended []Ended) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.cfg.Clock.Now()
	for name, l := range p.listeners {
		if until := l.plaintextUntil; !until.IsZero() && !now.Before(until) {
			l.plaintextUntil = time.Time{}
			ended = append(ended, Ended{Listener: name, Service: l.fixed.local, Until: until, Cut: l.tls.EndPlaintext()})
		}
	}
	slices.SortFunc(ended, func(a, b Ended) int { return cmp.Compare(a.Listener, b.Listener) })
	return ended
}

// An Ended is a listener that lets nobody in without TLS any more.
type Ended struct {
	Listener, Service string
	Until             time.Time
	// Cut is how many connections were open.
	Cut int
}
