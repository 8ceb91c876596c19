// Package link is what passes between a server and an agent, and the agent's half
// of it: the words of the stream, how they are written, joining, and a client that
// stays connected. In one process, the node hands the same words over directly.
//
// It refuses to decide: what is issued and to whom is enrol's, what runs the
// agent's. A message that it does not know whole is refused whole.
package link

import (
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Protocol is the version of the messages. Both sides say theirs first.
const Protocol = 1

// An Update is everything that an agent runs by. It is immutable, and each one
// is the full state: what is absent is withdrawn.
type Update struct {
	// Generation grows with every update that an agent gets. A revision may come
	// several times, with other keys, endpoints, bans or another bundle.
	Generation uint64
	Snapshot   *snapshot.Snapshot
	// Bundle is what the trust domain trusts.
	Bundle *identity.Bundle
	// Banned are the identities that take no part, though the snapshot may name
	// them.
	Banned []identity.ID
}

// A Report is what an agent tells its server of itself. Each is the full state.
type Report struct {
	// Generation is the newest update that was tried, Revision the one in force.
	Generation uint64 `json:"generation"`
	Revision   int64  `json:"revision"`
	// Fault is why the newest update is not in force, or not in full; empty where
	// it is.
	Fault string `json:"fault,omitempty"`
	// Delivery is why events wait on the host, empty where they are on their way.
	Delivery  string           `json:"delivery,omitempty"`
	Services  []ServiceReport  `json:"services,omitempty"`
	Listeners []ListenerReport `json:"listeners,omitempty"`
	Findings  []FindingReport  `json:"findings,omitempty"`
	// Endpoints are where services of the host can be called now.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	// Plaintext are who called services of the host without TLS. It is sent only to a
	// server that has the capability of that name.
	Plaintext []PlaintextReport `json:"plaintext,omitempty"`
}

// The states of a part.
const (
	OK      = "ok"
	Waiting = "waiting"
	Failed  = "failed"
)

// A ServiceReport is the credential of a service or gateway, and where that is
// well, a service's application.
type ServiceReport struct {
	Name     string      `json:"name"`
	ID       identity.ID `json:"id"`
	State    string      `json:"state"`
	Note     string      `json:"note,omitempty"`
	Help     string      `json:"help,omitempty"`
	Serial   string      `json:"serial,omitempty"`
	NotAfter time.Time   `json:"not_after,omitzero"`
	RenewsAt time.Time   `json:"renews_at,omitzero"`
}

// A ListenerReport is one listener.
type ListenerReport struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	Protocol string `json:"protocol"`
	State    string `json:"state"`
	// Note is why the state is not OK, Help what to do then.
	Note string `json:"note,omitempty"`
	Help string `json:"help,omitempty"`
}

// A FindingReport is something that an operator should look at.
type FindingReport struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Help    string `json:"help,omitempty"`
}

// A PlaintextReport is an address from which a service was called without TLS since
// the agent's start.
type PlaintextReport struct {
	Service string `json:"service"`
	// Address is without its port, empty for all those together that gave way to
	// addresses which were seen later.
	Address string    `json:"address,omitempty"`
	Count   int64     `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

// An Endpoint is one place where a service can be called.
type Endpoint struct {
	Service string `json:"service"`
	Address string `json:"address"` // host:port
}

// The capabilities that a peer may have, beside what every one of this protocol
// has: what a snapshot may ask for that an older agent would not enforce, and
// messages that it would not know.
const (
	// Plaintext is to let callers in without TLS until a date, and to report who came so.
	Plaintext = "plaintext"
	// Settles says that an agent answers ServerMessage.Settle.
	Settles = "settle"
	// Gaps is to let calls of some services pass while they cannot be recorded.
	Gaps = "audit_gaps"
	// Balance is to spread calls over endpoints in another way than least requests.
	Balance = "balance"
	// Health is to ask applications whether they can take calls.
	Health = "health"
	// Listed are endpoints that are DNS names, or that no agent is in front of.
	Listed = "listed_endpoints"
	// EdgeFront is what stands in front of a gateway: redirect, HSTS, trusted proxies.
	EdgeFront = "edge_front"
	// Tokens are routes that ask for tokens of issuers.
	Tokens = "tokens"
	// WebSocket is to let requests become WebSocket connections, and to compare the
	// origins of pages.
	WebSocket = "websocket"
	// Verify says that an agent tries orders of `parley verify`, and that the inbounds
	// of its host answer probes.
	Verify = "verify"
	// Withdraws says that an agent takes ServerMessage.Withdraw.
	Withdraws = "withdraw"
	// LogLevels says that an agent takes ServerMessage.LogLevel and tells its own, and
	// that a server hears of that.
	LogLevels = "log_level"
)

// Capabilities are those of this program, in order.
func Capabilities() []string {
	return []string{Gaps, Balance, EdgeFront, Health, Listed, LogLevels, Plaintext, Settles, Tokens, Verify, WebSocket, Withdraws}
}

// Needs are the capabilities without which s would not be enforced as it is meant.
func Needs(s *snapshot.Snapshot) []string {
	needs := []string{}
	if slices.ContainsFunc(s.Services, func(v snapshot.Service) bool { return v.Audit != nil && v.Audit.Gap }) ||
		slices.ContainsFunc(s.Gateways, func(g snapshot.Gateway) bool { return g.Audit != nil && g.Audit.Gap }) {
		needs = append(needs, Gaps)
	}
	if anywhere(s, func(p snapshot.Places) bool { return p.Balance != "" }) {
		needs = append(needs, Balance)
	}
	if slices.ContainsFunc(s.Gateways, func(g snapshot.Gateway) bool { return g.Redirect != nil || g.HSTS != "" || g.Proxies != nil }) {
		needs = append(needs, EdgeFront)
	}
	if slices.ContainsFunc(s.Services, func(v snapshot.Service) bool { return v.Inbound != nil && v.Inbound.Health != nil }) {
		needs = append(needs, Health)
	}
	if anywhere(s, func(p snapshot.Places) bool { return len(p.Names) > 0 || p.Foreign }) {
		needs = append(needs, Listed)
	}
	if slices.ContainsFunc(s.Services, func(v snapshot.Service) bool { return v.Inbound != nil && !v.Inbound.PlaintextUntil.IsZero() }) {
		needs = append(needs, Plaintext)
	}
	if len(s.Issuers) > 0 {
		needs = append(needs, Tokens)
	}
	if slices.ContainsFunc(s.Services, func(v snapshot.Service) bool { return v.Inbound != nil && v.Inbound.Probe != nil }) {
		needs = append(needs, Verify)
	}
	if offersWebSocket(s) {
		needs = append(needs, WebSocket)
	}
	return needs
}

// anywhere says that has holds for a place where s calls.
func anywhere(s *snapshot.Snapshot, has func(snapshot.Places) bool) bool {
	return slices.ContainsFunc(s.Services, func(v snapshot.Service) bool {
		return slices.ContainsFunc(v.Outbound, func(o snapshot.Outbound) bool { return has(o.Places) })
	}) || slices.ContainsFunc(s.Gateways, func(g snapshot.Gateway) bool {
		return slices.ContainsFunc(g.Routes, func(r snapshot.Route) bool { return has(r.Places) })
	})
}

func offersWebSocket(s *snapshot.Snapshot) bool {
	for _, v := range s.Services {
		if v.Inbound != nil && v.Inbound.WebSocket != nil || slices.ContainsFunc(v.Outbound, func(o snapshot.Outbound) bool { return o.WebSocket != nil }) {
			return true
		}
	}
	return slices.ContainsFunc(s.Gateways, func(g snapshot.Gateway) bool {
		return slices.ContainsFunc(g.Routes, func(r snapshot.Route) bool { return r.WebSocket != nil })
	})
}

// Lacks are those of needs that has does not have.
func Lacks(has, needs []string) (missing []string) {
	for _, n := range needs {
		if !slices.Contains(has, n) {
			missing = append(missing, n)
		}
	}
	return missing
}
