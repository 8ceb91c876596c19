package control

import (
	"context"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// EdgesPeriod is over how long the calls of an edge are counted.
const EdgesPeriod = time.Hour

// A Runtime is what runs by the revisions: node joins it from the other rooms.
// Implementations are safe for concurrent use.
type Runtime interface {
	// Status is what runs now.
	Status(ctx context.Context) (RuntimeStatus, error)
	// Explain asks the policy that decides on traffic now.
	Explain(q policy.Query) policy.Explanation
	// Prepare says whether s could run here, such as whether its listeners can
	// be opened (fault.PortOccupied, fault.PortForbidden). It holds nothing and
	// changes nothing.
	Prepare(ctx context.Context, s *snapshot.Snapshot) error
	// Publish makes s what runs. An error says what of it does not run yet; s is
	// the desired state all the same.
	Publish(ctx context.Context, s *snapshot.Snapshot) error
	// Ban makes banned, all of them, the identities that take no part, and says
	// where that is in force. It waits for hosts that are connected, briefly.
	Ban(ctx context.Context, banned []identity.ID) []Confirmation
	// Bundle is what the trust domain trusts.
	Bundle() *identity.Bundle
}

// A Collector brings events from where they were recorded into the store.
type Collector interface {
	// Settle waits, briefly, until every event recorded so far is in the store.
	Settle(ctx context.Context)
}

// Certificates lists what has been issued.
type Certificates interface {
	// Certificates are those that have not ended at now, in order of their
	// serial, at most limit of those behind the serial after.
	Certificates(ctx context.Context, now time.Time, after string, limit int) ([]api.Certificate, error)
}

// A RuntimeStatus is what runs. Lists that a mesh file bounds are complete.
type RuntimeStatus struct {
	// Since is the start of the server.
	Since time.Time
	// Revision is the one that runs, 0 for none.
	Revision int64
	// CA is the root and the intermediate.
	CA        []api.Certificate
	Services  []api.ServiceStatus
	Gateways  []api.GatewayStatus
	Listeners []api.ListenerStatus
	// Hosts are those of the mesh file.
	Hosts []api.HostStatus
	// Plaintext are the services that let callers in without TLS.
	Plaintext []api.PlaintextStatus
	// Edges are those that calls were seen on in the last EdgesPeriod.
	Edges []api.EdgeStatus
	Audit api.AuditStatus
	// Findings are those of the running parts; control adds the mesh file's.
	Findings []api.Finding
	// Expected says of kinds of the mesh file's findings why they are as they are
	// meant to be here.
	Expected map[string]string
}
