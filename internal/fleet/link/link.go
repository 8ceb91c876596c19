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
}

// The states of a part.
const (
	OK      = "ok"
	Waiting = "waiting"
	Failed  = "failed"
)

// A ServiceReport is the credential of a service or gateway.
type ServiceReport struct {
	Name     string      `json:"name"`
	ID       identity.ID `json:"id"`
	State    string      `json:"state"`
	Note     string      `json:"note,omitempty"`
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
	Note     string `json:"note,omitempty"`
}

// A FindingReport is something that an operator should look at.
type FindingReport struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Help    string `json:"help,omitempty"`
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
	// Settles says that an agent answers ServerMessage.Settle.
	Settles = "settle"
)

// Capabilities are those of this program, in order.
func Capabilities() []string { return []string{Settles} }

// Needs are the capabilities without which s would not be enforced as it is meant.
func Needs(*snapshot.Snapshot) []string { return []string{} }

// Lacks are those of needs that has does not have.
func Lacks(has, needs []string) (missing []string) {
	for _, n := range needs {
		if !slices.Contains(has, n) {
			missing = append(missing, n)
		}
	}
	return missing
}
