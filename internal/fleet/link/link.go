// Package link is what passes between a server and an agent: the words of the
// stream, and nothing of how it is carried.
//
// It refuses to connect: in one process the node hands the values over.
package link

import (
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// An Update is everything that an agent runs by. It is immutable, and each one
// is the full state: what is absent is withdrawn.
type Update struct {
	// Generation grows with every update of one server process. A revision may
	// be sent several times, with other keys or another bundle.
	Generation uint64
	Snapshot   *snapshot.Snapshot
	// Bundle is what the trust domain trusts.
	Bundle *identity.Bundle
}
