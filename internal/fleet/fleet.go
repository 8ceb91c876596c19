// Package fleet is the server's half of the stream between servers and agents: it
// tells each agent the slice of the newest snapshot that is its own, hears what
// runs there, and passes on what agents ask for. The agent in the server's own
// process has the same words without a stream between (Local).
//
// It refuses to issue, which is enrol's, to judge a mesh file, and to send a
// snapshot to an agent that could not enforce all of it.
package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A Registrar issues identities to hosts, and lets hosts join.
type Registrar interface {
	Issue(ctx context.Context, host string, id identity.ID, csr []byte) ([]*x509.Certificate, error)
	IssueJWT(ctx context.Context, host string, id identity.ID, audience []string) (string, time.Time, error)
	IssueProbe(ctx context.Context, host string, id identity.ID, flaw ca.Flaw, csr []byte) ([]*x509.Certificate, error)
	JoinHost(ctx context.Context, id string, secret, csr []byte, remote string) (host string, chain []*x509.Certificate, err error)
	Bundle() *identity.Bundle
}

// A Sink keeps the events of agents, witnesses their logs, and shows the server's.
type Sink interface {
	collect.Sink
	collect.Counterpart
}

// A Recorder records what concerns the fleet itself.
type Recorder interface {
	Log(ctx context.Context, e *audit.Event) error
}

// Config is what a Fleet works with. Every field is required.
type Config struct {
	Registrar Registrar
	Sink      Sink
	Recorder  Recorder
	// Host names this server in events; Version is the program's.
	Host, Version string
	Clock         clock.Clock
	Logger        *slog.Logger
}

// A Fleet is every agent of a mesh, seen from a server. It is safe for concurrent
// use.
type Fleet struct {
	cfg Config

	mu         sync.Mutex // guards what follows
	state      state
	changed    chan struct{} // closed at the next state
	agents     map[string]*agent
	reported   chan struct{} // closed at the next report
	settles    uint64        // how often agents were asked to settle
	refusals   audit.Throttle[string]
	connection uint64 // number of the last connection
	phase      *phase // of a verification; nil for none
	// awaited are hosts whose endpoints are not known since the server started; nil
	// where nobody waits for them. See AwaitReturn.
	awaited map[string]bool
}

// A state is what every agent is told its part of; immutable.
type state struct {
	generation uint64
	snapshot   *snapshot.Snapshot // nil before the first revision
	bundle     *identity.Bundle
	banned     []identity.ID
}

// An agent is what is known of one host's.
type agent struct {
	connection   uint64 // of the newest stream, 0 while there is none
	stop         context.CancelFunc
	conn         net.Conn // that of the stream
	version      string
	capabilities []string
	remote       string // the IP address that it connects from
	advertise    string // what it says of itself
	since        time.Time
	lost         time.Time
	// told is the generation up to which the agent has all that it can have, and sent the
	// digest of the last update: a new generation whose slice is the same is not
	// sent.
	told   uint64
	sent   [sha256.Size]byte
	wire   uint64 // the generation of the update that was sent last
	report link.Report
	// level is what it logs, empty where it does not say; leveled the order to change
	// that, nil for none, and relevel the number of the last that it was sent.
	level          link.LogState
	leveled        *link.LogOrder
	relevel        uint64
	asked, settled uint64 // the newest question to settle, and the newest answer
	// order is what it was last to try for a verification, and ordered what it was sent
	// of that.
	order, ordered *assess.Order
	lacks          []string // the capabilities for want of which it was not sent the newest
	// comings bounds how many of its connections are recorded, unrecorded is how
	// many were not since the last that was.
	comings    pace
	unrecorded int
}

// local says that a is in the server's process.
func (a *agent) local() bool { return a.connection > 0 && a.stop == nil }

// New is a fleet without agents and without a snapshot.
func New(cfg Config) *Fleet {
	return &Fleet{cfg: cfg, changed: make(chan struct{}), reported: make(chan struct{}), agents: map[string]*agent{}}
}

// Publish makes s what every agent is told its slice of, and returns the
// generation.
func (f *Fleet) Publish(s *snapshot.Snapshot, bundle *identity.Bundle) uint64 {
	return f.change(func(st *state) { st.snapshot, st.bundle = s, bundle })
}

// Ban makes banned, all of them, the identities that take no part.
func (f *Fleet) Ban(banned []identity.ID) uint64 {
	return f.change(func(st *state) { st.banned = slices.Clone(banned) })
}

func (f *Fleet) change(with func(*state)) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	with(&f.state)
	f.returned()
	f.next()
	return f.state.generation
}

// next begins a generation. It requires f.mu.
func (f *Fleet) next() {
	f.state.generation++
	f.wakeTellers()
}

// wakeTellers makes those look who tell agents. It requires f.mu.
func (f *Fleet) wakeTellers() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// Snapshot is what was published last, nil before the first time.
func (f *Fleet) Snapshot() *snapshot.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.snapshot
}

// update is what host is to run by now, and the channel that closes when that may
// have changed; nil before the first revision, and where the generation is seen. A
// mesh without hosts is the local agent's: another one, which was of an earlier
// revision, is told nothing of it.
func (f *Fleet) update(host string, seen uint64) (*link.Update, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, a := f.state, f.agents[host]
	remote := a == nil || !a.local()
	if st.snapshot == nil || st.generation <= seen || remote && (f.awaited != nil || len(st.snapshot.Hosts) == 0) {
		return nil, f.changed
	}
	return &link.Update{
		Generation: st.generation, Snapshot: st.snapshot.For(host, f.endpoints(host)), Bundle: st.bundle, Banned: st.banned,
	}, f.changed
}

// A Host is the state of one host for people.
type Host struct {
	Name      string
	Connected bool
	// Local says that its agent is in the server's process.
	Local   bool
	Version string
	Address string
	// Since is when it connected, or was lost; zero where it never was here.
	Since time.Time
	// Current says that the newest update is in force there.
	Current bool
	// Lacks are the capabilities for want of which it is not.
	Lacks  []string
	Report link.Report
	// Level is what its agent logs, empty where it does not say.
	Level link.LogState
	// Capabilities are its agent's.
	Capabilities []string
	// Endpoints are those of the report that other agents are told of, at the
	// addresses where they are called from elsewhere.
	Endpoints []link.Endpoint
}

// Hosts are those of the snapshot and those that are connected, in order of name.
func (f *Fleet) Hosts() []Host {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := map[string]bool{}
	if f.state.snapshot != nil {
		for _, h := range f.state.snapshot.Hosts {
			names[h.Name] = true
		}
	}
	for name, a := range f.agents {
		if a.connection > 0 {
			names[name] = true
		}
	}
	var all []Host
	for _, name := range slices.Sorted(maps.Keys(names)) {
		h := Host{Name: name}
		if a := f.agents[name]; a != nil {
			h.Connected, h.Local, h.Version, h.Address = a.connection > 0, a.local(), a.version, a.remote
			h.Current, h.Lacks, h.Report, h.Level, h.Capabilities = f.current(a), a.lacks, a.report, a.level, a.capabilities
			h.Endpoints = f.announced(name, a)
			if h.Since = a.since; !h.Connected {
				h.Since = a.lost
			}
		}
		all = append(all, h)
	}
	return all
}

// current says that a runs by the newest generation. It requires f.mu.
func (f *Fleet) current(a *agent) bool {
	return a.connection > 0 && a.told == f.state.generation && len(a.lacks) == 0 && a.report.Generation >= a.wire && a.report.Fault == ""
}

// Wait waits until every connected agent has tried generation, or ctx ends. It
// returns those that did not, or not in full, with why; agents that are not
// connected are not waited for.
func (f *Fleet) Wait(ctx context.Context, generation uint64) (behind map[string]string) {
	return f.wait(ctx, func(a *agent) (note string, waiting bool) {
		switch {
		case a.told >= generation && len(a.lacks) > 0:
			return "its agent is too old for this revision: it lacks " + strings.Join(a.lacks, ", "), false
		case a.told < generation || a.report.Generation < a.wire:
			return unanswered, true
		}
		return a.report.Fault, false
	})
}

// WaitWithdrawn is Wait for what an agent has to hear though it is too old for the
// newest revision: whom it is not to let in any more.
func (f *Fleet) WaitWithdrawn(ctx context.Context, generation uint64) (behind map[string]string) {
	return f.wait(ctx, func(a *agent) (note string, waiting bool) {
		switch {
		case a.told >= generation && len(a.lacks) > 0 && !slices.Contains(a.capabilities, link.Withdraws):
			return "its agent is too old for the newest revision, and to be told alone who is banned", false
		case a.told < generation || a.report.Generation < a.wire:
			return unanswered, true
		}
		return a.report.Fault, false
	})
}

const unanswered = "it has not answered yet"

// wait waits until of no connected agent it is to be waited for, or ctx ends, and
// returns the notes on them.
func (f *Fleet) wait(ctx context.Context, judge func(*agent) (note string, waiting bool)) (behind map[string]string) {
	for {
		f.mu.Lock()
		reported := f.reported
		behind = map[string]string{}
		waiting := false
		for name, a := range f.agents {
			if a.connection == 0 {
				continue
			}
			note, more := judge(a)
			if note != "" {
				behind[name] = note
			}
			waiting = waiting || more
		}
		f.mu.Unlock()
		if !waiting {
			return behind
		}
		select {
		case <-reported:
		case <-ctx.Done():
			return behind
		}
	}
}

// settleTime bounds Settle: an agent that does not answer keeps nobody waiting.
const settleTime = 1500 * time.Millisecond

// Settle waits, briefly, until every agent that is connected has delivered the
// events that it has recorded so far. The one in this process is asked directly.
func (f *Fleet) Settle(ctx context.Context) {
	ctx, done := context.WithTimeout(ctx, settleTime)
	defer done()
	f.mu.Lock()
	f.settles++
	n := f.settles
	for _, a := range f.agents {
		if a.connection > 0 && slices.Contains(a.capabilities, link.Settles) && !a.local() {
			a.asked = n
		}
	}
	f.wakeTellers()
	f.mu.Unlock()
	for {
		f.mu.Lock()
		reported, waiting := f.reported, false
		for _, a := range f.agents {
			waiting = waiting || a.connection > 0 && a.asked >= n && a.settled < n
		}
		f.mu.Unlock()
		if !waiting {
			return
		}
		select {
		case <-reported:
		case <-ctx.Done():
			return
		}
	}
}

// event is one that concerns a host.
func (f *Fleet) event(action audit.Action, outcome audit.Outcome, host, remote string) *audit.Event {
	now := f.cfg.Clock.Now().UTC()
	return &audit.Event{
		ID: audit.NewID(now), Time: now, Class: audit.Security, Action: action, Outcome: outcome,
		Host: f.cfg.Host, Reporter: "server", Actor: &audit.Actor{System: "fleet"},
		Caller: &audit.Party{Address: remote}, Object: &audit.Object{Kind: "host", Name: host},
	}
}

func (f *Fleet) record(e *audit.Event) {
	if err := f.cfg.Recorder.Log(context.Background(), e); err != nil {
		f.cfg.Logger.Error("event not recorded", "action", e.Action, "error", err)
	}
}
