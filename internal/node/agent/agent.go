// Package agent wires the agent: it follows the control plane, keeps a
// credential for every service and gateway of its snapshot, and runs the
// listeners, the gate, the Workload API and the log of access events with them.
//
// It refuses to hold logic: each step is a room's.
package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/audit/spool"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fetch"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/proxy"
	"github.com/parleymesh/parley/internal/resolve"
	"github.com/parleymesh/parley/internal/workload"
)

// ControlPlane is what an agent needs of a server.
type ControlPlane interface {
	// Watch returns the newest update once its generation is above seen.
	Watch(ctx context.Context, seen uint64) (link.Update, error)
	// Issue signs an X509-SVID for id, which runs on this host.
	Issue(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error)
	// IssueJWT signs a JWT-SVID.
	IssueJWT(ctx context.Context, id identity.ID, audience []string) (string, time.Time, error)
	// Report tells what runs here. It does not block.
	Report(*link.Report)
	// Spread waits until other hosts can know what was reported, within a time of
	// its own.
	Spread(ctx context.Context)
	Orders
}

// Orders are what a server has the agent try for `parley verify`.
type Orders interface {
	// NextOrder waits for the next one.
	NextOrder(ctx context.Context) (assess.Order, error)
	// IssueProbe signs a certificate for probes.
	IssueProbe(ctx context.Context, id identity.ID, flaw assess.Check, csr []byte) ([]*x509.Certificate, error)
	// Assessed tells what came of an order.
	Assessed(ctx context.Context, r *assess.Report) error
}

// Credentials keeps the credentials of this host's identities from one start to
// the next. link.State does.
type Credentials interface {
	Load(id identity.ID) (*identity.Credential, error)
	Save(c *identity.Credential) error
	Forget(id identity.ID) error
}

// Config is what an agent is started with. Every field but Kept, Applied, Firewall and
// Listens is required.
type Config struct {
	// Host names this machine in events.
	Host string
	// Dir holds the agent's own files: its log and, unless Socket says
	// otherwise, its socket. It is created with mode 0700.
	Dir string
	// Socket is the path of the SPIFFE Workload API.
	Socket string
	// TrustDomain is the realm of the agent, and Master what seals the key of its log.
	TrustDomain identity.TrustDomain
	Master      Sealer
	// Control is the server, Sink where access events are collected.
	Control ControlPlane
	Sink    collect.Sink
	// Counterpart is the server, as the one that witnesses the agent's log and shows its
	// own.
	Counterpart collect.Counterpart
	// Kept keeps credentials on disk; nil keeps none, where the CA is in this
	// process.
	Kept Credentials
	// Applied, if set, is told what an agent that starts anew is to run by: each
	// update that was brought into force in full, and otherwise the last that was,
	// with what the newest one withdraws.
	Applied func(*link.Update)
	// Firewall closes the ports of applications to everybody but this agent; nil leaves
	// the packet filter alone. Listens are the addresses that this process listens on
	// beside the agent, which stay open.
	Firewall PacketFilter
	Listens  []string
	Clock    clock.Clock
	Logger   *slog.Logger
	Metrics  *metric.Registry
}

// FirstCredential is how long listeners wait for the first credentials of a new
// revision. Those that have none by then open all the same and refuse.
const FirstCredential = 5 * time.Second

// An Agent runs what its snapshot says.
type Agent struct {
	cfg      Config
	sink     *watched
	spool    *spool.Spool
	logs     *exchange
	issuers  *fetch.Issuers
	names    *resolve.Names
	gate     *gate.Gate
	proxy    *proxy.Proxy
	attestor *attest.Attestor
	workload *workload.Server
	socket   net.Listener

	trust    atomic.Pointer[identity.Trust]
	current  atomic.Pointer[link.Update] // in force, as far as it could be applied
	pending  atomic.Pointer[link.Update] // being applied: what processes are attested by
	keepers  keepers
	apps     *apps
	closer   closer
	checks   *checks
	leaving  atomic.Bool // no service is announced any more
	changed  broadcast
	findings findings
	hosting  sync.Mutex // held while the host is looked at for findings

	applying sync.Mutex   // held while an update is applied, so that none is undone by an older one
	good     *link.Update // what Applied was told last; guarded by applying
	mu       sync.Mutex   // guards failure and the step from one current to the next
	applied  broadcast
	failure  error
	// undecided says that the gate could not take the update, so that no listener
	// is to run by it; guarded by applying.
	undecided bool

	telling sync.Mutex // guards told
	told    *link.Report
}

// Open prepares an agent: it locks its directory, recovers its log and binds
// its socket, so that what can fail does so before anything runs.
func Open(cfg Config) (*Agent, error) {
	logDir := filepath.Join(cfg.Dir, "log")
	if err := os.MkdirAll(logDir, 0o700); err != nil {
		return nil, fault.Wrap(cause(err), fault.DirUnusable, "ls -ld "+filepath.Dir(cfg.Dir)+" "+cfg.Dir, "the agent's directory %s cannot be made", logDir)
	}
	sp, err := spool.Open(spool.Config{Dir: logDir, Log: cfg.Host, Key: cfg.logKey, Clock: cfg.Clock, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	logs, err := newExchange(&cfg, sp.Log())
	if err != nil {
		return nil, errors.Join(err, sp.Close())
	}
	a := &Agent{cfg: cfg, logs: logs, sink: &watched{Sink: cfg.Sink}, spool: sp, attestor: attest.New(attest.Config{Clock: cfg.Clock})}
	a.checks = newChecks(cfg.Clock, cfg.Logger, cfg.Metrics)
	a.apps = newApps(cfg.Clock, cfg.Logger, a.checks.state)
	a.closer = closer{filter: cfg.Firewall, listens: cfg.Listens, clk: cfg.Clock, logger: cfg.Logger}
	a.trust.Store(&identity.Trust{})
	a.keepers.init(a)
	a.issuers = fetch.NewIssuers(fetch.Config{Clock: cfg.Clock, Logger: cfg.Logger, Metrics: cfg.Metrics})
	a.gate = gate.New(gate.Config{Host: cfg.Host, Recorder: sp, Clock: cfg.Clock, Logger: cfg.Logger, Metrics: cfg.Metrics, Issuers: a.issuers})
	a.gate.SetTrust(a.trust.Load)
	a.names = resolve.New(resolve.Config{
		Lookup: net.DefaultResolver.LookupNetIP, Changed: func() { a.proxy.Resolved() },
		Clock: cfg.Clock, Logger: cfg.Logger, Metrics: cfg.Metrics,
	})
	a.proxy = proxy.New(proxy.Config{
		Gate: a.gate, Source: a.keepers.source, Attest: a.attest, AppPort: a.appPort, AppConn: appConn, Lookup: a.names.Lookup,
		Clock: cfg.Clock, Logger: cfg.Logger, Metrics: cfg.Metrics,
	})
	a.workload = workload.NewServer(workload.Config{Backend: backend{a}, MaxConnections: workloadShare(limitOfDescriptors()), Host: cfg.Host, Clock: cfg.Clock, Logger: cfg.Logger})
	if a.socket, err = listenUnix(cfg.Socket); err != nil {
		return nil, errors.Join(err, sp.Close())
	}
	a.recordRepairs()
	return a, nil
}

// Run runs the agent until ctx ends or a part of it fails, and then leaves
// nothing running. Its services are withdrawn first, and go on until their callers
// can know; then connections in flight get drain to end.
func (a *Agent) Run(ctx context.Context, drain time.Duration) error {
	stop := ctx.Done()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	// The sealer outlives the rest: the last events are sealed and collected
	// after the listeners have closed.
	logCtx, stopLog := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLog()
	var log, rest sync.WaitGroup
	fail := make(chan error, 9)
	start := func(wg *sync.WaitGroup, f func() error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f(); err != nil && !errors.Is(err, context.Canceled) {
				fail <- err
			}
		}()
	}
	start(&log, func() error { return a.spool.Run(logCtx) })
	start(&log, func() error {
		return collect.Run(logCtx, a.spool.Log(), a.spool, a.sink, a.cfg.Clock, a.cfg.Logger)
	})
	start(&rest, func() error { return a.follow(ctx) })
	start(&rest, func() error { return a.look(ctx) })
	start(&rest, func() error { return a.reporting(ctx) })
	start(&rest, func() error { return a.keepClosed(ctx) })
	start(&rest, func() error { return a.verifying(ctx) })
	start(&rest, func() error { return a.exchanging(ctx) })
	start(&rest, func() error { return a.workload.Serve(a.socket) })

	var err error
	select {
	case <-stop:
	case err = <-fail:
	}
	a.withdraw(ctx)
	cancel()
	drainCtx, done := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer done()
	err = errors.Join(err, a.proxy.Drain(drainCtx))
	a.workload.Stop()
	rest.Wait()
	a.issuers.Stop()
	a.names.Stop()
	a.checks.stop()
	a.keepers.stop()
	a.gate.Told(true)
	a.flush(drainCtx)
	a.exchange(drainCtx)
	stopLog()
	log.Wait()
	return errors.Join(err, a.spool.Close())
}

// flush waits until every event that was recorded is collected. What is not, by
// then, is in the agent's log and goes out after the next start.
func (a *Agent) flush(ctx context.Context) {
	for next := a.spool.Next(); ; {
		cursor, err := a.cfg.Sink.Cursor(ctx, a.spool.Log())
		if err == nil && cursor >= next {
			return
		}
		if err != nil || a.cfg.Clock.Sleep(ctx, 20*time.Millisecond) != nil {
			a.cfg.Logger.Warn("access events stay in the agent's log until the next start", "count", next-min(cursor, next), "error", err)
			return
		}
	}
}

// Status is the state of the listeners.
func (a *Agent) Status() []proxy.ListenerStatus { return a.proxy.Status() }

// Current is the update in force, nil before the first.
func (a *Agent) Current() *link.Update { return a.current.Load() }

// Gate is the agent's gate, for `why`.
func (a *Agent) Gate() *gate.Gate { return a.gate }

// VerifyLog recomputes the agent's own log, and says what was wrong with the
// damaged files that are kept beside it, each by its path.
func (a *Agent) VerifyLog() (spool.Report, error) {
	r, err := a.spool.Verify()
	if err != nil {
		return r, err
	}
	kept, err := a.spool.Kept()
	r.Log, r.Problems = a.spool.Log(), append(r.Problems, kept...)
	for i, p := range r.Problems {
		r.Problems[i].File = filepath.Join(a.cfg.Dir, "log", p.File)
	}
	return r, err
}

// recordRepairs says in the log what of it this start found damaged. The gap
// events that stand in for the entries do not tell that of entries which had been
// collected before.
func (a *Agent) recordRepairs() {
	for _, p := range a.spool.Repaired() {
		now := a.cfg.Clock.Now()
		a.Record(&audit.Event{
			ID: audit.NewID(now), Time: now, Class: audit.Security, Action: audit.Gap, Outcome: audit.Failure,
			Reason: "log_damaged", Message: p.File + ": " + p.What + "; the damaged file is kept beside it", Object: &audit.Object{Kind: "log", Name: a.spool.Log()},
		})
	}
}

// Record writes an event that is not a call's into the agent's log.
func (a *Agent) Record(e *audit.Event) {
	e.Host, e.Reporter = a.cfg.Host, "agent"
	if err := a.spool.Record(e); err != nil {
		a.cfg.Logger.Error("event not recorded", "action", e.Action, "error", err)
	}
}

// Close releases an agent that was never run.
func (a *Agent) Close() error {
	a.issuers.Stop()
	a.names.Stop()
	a.checks.stop()
	return errors.Join(a.socket.Close(), a.spool.Close())
}
