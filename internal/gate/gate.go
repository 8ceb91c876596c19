// Package gate is permission on the way of a request: Check asks who calls
// (authn) and whether they may (policy), Done and Refuse write the one event that
// says what came of it. Its stages do not know each other; they meet in Check.
//
// Why a request was denied by a rule is made in policy/decide.go; what is refused
// before any rule is asked has its reason from reasons.go.
//
// It refuses to parse, to forward, and to answer the client: it hands out a
// verdict, and only the verdict's status, code, challenge and id may be told.
package gate

import (
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A Recorder keeps events. When Record returns nil, the event outlives the
// process. Record keeps nothing of e: it is used anew afterwards.
type Recorder interface {
	Record(e *audit.Event) error
}

// Config is what a Gate works with; all of it is required.
type Config struct {
	// Host names this agent in events.
	Host     string
	Recorder Recorder
	Clock    clock.Clock
	Logger   *slog.Logger
	Metrics  *metric.Registry
	// Issuers are whose tokens an edge can verify.
	Issuers authn.Issuers
}

// A Gate decides and records. It is safe for concurrent use. Until both Apply
// and SetTrust were called it denies what depends on them.
type Gate struct {
	cfg     Config
	log     *slog.Logger
	metrics metrics
	tokens  *authn.Tokens
	origins authn.Verifier
	state   atomic.Pointer[state]
	swap    sync.Mutex // held while state is replaced
	open    openCalls
	seen    sources // without TLS
	// floods are the refusals that strangers can repeat at will.
	floods floods
	// failing is set while the recorder fails: what cannot be recorded is not
	// allowed.
	failing atomic.Bool
}

// New is a gate that is not ready yet.
func New(cfg Config) *Gate {
	g := &Gate{cfg: cfg, log: cfg.Logger.With("component", "gate"), metrics: newMetrics(cfg.Metrics), tokens: authn.NewTokens(cfg.Issuers)}
	g.state.Store(&state{meters: g.metrics.of(&snapshot.Snapshot{})})
	return g
}

// Explain says how a query is decided now, and how near every rule came.
func (g *Gate) Explain(q policy.Query) policy.Explanation { return g.state.Load().policy.Explain(q) }

// Open is how many calls were checked and have not ended.
func (g *Gate) Open() int { return g.open.len() }
