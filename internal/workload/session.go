package workload

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
)

const (
	authType = "attested"
	// securityHeader keeps a process from being talked into a call: a request
	// that somebody else made it send does not have it
	// (SPIFFE_Workload_Endpoint.md section 6).
	securityHeader = "workload.spiffe.io"
)

// What callers are told; the event tells the operator more.
var (
	errNoIdentity = status.Error(codes.PermissionDenied, "this process has no identity in the mesh")
	errHeader     = status.Error(codes.InvalidArgument, "the request needs the metadata "+securityHeader+": true")
)

// A session is one connection's process.
type session struct {
	s       *Server
	subject Subject // nil where it could not be attested
	proc    call.Process
	gone    <-chan struct{} // closed when the connection ends

	mu      sync.Mutex             // guards what follows
	refused map[string]bool        // reasons that were recorded
	served  map[identity.ID]string // serials that were recorded
}

// AuthType implements credentials.AuthInfo.
func (*session) AuthType() string { return authType }

// current is the session of a call.
func current(ctx context.Context) (*session, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errNoIdentity
	}
	s, ok := p.AuthInfo.(*session)
	if !ok {
		return nil, errNoIdentity
	}
	return s, nil
}

// checkHeader wants the security header exactly once.
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if !slices.Equal(md.Get(securityHeader), []string{"true"}) {
		return errHeader
	}
	return nil
}

func unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func stream(srv any, st grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := checkHeader(st.Context()); err != nil {
		return err
	}
	return next(srv, st)
}

// identities are the process's own now. None is PermissionDenied, and recorded.
func (c *session) identities() ([]Identity, error) {
	if c.subject == nil {
		return nil, errNoIdentity
	}
	ids := c.s.cfg.Backend.Identities(c.subject)
	if len(ids) == 0 {
		c.refuse("no_identity", "no service of this host has selectors that the process matches")
		return nil, errNoIdentity
	}
	return ids, nil
}

// follow calls send with the state at once and again after each change, until
// the call or the process ends or the process has no identity.
func (c *session) follow(ctx context.Context, send func([]Identity) error) error {
	for {
		changed := c.s.cfg.Backend.Changed()
		ids, err := c.identities()
		if err != nil {
			return err
		}
		if err := send(ids); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-c.gone:
			return status.Error(codes.Canceled, "the process has ended")
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// refuse records a refusal, once a connection and reason, and once a period for
// one program: clients try again.
func (c *session) refuse(reason, message string) {
	c.mu.Lock()
	again := c.refused[reason]
	if c.refused == nil {
		c.refused = map[string]bool{}
	}
	c.refused[reason] = true
	c.mu.Unlock()
	if again {
		return
	}
	more, due := c.s.refusals.count(c.proc, reason, c.s.cfg.Clock.Now())
	if !due {
		return
	}
	e := c.event(audit.WorkloadRefused, audit.Denied)
	e.Reason, e.Message = reason, message
	if more > 0 {
		e.Message = fmt.Sprintf("%s; %d more refusals of this program since the last record", message, more)
	}
	c.s.cfg.Backend.Record(e)
}

// note records that an X509-SVID was handed out, once a connection and identity.
func (c *session) note(cred *identity.Credential) {
	c.mu.Lock()
	_, again := c.served[cred.ID]
	if c.served == nil {
		c.served = map[identity.ID]string{}
	}
	c.served[cred.ID] = cred.Serial()
	c.mu.Unlock()
	if again {
		return
	}
	e := c.event(audit.WorkloadServed, audit.Success)
	e.Caller.ID, e.Caller.Service = cred.ID, cred.ID.Name()
	e.Object = &audit.Object{Kind: "certificate", Name: cred.ID.String(), Serial: cred.Serial(), NotAfter: cred.NotAfter()}
	c.s.cfg.Backend.Record(e)
}

func (c *session) event(action audit.Action, outcome audit.Outcome) *audit.Event {
	now := c.s.cfg.Clock.Now()
	e := &audit.Event{
		ID: audit.NewID(now), Time: now, Class: audit.Security, Action: action, Outcome: outcome,
		Host: c.s.cfg.Host, Reporter: "agent", Caller: &audit.Party{},
	}
	if c.proc != (call.Process{}) {
		uid := c.proc.UID
		e.Caller.PID, e.Caller.UID, e.Caller.Exe = c.proc.PID, &uid, c.proc.Exe
	}
	return e
}
