package control

import (
	"context"
	"net"
	"os/user"
	"strconv"
	"syscall"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/identity"
)

// A peer is who holds the other end of a Unix socket, by the kernel's word at
// the time of connect (SO_PEERCRED, unix(7)), or of a TLS connection, by its
// certificate.
type peer struct {
	uid, pid int
	// name is the user's, empty where the uid has none.
	name string
	// id is the administrator's, zero for a Unix socket.
	id identity.ID
}

type peerKey struct{}

func withPeer(ctx context.Context, p peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// peerFrom is the connection's peer; false where it is unknown.
func peerFrom(ctx context.Context) (peer, bool) {
	p, ok := ctx.Value(peerKey{}).(peer)
	return p, ok
}

// connContext puts the peer into a connection's context. What is neither a Unix
// socket nor an administrator's TLS connection, or does not say, stays without.
func (s *Server) connContext(ctx context.Context, conn net.Conn) context.Context {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		if id, ok := s.cfg.Admins.Admin(conn); ok {
			ctx = withPeer(ctx, peer{uid: -1, id: id})
		}
		return ctx
	}
	raw, err := unix.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil || credErr != nil {
		return ctx
	}
	p := peer{uid: int(cred.Uid), pid: int(cred.Pid)}
	if u, err := user.LookupId(strconv.Itoa(p.uid)); err == nil {
		p.name = u.Username
	}
	return withPeer(ctx, p)
}

// String is the peer as a revision names its actor.
func (p peer) String() string {
	if !p.id.IsZero() {
		name, _ := p.id.AdminName()
		return name
	}
	if p.name != "" {
		return p.name
	}
	return "uid " + strconv.Itoa(p.uid)
}

func (p peer) actor() *audit.Actor {
	if !p.id.IsZero() {
		return &audit.Actor{User: p.String(), ID: p.id}
	}
	return &audit.Actor{UID: &p.uid, User: p.name, PID: p.pid}
}
