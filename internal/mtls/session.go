package mtls

import (
	"crypto/tls"
	"sync"
)

// Bounds of a session cache: endpoints of one service, tickets for each.
const (
	maxEndpoints = 64
	maxTickets   = 4
)

// sessions keeps the tickets of one credential under one trust epoch. A ticket
// is handed out once: RFC 8446 appendix C.4 asks for it, and a ticket that the
// server refuses does not come back to be refused again.
type sessions struct {
	mu      sync.Mutex // guards tickets
	tickets map[string][]*tls.ClientSessionState
}

// Get implements tls.ClientSessionCache.
func (s *sessions) Get(key string) (*tls.ClientSessionState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stack := s.tickets[key]
	if len(stack) == 0 {
		return nil, false
	}
	newest := stack[len(stack)-1]
	stack[len(stack)-1] = nil
	s.tickets[key] = stack[:len(stack)-1]
	return newest, true
}

// Put implements tls.ClientSessionCache; a nil ticket forgets the key.
func (s *sessions) Put(key string, ticket *tls.ClientSessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ticket == nil {
		delete(s.tickets, key)
		return
	}
	stack, known := s.tickets[key]
	if s.tickets == nil || !known && len(s.tickets) >= maxEndpoints {
		s.tickets = map[string][]*tls.ClientSessionState{}
	}
	if len(stack) == maxTickets {
		copy(stack, stack[1:])
		stack = stack[:maxTickets-1]
	}
	s.tickets[key] = append(stack, ticket)
}

// forget drops every ticket.
func (s *sessions) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickets = nil
}
