package gate

import (
	"cmp"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/snapshot"
)

// observed are until when each service lets callers in without TLS.
func observed(snap *snapshot.Snapshot) map[string]time.Time {
	all := map[string]time.Time{}
	for _, s := range snap.Services {
		if s.Inbound != nil && !s.Inbound.PlaintextUntil.IsZero() {
			all[s.Name] = s.Inbound.PlaintextUntil
		}
	}
	return all
}

// observe is the whole decision on a caller of an inbound that came without TLS. It
// has no identity, so no rule can be about it: either whoever comes is let in, or
// nobody is. The time is asked for each request, those on open connections too.
func (c *check) observe() call.Verdict {
	if !c.now.Before(c.observed[c.req.Local]) {
		return deny(http.StatusForbidden, CodeNotAllowed, ReasonPlaintext)
	}
	c.seen.add(c.req.Local, c.req.Remote.Addr().Unmap(), c.now)
	c.plaintext.With(c.req.Local).Inc()
	return call.Verdict{Allow: true, Reason: ReasonObserved}
}

// maxSources is how many addresses of callers are kept of one service.
const maxSources = 64

// A Source is an address from which a service was called without TLS.
type Source struct {
	Service string
	// Address is without its port; the zero Addr stands for those that were seen
	// longest ago and had to give way.
	Address     netip.Addr
	Count       int64
	First, Last time.Time
}

// sources are those since the start, at most maxSources of each service. The zero
// value is ready for use.
type sources struct {
	mu  sync.Mutex // guards all
	all map[string]map[netip.Addr]*Source
}

func (s *sources) add(service string, from netip.Addr, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]map[netip.Addr]*Source{}
	}
	of := s.all[service]
	if of == nil {
		of = map[netip.Addr]*Source{}
		s.all[service] = of
	}
	src := of[from]
	if src == nil {
		if len(of) >= maxSources {
			fold(of)
		}
		src = &Source{Service: service, Address: from, First: now}
		of[from] = src
	}
	src.Count++
	src.Last = now
}

// fold makes the address that was seen longest ago one of the others.
func fold(of map[netip.Addr]*Source) {
	var oldest *Source
	for _, s := range of {
		if s.Address.IsValid() && (oldest == nil || s.Last.Before(oldest.Last)) {
			oldest = s
		}
	}
	delete(of, oldest.Address)
	others := of[netip.Addr{}]
	if others == nil {
		others = &Source{Service: oldest.Service, First: oldest.First}
		of[netip.Addr{}] = others
	}
	others.Count += oldest.Count
	if oldest.First.Before(others.First) {
		others.First = oldest.First
	}
	if oldest.Last.After(others.Last) {
		others.Last = oldest.Last
	}
}

// keep forgets the sources of services that are not observed.
func (s *sources) keep(observed map[string]time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for service := range s.all {
		if _, ok := observed[service]; !ok {
			delete(s.all, service)
		}
	}
}

// Plaintext are the addresses from which services were called without TLS since this
// gate was made, of each service that is observed, in order of service and address.
func (g *Gate) Plaintext() []Source {
	g.seen.mu.Lock()
	defer g.seen.mu.Unlock()
	var list []Source
	for _, of := range g.seen.all {
		for _, s := range of {
			list = append(list, *s)
		}
	}
	slices.SortFunc(list, func(a, b Source) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), a.Address.Compare(b.Address))
	})
	return list
}
