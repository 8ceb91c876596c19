package fleet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
)

// Limits of a Server.
const (
	maxJoin     = 64 << 10 // bytes of a join
	maxHeaders  = 16 << 10 // bytes of a call's metadata
	maxStreams  = 64       // calls under way on one connection
	joinTime    = 15 * time.Second
	maxJoins    = 64 // under way at once
	pingEvery   = 15 * time.Second
	pingTimeout = 10 * time.Second
	minPing     = 5 * time.Second // an agent that pings more often is cut off
	maxEntries  = 1024            // of one delivery
)

// ServerConfig is what a Server works with. Every field is required.
type ServerConfig struct {
	Fleet *Fleet
	// Trust is the one in which agents are.
	Trust func() *identity.Trust
}

// A Server serves agents, and hosts that join, over connections whose handshake is
// complete.
type Server struct {
	cfg   ServerConfig
	fleet *grpc.Server
	join  *grpc.Server
	joins atomic.Int64
}

// NewServer is a server that serves nobody yet.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg}
	common := []grpc.ServerOption{
		grpc.Creds(shaken{}), grpc.ForceServerCodec(link.Codec{}), grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(mtls.HandshakeTimeout), grpc.WaitForHandlers(true),
	}
	s.fleet = grpc.NewServer(append(common,
		grpc.MaxRecvMsgSize(link.MaxMessage), grpc.MaxSendMsgSize(link.MaxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
	)...)
	s.join = grpc.NewServer(append(common,
		grpc.MaxRecvMsgSize(maxJoin),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: joinTime, MaxConnectionAgeGrace: joinTime, MaxConnectionIdle: joinTime}),
	)...)
	s.fleet.RegisterService(&grpc.ServiceDesc{
		ServiceName: link.FleetService, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			{MethodName: "Issue", Handler: unary(s, s.issue)},
			{MethodName: "IssueJWT", Handler: unary(s, s.issueJWT)},
			{MethodName: "Cursor", Handler: unary(s, s.cursor)},
			{MethodName: "Collect", Handler: unary(s, s.collect)},
			{MethodName: "IssueProbe", Handler: unary(s, s.issueProbe)},
			{MethodName: "Assessed", Handler: unary(s, s.assessed)},
			{MethodName: "Witness", Handler: unary(s, s.witness)},
			{MethodName: "Growth", Handler: unary(s, s.growth)},
		},
		Streams: []grpc.StreamDesc{{StreamName: "Connect", Handler: s.connect, ServerStreams: true, ClientStreams: true}},
	}, nil)
	s.join.RegisterService(&grpc.ServiceDesc{
		ServiceName: link.JoinService, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Join", Handler: unary(s, s.joinHost)}},
	}, nil)
	return s
}

// Serve serves agents on l and hosts that join on joins until Stop, or until one
// of them fails.
func (s *Server) Serve(l, joins net.Listener) error {
	errs := make(chan error, 2)
	go func() { errs <- s.join.Serve(joins) }() // ends with Stop
	go func() { errs <- s.fleet.Serve(l) }()
	err := <-errs
	s.Stop()
	return errors.Join(err, <-errs)
}

// Stop ends every connection and call.
func (s *Server) Stop() {
	s.join.Stop()
	s.fleet.Stop()
}

// unary makes a handler of gRPC out of a function. What only the server may know of
// an error it logs.
func unary[In, Out any](s *Server, f func(context.Context, *In) (*Out, error)) grpc.MethodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(In)
		if err := decode(in); err != nil {
			return nil, status.Error(codes.InvalidArgument, link.ErrMessage.Error())
		}
		out, err := f(ctx, in)
		if err == nil {
			return out, nil
		}
		told := link.Status(err)
		if status.Code(told) == codes.Internal && ctx.Err() == nil {
			s.cfg.Fleet.cfg.Logger.Error("an agent's call failed", "error", err)
		}
		return nil, told
	}
}

// agent is the host that calls: by the certificate of its connection, and as long
// as it has part in the mesh.
func (s *Server) agent(ctx context.Context) (host string, who shakenInfo, err error) {
	p, _ := peer.FromContext(ctx)
	who, ok := p.AuthInfo.(shakenInfo)
	if !ok {
		return "", who, status.Error(codes.Unauthenticated, "no certificate")
	}
	if s.cfg.Fleet.cfg.Clock.Now().After(who.peer.NotAfter) {
		return "", who, errCertificate
	}
	host, ok = who.peer.ID.AgentHost()
	if !ok || s.cfg.Trust().Admit(who.peer.ID) != nil {
		return "", who, link.Status(fault.New(fault.HostUnknown, "see hosts in the mesh file, and parley status", "this host has no part in the mesh"))
	}
	return host, who, nil
}

func (s *Server) connect(_ any, stream grpc.ServerStream) error {
	host, who, err := s.agent(stream.Context())
	if err != nil {
		return err
	}
	err = s.cfg.Fleet.serve(stream.Context(), host, who, stream)
	if errors.Is(err, link.ErrMessage) {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return err
}

func (s *Server) issue(ctx context.Context, r *link.IssueRequest) (*link.IssueReply, error) {
	host, _, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	chain, err := s.cfg.Fleet.cfg.Registrar.Issue(ctx, host, r.ID, r.CSR)
	if err != nil {
		return nil, err
	}
	return &link.IssueReply{Chain: link.RawChain(chain)}, nil
}

func (s *Server) issueJWT(ctx context.Context, r *link.IssueRequest) (*link.IssueReply, error) {
	host, _, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	token, expires, err := s.cfg.Fleet.cfg.Registrar.IssueJWT(ctx, host, r.ID, r.Audience)
	if err != nil {
		return nil, err
	}
	return &link.IssueReply{Token: token, Expires: expires}, nil
}

// ownLog refuses the log of another host: its name begins with the host's.
func ownLog(host, log string) error {
	rest, ok := strings.CutPrefix(log, host+"-")
	if !ok || len(rest) != 8 {
		return fault.New(fault.NotPermitted, "", "%q is no log of host %s", clip(log), host)
	}
	return nil
}

func (s *Server) cursor(ctx context.Context, r *link.CollectRequest) (*link.CollectReply, error) {
	host, _, err := s.agent(ctx)
	if err == nil {
		err = ownLog(host, r.Log)
	}
	if err != nil {
		return nil, err
	}
	next, err := s.cfg.Fleet.cfg.Sink.Cursor(ctx, r.Log)
	return &link.CollectReply{Next: next}, err
}

func (s *Server) collect(ctx context.Context, r *link.CollectRequest) (*link.CollectReply, error) {
	host, _, err := s.agent(ctx)
	if err == nil {
		err = ownLog(host, r.Log)
	}
	if err == nil && len(r.Entries) > maxEntries {
		err = fault.New(fault.BadRequest, "", "%d events are too many for one delivery", len(r.Entries))
	}
	if err != nil {
		return nil, err
	}
	for _, n := range r.Entries {
		// What a host says of another one, or in the server's name, is not believed.
		if e, err := audit.Decode(n.Body); err != nil || e.Host != host || e.Reporter != "agent" {
			return nil, fault.New(fault.NotPermitted, "", "an event of host %s's log is not its own", host)
		}
	}
	return &link.CollectReply{}, s.cfg.Fleet.cfg.Sink.Collect(ctx, r.Log, r.Entries)
}

// witness takes what an agent says of its own log.
func (s *Server) witness(ctx context.Context, r *link.WitnessRequest) (*link.WitnessReply, error) {
	host, _, err := s.agent(ctx)
	if err == nil {
		err = ownLog(host, r.Log)
	}
	if err != nil {
		return nil, err
	}
	receipt, err := s.cfg.Fleet.cfg.Sink.Witness(ctx, r.Log, collect.Statement{Host: host, Key: r.Key, Note: r.Note})
	if errors.Is(err, collect.ErrFork) || errors.Is(err, collect.ErrKey) {
		err = fault.Wrap(err, fault.LogForked, "parley audit verify, and parley explain "+string(fault.LogForked),
			"what was collected of the log %s is not what its host signed", r.Log)
	}
	return &link.WitnessReply{Receipt: receipt}, err
}

// growth shows an agent the server's log.
func (s *Server) growth(ctx context.Context, r *link.GrowthRequest) (*link.GrowthReply, error) {
	if _, _, err := s.agent(ctx); err != nil {
		return nil, err
	}
	g, err := s.cfg.Fleet.cfg.Sink.Growth(ctx, r.Have)
	if err != nil {
		return nil, err
	}
	return link.NewGrowthReply(g), nil
}

func (s *Server) joinHost(ctx context.Context, r *link.JoinRequest) (*link.JoinReply, error) {
	if s.joins.Add(1) > maxJoins {
		s.joins.Add(-1)
		return nil, status.Error(codes.ResourceExhausted, "too many hosts join at once: try again")
	}
	defer s.joins.Add(-1)
	if r.Protocol != link.Protocol {
		return nil, fault.New(fault.JoinToken, "use the parley of the server's version", "the host speaks protocol %d, and this server %d", r.Protocol, link.Protocol)
	}
	p, _ := peer.FromContext(ctx)
	who, _ := p.AuthInfo.(shakenInfo)
	host, chain, err := s.cfg.Fleet.cfg.Registrar.JoinHost(ctx, r.ID, r.Secret, r.CSR, who.remote)
	if err != nil {
		if errors.Is(err, enrol.ErrJoin) {
			// Which of them it was is for the record.
			err = fault.New(fault.JoinToken, "make another where the server runs: parley join-token HOST", "the join token is unknown, expired or used")
		}
		return nil, err
	}
	bundle, err := link.NewBundle(s.cfg.Fleet.cfg.Registrar.Bundle())
	if err != nil {
		return nil, err
	}
	return &link.JoinReply{Host: host, Chain: link.RawChain(chain), Bundle: bundle}, nil
}

// shaken are transport credentials of connections whose handshake is over.
type shaken struct{}

// shakenInfo is who is at the other end.
type shakenInfo struct {
	credentials.CommonAuthInfo
	peer   call.Peer
	remote string
	conn   net.Conn
}

// AuthType implements credentials.AuthInfo.
func (shakenInfo) AuthType() string { return "parley-mtls" }

// ServerHandshake implements credentials.TransportCredentials.
func (shaken) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info := shakenInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, conn: conn}
	info.peer, _ = mtls.ConnFacts(conn)
	if ap, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		info.remote = ap.Addr().Unmap().String()
	}
	return conn, info, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (shaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("fleet: server only")
}

// Info implements credentials.TransportCredentials.
func (shaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "parley-mtls"}
}

// Clone implements credentials.TransportCredentials.
func (c shaken) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (shaken) OverrideServerName(string) error { return nil }
