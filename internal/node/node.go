// Package node is the composition root: it reads a Config, wires server, agent
// and admin API, and runs them in one process.
//
// It refuses to hold logic: what it does not wire it calls.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/node/agent"
	"github.com/parleymesh/parley/internal/node/server"
	"github.com/parleymesh/parley/internal/store"
)

// Config is what a server is started with, with or without an agent in its
// process. Every field is required but those that say otherwise.
type Config struct {
	// Host names this machine in events.
	Host string
	// Dir is the data directory; it is created with mode 0700.
	Dir string
	// Store is the URL of a PostgreSQL database in place of the file in Dir; it may be
	// empty. It may hold a password and is never printed.
	Store string
	// Socket is the path of the SPIFFE Workload API, APISocket of the admin API.
	// Without an agent there is no Socket.
	Socket, APISocket string
	// ServerOnly leaves the agent out: those of the mesh's hosts connect.
	ServerOnly bool
	// MeshName and MeshText are the mesh file that names the trust domain. It is
	// not applied: that goes through the admin API. Instead of them TrustDomain
	// names it, which may be empty for a data directory that has one.
	MeshName, MeshText string
	TrustDomain        string
	// Listen is where agents of other hosts connect, host:port, and Advertise what
	// join tokens say of that; empty for no other hosts.
	Listen    string
	Advertise []string
	// DemoBin is where `parley dev` put the executables of its demo. They belong to
	// whoever started it, and status says that this is meant. Empty elsewhere.
	DemoBin string
	// Metrics is where metrics and health are served, host:port; empty is nowhere.
	Metrics string
	// Version is the program's.
	Version api.Version
	Clock   clock.Clock
	Logger  *slog.Logger
	// Before, where set, is called when everything is open that can fail, and nothing
	// of the newest revision runs yet.
	Before func(context.Context) error
	// Wire, in tests, stands between agent and server.
	Wire func(agent.ControlPlane) agent.ControlPlane
}

// drainTime is how long connections in flight get when a node stops.
const drainTime = 5 * time.Second

// A Node is what runs in this process: a server, an agent, or both.
type Node struct {
	host   string
	server *server.Server // nil in an agent's process
	agent  *agent.Agent   // nil in a server's process

	cancel context.CancelFunc
	done   chan struct{}
	mu     sync.Mutex // guards err
	err    error
}

// Check refuses a Config that cannot work on any machine, before anything is made.
func (cfg Config) Check() error {
	_, err := cfg.trustDomain()
	return err
}

// trustDomain checks cfg and is the realm that it names.
func (cfg Config) trustDomain() (identity.TrustDomain, error) {
	if cfg.Store != "" {
		if err := store.CheckURL(cfg.Store); err != nil {
			return identity.TrustDomain{}, err
		}
	}
	for _, path := range []string{cfg.Socket, cfg.APISocket} {
		if err := agent.CheckSocket(path); err != nil {
			return identity.TrustDomain{}, err
		}
	}
	if cfg.MeshText == "" {
		return server.Domain(cfg.Dir, cfg.TrustDomain)
	}
	file, err := mesh.Parse(cfg.MeshName, []byte(cfg.MeshText))
	if err != nil {
		return identity.TrustDomain{}, err
	}
	return identity.ParseTrustDomain(file.TrustDomain)
}

// Start opens everything that can fail, then runs it. It returns when the admin
// API answers; where it fails nothing is left running or half made.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	domain, err := cfg.trustDomain()
	if err != nil {
		return nil, err
	}
	var agents net.Listener
	if cfg.Listen != "" {
		if agents, err = server.Bind(cfg.Listen); err != nil {
			return nil, err
		}
	}
	srv, err := server.Open(ctx, server.Config{
		Host: cfg.Host, Dir: cfg.Dir, Store: cfg.Store, TrustDomain: domain, Version: cfg.Version.Version, Clock: cfg.Clock, Logger: cfg.Logger,
	})
	if err == nil && agents != nil {
		err = srv.Listen(agents, cfg.Advertise)
	} else if agents != nil {
		err = errors.Join(err, agents.Close())
	}
	if err != nil {
		if srv != nil {
			err = errors.Join(err, srv.Close())
		}
		return nil, err
	}
	n := &Node{host: cfg.Host, server: srv, done: make(chan struct{})}
	if err := n.start(ctx, cfg, domain); err != nil {
		return nil, errors.Join(err, srv.Close())
	}
	return n, nil
}

// masterFile is the master key in a data directory.
const masterFile = "master.key"

func (n *Node) start(ctx context.Context, cfg Config, domain identity.TrustDomain) error {
	if _, err := n.server.Resume(ctx); err != nil {
		return err
	}
	metrics := metric.NewRegistry()
	if !cfg.ServerOnly {
		var plane agent.ControlPlane = n.server.Fleet().Local(cfg.Host)
		if cfg.Wire != nil {
			plane = cfg.Wire(plane)
		}
		master, _, err := keys.OpenMaster(filepath.Join(cfg.Dir, masterFile))
		if err != nil {
			return err
		}
		n.agent, err = agent.Open(agent.Config{
			TrustDomain: domain, Master: master,
			Host: cfg.Host, Dir: filepath.Join(cfg.Dir, "agent"), Socket: cfg.Socket,
			Control: plane, Sink: n.server.Store(), Counterpart: n.server.Store(), Clock: cfg.Clock, Logger: cfg.Logger, Metrics: metrics,
		})
		if err != nil {
			return err
		}
	}
	rt := &runtime{node: n, clock: cfg.Clock, started: cfg.Clock.Now(), demoBin: cfg.DemoBin}
	doors, err := openDoors(cfg, n.server, rt, metrics)
	if err != nil {
		return errors.Join(err, n.closeAgent())
	}
	if cfg.Before != nil {
		err = cfg.Before(ctx)
	}
	if err == nil {
		err = n.server.Started(ctx)
	}
	if err != nil {
		for _, d := range doors {
			err = errors.Join(err, d.listener.Close())
		}
		return errors.Join(err, n.closeAgent())
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	n.cancel = cancel
	go n.run(run, doors)
	return nil
}

func (n *Node) closeAgent() error {
	if n.agent == nil {
		return nil
	}
	return n.agent.Close()
}

// Host is the machine's name in the mesh.
func (n *Node) Host() string { return n.host }

// Address is where agents of other hosts connect; nil where they do not.
func (n *Node) Address() net.Addr { return n.server.Address() }

// run ends when the context does or any part fails, and takes the rest along:
// first the doors, so that no change comes in, then the agent, then the store.
func (n *Node) run(ctx context.Context, doors []door) {
	defer close(n.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(doors)+3)
	var doorsDone, agentDone, headsDone, storeDone sync.WaitGroup
	holdCtx, letGo := context.WithCancel(context.WithoutCancel(ctx))
	defer letGo()
	storeDone.Go(func() {
		errs <- n.server.Hold(holdCtx)
		cancel()
	})
	headsCtx, stopHeads := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHeads()
	headsDone.Go(func() { n.server.KeepHeads(headsCtx) })
	headsDone.Go(func() { n.server.Prune(headsCtx) })
	doorsDone.Go(func() {
		errs <- n.server.Serve(ctx)
		cancel()
	})
	for _, d := range doors {
		doorsDone.Go(func() {
			errs <- d.serve(ctx)
			cancel()
		})
	}
	agentCtx, stopAgent := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAgent()
	if n.agent != nil {
		agentDone.Go(func() {
			errs <- n.agent.Run(agentCtx, drainTime)
			cancel()
		})
	}
	<-ctx.Done()
	doorsDone.Wait()
	stopAgent()
	agentDone.Wait()
	stopHeads()
	headsDone.Wait()
	letGo()
	storeDone.Wait()
	close(errs)
	all := []error{n.server.Close()}
	for err := range errs {
		all = append(all, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = errors.Join(all...)
}

// Done is closed when the node has ended.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is why the node ended, nil where it was stopped and nothing failed.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Stop ends the node and returns when nothing of it runs any more.
func (n *Node) Stop(ctx context.Context) error {
	n.cancel()
	select {
	case <-n.done:
		return n.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listenMetrics binds the address of metrics and health.
func listenMetrics(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		return l, nil
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return nil, fault.Wrap(err, fault.PortForbidden, "choose an address of this host: ip -brief address", "metrics and health cannot be served on %s", addr)
	}
	_, port, _ := net.SplitHostPort(addr)
	return nil, fault.New(fault.PortOccupied, fmt.Sprintf("see who has it: ss -ltnp 'sport = :%s', or choose another: --metrics 127.0.0.1:PORT", port),
		"another process listens on %s, where metrics and health are to be served", addr)
}
