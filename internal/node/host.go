package node

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/enrol/renew"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/firewall"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/node/agent"
)

// HostConfig is what an agent in a process of its own is started with. Every field
// is required but those that say otherwise.
type HostConfig struct {
	// Dir is the agent's directory; it is created with mode 0700.
	Dir string
	// Socket is the path of the SPIFFE Workload API.
	Socket string
	// Token is a join token. It may be empty once the host has joined, and is then
	// not looked at.
	Token string
	// Advertise is the IP address where other hosts reach this one, where the mesh
	// file does not say it; empty for the one that the server sees.
	Advertise string
	// Metrics is where metrics and health are served, host:port; empty is nowhere.
	Metrics string
	// Firewall closes the ports of applications to everybody but this agent, by nftables.
	Firewall bool
	// Version is the program's.
	Version api.Version
	Clock   clock.Clock
	Logger  *slog.Logger
}

// StartHost joins where that has not been done, opens everything that can fail, and
// runs the agent. It returns once it runs, whether a server answers or not: what an
// earlier run was told stays in force until then.
func StartHost(ctx context.Context, cfg HostConfig) (*Node, error) {
	if err := agent.CheckSocket(cfg.Socket); err != nil {
		return nil, err
	}
	if err := agent.MakeDir(cfg.Dir); err != nil {
		return nil, err
	}
	state, err := link.OpenState(cfg.Dir)
	if err != nil {
		return nil, err
	}
	host, err := joined(ctx, cfg, state)
	if err != nil {
		return nil, err
	}
	n := &Node{host: host.Name, done: make(chan struct{})}
	return n, n.startHost(cfg, state, host)
}

// joined is the host that this machine is: as kept, or by the token.
func joined(ctx context.Context, cfg HostConfig, state *link.State) (*link.Host, error) {
	host, err := state.Host()
	if err != nil {
		return nil, err
	}
	now := cfg.Clock.Now()
	if host != nil && now.Before(host.Credential.NotAfter()) {
		return host, nil
	}
	if cfg.Token == "" {
		if host != nil {
			return nil, fault.New(fault.JoinToken, "make a token where the server runs: parley join-token "+host.Name+", and start again with --token-file FILE",
				"this host was off for too long: its certificate ended at %s", host.Credential.NotAfter().UTC().Format("2006-01-02T15:04:05Z"))
		}
		return nil, fault.New(fault.JoinToken, "make a token where the server runs: parley join-token HOST, and start with --token-file FILE",
			"this machine has not joined a mesh yet")
	}
	token, err := link.ParseToken(cfg.Token)
	if err != nil {
		return nil, err
	}
	if host != nil && (token.Host != host.Name || token.TrustDomain != host.Credential.ID.TrustDomain()) {
		// What is kept here, its log too, is that host's.
		return nil, fault.New(fault.JoinToken, "give the other host a directory of its own: --dir DIR",
			"%s is the directory of host %s of %s, and the token is for host %s of %s", cfg.Dir, host.Name, host.Credential.ID.TrustDomain(), token.Host, token.TrustDomain)
	}
	key, err := state.JoinKey()
	if err != nil {
		return nil, err
	}
	j, err := link.JoinServer(ctx, token, key, cfg.Version.Version, cfg.Clock)
	if err != nil {
		return nil, err
	}
	host = &link.Host{Name: token.Host, Addresses: token.Addresses, Credential: j.Credential, Bundle: j.Bundle}
	cfg.Logger.Info("joined", "agent_host", host.Name, "trust_domain", j.Bundle.TrustDomain.String(), "id", j.Credential.ID.String())
	return host, state.SaveHost(host)
}

func (n *Node) startHost(cfg HostConfig, state *link.State, host *link.Host) (err error) {
	own := &ownSource{state: state, host: *host}
	if err := own.trusts(host.Bundle); err != nil {
		return err
	}
	last, err := state.Update()
	if err != nil {
		cfg.Logger.Warn("the last snapshot is not used", "error", err)
		last = nil
	}
	server, err := identity.ServerID(host.Bundle.TrustDomain)
	if err != nil {
		return err
	}
	client, err := link.NewClient(link.ClientConfig{
		Addresses: host.Addresses, Host: host.Name, Advertise: cfg.Advertise, Source: own, Server: server,
		Version: cfg.Version.Version, Last: last, Settle: n.settle, Clock: cfg.Clock, Logger: cfg.Logger,
	})
	if err != nil {
		return err
	}
	own.keeper = renew.New(renew.Config{
		ID: host.Credential.ID, Issuer: client, Trust: own.trust.Load, Keep: own, Clock: cfg.Clock, Logger: cfg.Logger,
	})
	metrics := metric.NewRegistry()
	var filter agent.PacketFilter
	if cfg.Firewall {
		filter = firewall.NFT{}
	}
	master, _, err := keys.OpenMaster(filepath.Join(cfg.Dir, masterFile))
	if err != nil {
		return errors.Join(err, client.Close())
	}
	n.agent, err = agent.Open(agent.Config{
		TrustDomain: host.Bundle.TrustDomain, Master: master,
		Firewall: filter, Listens: []string{cfg.Metrics},
		Host: host.Name, Dir: filepath.Join(cfg.Dir, "agent"), Socket: cfg.Socket,
		Control: client, Sink: client, Counterpart: client, Kept: state, Applied: own.applied(cfg.Logger),
		Clock: cfg.Clock, Logger: cfg.Logger, Metrics: metrics,
	})
	if err != nil {
		return errors.Join(err, client.Close())
	}
	var doors []door
	if cfg.Metrics != "" {
		health, err := openHealth(cfg.Metrics, metrics, cfg.Version, n.ready)
		if err != nil {
			return errors.Join(err, n.agent.Close(), client.Close())
		}
		doors = append(doors, health)
	}
	run, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go n.runHost(run, doors, client, own.keeper)
	return nil
}

// settle delivers what the agent has recorded so far.
func (n *Node) settle(ctx context.Context) { n.agent.Settle(ctx) }

// runHost ends when the context does or any part fails. The connection to the
// server is closed last: the last events go over it.
func (n *Node) runHost(ctx context.Context, doors []door, client *link.Client, keeper *renew.Keeper) {
	defer close(n.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts, connection sync.WaitGroup
	errs := make(chan error, len(doors)+2)
	for _, d := range doors {
		parts.Go(func() {
			errs <- d.serve(ctx)
			cancel()
		})
	}
	parts.Go(func() {
		errs <- n.agent.Run(ctx, drainTime)
		cancel()
	})
	connected, disconnect := context.WithCancel(context.Background())
	connection.Go(func() { _ = keeper.Run(connected) }) // ends with its context only
	connection.Go(func() { _ = client.Run(connected) })
	parts.Wait()
	disconnect()
	connection.Wait()
	errs <- client.Close()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = errors.Join(all...)
}

// ownSource is the agent's own credential, and the trust in which its server is.
type ownSource struct {
	state  *link.State
	keeper *renew.Keeper
	trust  atomic.Pointer[identity.Trust]

	mu   sync.Mutex // guards host
	host link.Host
}

// Credential implements identity.Source.
func (o *ownSource) Credential() (*identity.Credential, error) {
	if c, err := o.keeper.Credential(); err == nil {
		return c, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.host.Credential, nil // before the keeper runs
}

// Trust implements identity.Source.
func (o *ownSource) Trust() *identity.Trust { return o.trust.Load() }

// trusts makes b what the server is verified by.
func (o *ownSource) trusts(b *identity.Bundle) error {
	server, err := identity.ServerID(b.TrustDomain)
	if err != nil {
		return err
	}
	next := &identity.Trust{
		Epoch: 1, Bundles: map[identity.TrustDomain]*identity.Bundle{b.TrustDomain: b}, Members: map[identity.ID]bool{server: true},
	}
	if old := o.trust.Load(); old != nil {
		next.Epoch = old.Epoch + 1
	}
	o.trust.Store(next)
	return nil
}

// Load implements renew.Keep.
func (o *ownSource) Load(identity.ID) (*identity.Credential, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.host.Credential, nil
}

// Save implements renew.Keep.
func (o *ownSource) Save(c *identity.Credential) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.host.Credential = c
	return o.state.SaveHost(&o.host)
}

// applied keeps what is in force, and the bundle that came with it.
func (o *ownSource) applied(logger *slog.Logger) func(*link.Update) {
	return func(u *link.Update) {
		// First what the server is verified by: an update can be asked for again.
		if err := o.learn(u.Bundle); err != nil {
			logger.Error("bundle not kept", "error", err)
		}
		if err := o.state.SaveUpdate(u); err != nil {
			logger.Error("snapshot not kept", "revision", u.Snapshot.Revision, "error", err)
		}
	}
}

// learn keeps and trusts b, where it is another than before.
func (o *ownSource) learn(b *identity.Bundle) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if b.Sequence == o.host.Bundle.Sequence {
		return nil
	}
	o.host.Bundle = b
	return errors.Join(o.trusts(b), o.state.SaveHost(&o.host))
}
