// Package workload is the SPIFFE Workload API on a Unix socket: it gives a local
// process the X509-SVIDs, JWT-SVIDs and bundles of the services that it is. Who
// a process is comes from attestation, once a connection, from what the kernel
// says of the socket's other end; the five calls of the X.509 and JWT profiles
// are served as SPIFFE_Workload_API.md has them, any other is Unimplemented.
//
// It refuses to believe a caller's word, to serve on anything but a Unix socket,
// to tell a process about an identity that is not its own, and to make
// credentials: those come from the Backend.
package workload

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// Limits of one server. What goes beyond waits (streams) or is refused.
const (
	maxStreams        = 100      // calls under way on one connection
	maxProcessConns   = 32       // connections of one process
	maxRequest        = 64 << 10 // bytes of a request message
	maxHeaders        = 16 << 10 // bytes of a call's metadata
	maxAudiences      = 8        // audiences of one JWT-SVID, as enrol has it
	maxAudience       = 512      // bytes of one audience, as enrol has it
	handshakeDeadline = 5 * time.Second
)

// A Subject is an attested process.
type Subject interface {
	// Gone is closed when the process has ended.
	Gone() <-chan struct{}
	// Close releases it.
	Close()
}

// An Identity is one that a process is entitled to.
type Identity struct {
	// Source has the credential and the trust that goes with it.
	Source identity.Source
	ID     identity.ID
	// Hint tells identities of one process apart: the service's name, unique
	// among them, at most 1024 bytes. It is sent only where there are several.
	Hint string
}

// A Backend knows processes, identities and tokens. It is safe for concurrent use.
type Backend interface {
	// Attest says which process connected. The process facts are used even
	// beside an error, where there are any.
	Attest(*net.UnixConn) (Subject, call.Process, error)
	// Identities are those of the process now, the one to use by default first.
	Identities(Subject) []Identity
	// Changed is closed at the next change of any process's identities, of a
	// credential or of trust. It is taken before the state is read.
	Changed() <-chan struct{}
	// Record records what was served and refused.
	Record(*audit.Event)
	Tokens
}

// Tokens makes and judges JWT-SVIDs for a Backend.
type Tokens interface {
	// MintJWT signs a JWT-SVID for id.
	MintJWT(ctx context.Context, id identity.ID, audience []string) (string, error)
	// ValidateJWT is the ID and the claims of a token for audience.
	ValidateJWT(ctx context.Context, token, audience string) (identity.ID, map[string]any, error)
	// MarshalBundle is a bundle's JWT keys as a JWK set (JWT-SVID.md section 6.1).
	MarshalBundle(*identity.Bundle) ([]byte, error)
}

// Config is what a Server needs; every field is required.
type Config struct {
	Backend Backend
	// MaxConnections is how many there may be at once, each with a descriptor that
	// pins its process beside its own. One user has at most a quarter of them, and
	// one process at most 32.
	MaxConnections int
	Host           string // for events
	Clock          clock.Clock
	Logger         *slog.Logger
}

// A Server serves the Workload API.
type Server struct {
	workloadpb.UnimplementedSpiffeWorkloadAPIServer // WIT profile: Unimplemented
	cfg                                             Config
	conns                                           *conns
	refusals                                        refusals
	grpc                                            *grpc.Server
}

// NewServer is a server that does not listen yet.
func NewServer(cfg Config) *Server {
	s := &Server{cfg: cfg, conns: newConns(cfg.MaxConnections)}
	s.grpc = grpc.NewServer(
		grpc.Creds(attested{s}),
		grpc.UnaryInterceptor(unary),
		grpc.StreamInterceptor(stream),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeDeadline),
		grpc.WaitForHandlers(true),
	)
	workloadpb.RegisterSpiffeWorkloadAPIServer(s.grpc, s)
	return s
}

// Serve answers on l, whose connections are *net.UnixConn, until Stop or until
// l fails. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Stop ends every connection and call and waits for them.
func (s *Server) Stop() { s.grpc.Stop() }
