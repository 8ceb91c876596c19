package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/enrol/renew"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A door is where agents and administrators of other hosts come in.
type door struct {
	server    *Server
	addresses []string // as join tokens name them
	listener  net.Listener
	keeper    *renew.Keeper
	trust     atomic.Pointer[identity.Trust]
	conns     mtls.Conns
	fleet     *fleet.Server
	agents    net.Listener
	joins     net.Listener
	admins    net.Listener
}

// Bind opens the address where agents connect: before anything is made, so that a
// start that is refused leaves nothing.
func Bind(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, listenFault(err, addr)
	}
	return l, nil
}

// Listen takes agents on l, which it closes where it fails; later Serve serves them.
// advertise are the addresses, host:port, by which they find it.
func (s *Server) Listen(l net.Listener, advertise []string) error {
	id, err := identity.ServerID(s.cfg.TrustDomain)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	d := &door{server: s, addresses: advertise, listener: l}
	d.trust.Store(&identity.Trust{Bundles: map[identity.TrustDomain]*identity.Bundle{s.cfg.TrustDomain: s.authority.Bundle()}})
	d.keeper = renew.New(renew.Config{
		ID: id, Issuer: ownIssuer{s}, Trust: d.trust.Load, Clock: s.cfg.Clock, Logger: s.cfg.Logger,
	})
	d.fleet = fleet.NewServer(fleet.ServerConfig{Fleet: s.fleet, Trust: d.trust.Load})
	front := mtls.NewListener(newHeld(l, d.keeper.Ready()), mtls.Control(d.keeper, s.authority.Root(), s.cfg.Clock), mtls.ListenerConfig{Clock: s.cfg.Clock, Conns: &d.conns, MaxOpen: maxOpen})
	parts := mtls.Split(front, []string{mtls.Fleet}, []string{mtls.Join}, []string{mtls.HTTP1})
	d.agents, d.joins, d.admins = parts[0], parts[1], parts[2]
	s.door = d
	return nil
}

// A held listener leaves connections in the kernel until the server has a
// certificate to show: an agent that joins right then waits, and is not refused.
type held struct {
	net.Listener
	ready  <-chan struct{}
	closed chan struct{}
	close  func() error
}

func newHeld(l net.Listener, ready <-chan struct{}) *held {
	h := &held{Listener: l, ready: ready, closed: make(chan struct{})}
	h.close = sync.OnceValue(func() error {
		close(h.closed)
		return l.Close()
	})
	return h
}

// Accept implements net.Listener.
func (h *held) Accept() (net.Conn, error) {
	select {
	case <-h.ready:
		return h.Listener.Accept()
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *held) Close() error { return h.close() }

// maxOpen is how many connections of one peer are open at once: an agent has one,
// and two for a moment; hosts that join come and go.
func maxOpen(peer identity.ID) int {
	if peer.IsZero() {
		return 256
	}
	return 32
}

// Address is where agents connect, as it was opened; nil without Listen.
func (s *Server) Address() net.Addr {
	if s.door == nil {
		return nil
	}
	return s.door.listener.Addr()
}

// Admins is where administrators of other machines come in; nil without Listen.
func (s *Server) Admins() net.Listener {
	if s.door == nil {
		return nil
	}
	return s.door.admins
}

// Admin is who holds the other end of a connection of Admins.
func (s *Server) Admin(c net.Conn) (id identity.ID, ok bool) {
	peer, _ := mtls.ConnFacts(c)
	_, ok = peer.ID.AdminName()
	return peer.ID, ok
}

// Role is what an administrator may do now, empty for nobody.
func (s *Server) Role(id identity.ID) string {
	snap := s.fleet.Snapshot()
	if snap == nil || s.door == nil || s.door.trust.Load().Admit(id) != nil {
		return ""
	}
	for _, a := range snap.Admins {
		if a.ID == id {
			return a.Role
		}
	}
	return ""
}

// Serve serves agents until ctx ends. Without Listen it waits for that.
func (s *Server) Serve(ctx context.Context) error {
	d := s.door
	if d == nil {
		<-ctx.Done()
		return nil
	}
	go func() { _ = d.keeper.Run(ctx) }() // ends with ctx
	stop := context.AfterFunc(ctx, d.fleet.Stop)
	defer stop()
	err := d.fleet.Serve(d.agents, d.joins)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// publish makes the hosts of snap those whose agents may connect, and cuts off the
// others.
func (d *door) publish(snap *snapshot.Snapshot) {
	old := d.trust.Load()
	next := &identity.Trust{Epoch: old.Epoch + 1, Bundles: old.Bundles, Members: map[identity.ID]bool{}, Banned: old.Banned}
	for _, h := range snap.Hosts {
		next.Members[h.ID] = true
	}
	for _, a := range snap.Admins {
		next.Members[a.ID] = true
	}
	d.trust.Store(next)
	d.conns.CloseRefused(next)
}

// ban keeps the banned out, and cuts them off.
func (d *door) ban(banned []identity.ID) {
	next := *d.trust.Load()
	next.Epoch++
	next.Banned = make(map[identity.ID]bool, len(banned))
	for _, id := range banned {
		next.Banned[id] = true
	}
	d.trust.Store(&next)
	d.conns.CloseRefused(&next)
}

// ownIssuer signs the server's own certificate: no agent can ask for its ID, which
// no revision names.
type ownIssuer struct{ s *Server }

// Issue implements renew.Issuer.
func (o ownIssuer) Issue(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	return o.s.registrar.IssueServer(ctx, id, csr)
}

// A JoinToken is a right to join and the word that carries it.
type JoinToken struct {
	enrol.Join
	Token link.Token
}

// NewJoin makes a join token for host, good for ttl.
func (s *Server) NewJoin(ctx context.Context, host string, ttl time.Duration, actor *audit.Actor) (*JoinToken, error) {
	if s.door == nil || len(s.door.addresses) == 0 {
		return nil, fault.New(fault.NotFound, "start it with an address: parley server --listen :7443 --advertise HOST:7443",
			"this server listens for no other host")
	}
	t := link.Token{
		Addresses: s.door.addresses, TrustDomain: s.cfg.TrustDomain, Pin: mtls.PinOf(s.authority.Root()),
		Expires: s.cfg.Clock.Now().Add(ttl),
	}
	// Before there is a right to join: nobody could use it.
	if err := t.Check(); err != nil {
		return nil, err
	}
	j, err := s.registrar.NewJoin(ctx, host, ttl, actor)
	if err != nil {
		return nil, err
	}
	t.Host, t.ID, t.Secret, t.Expires = j.Host, j.ID, j.Secret, j.Expires
	return &JoinToken{Join: j, Token: t}, nil
}

func listenFault(err error, addr string) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	_, port, _ := net.SplitHostPort(addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fault.New(fault.PortOccupied, fmt.Sprintf("see who has it: ss -ltnp 'sport = :%s', or choose another: --listen :PORT", port),
			"another process listens on %s, where agents are to connect", addr)
	}
	return fault.Wrap(err, fault.PortForbidden, "choose an address of this host: ip -brief address", "agents cannot connect to %s", addr)
}
