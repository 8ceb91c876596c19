package proxy

import (
	"cmp"
	"slices"
)

// A State is where a listener stands.
type State string

// The states.
const (
	Open     State = "open"     // it accepts connections
	Draining State = "draining" // it was removed and its connections are ending
	Failed   State = "failed"   // it is not open as it should be, Error says why
)

// A ListenerStatus describes one listener.
type ListenerStatus struct {
	Name        string // "orders.inbound", "web.calls.orders", "gateway.edge"
	Address     string // host:port as bound, or unix: and a path
	Protocol    string // http, tcp
	State       State
	Connections int
	// Error is what keeps a failed listener from being open.
	Error error
}

// Status is every listener, in order of name.
func (p *Proxy) Status() []ListenerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.Clone(p.failed)
	for _, l := range p.listeners {
		all = append(all, l.status(Open))
	}
	for l := range p.draining {
		all = append(all, l.status(Draining))
	}
	slices.SortFunc(all, func(a, b ListenerStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.State, b.State))
	})
	return all
}

func (l *listener) status(state State) ListenerStatus {
	return ListenerStatus{
		Name: l.fixed.name, Address: l.address, Protocol: string(l.fixed.protocol),
		State: state, Connections: l.service.connections(),
	}
}

// Holds says whether the address, as a snapshot states it, is open already, so
// that a listener which stays or replaces another needs no new socket.
func (p *Proxy) Holds(stated string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sockets[stated] != nil
}
