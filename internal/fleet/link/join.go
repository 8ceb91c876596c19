package link

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
)

// Joined is what a host gets by joining.
type Joined struct {
	Credential *identity.Credential
	Bundle     *identity.Bundle
}

// JoinServer uses the token t for key, which the caller has kept already: should
// the answer be lost, the same key may ask again. The addresses are tried in order.
func JoinServer(ctx context.Context, t Token, key crypto.Signer, version string, clk clock.Clock) (*Joined, error) {
	if now := clk.Now(); !now.Before(t.Expires) {
		return nil, fault.New(fault.JoinToken, "make another: parley join-token "+t.Host,
			"the join token for %s expired at %s, and this machine's clock says %s", t.Host, t.Expires.Format("2006-01-02T15:04:05Z"), now.UTC().Format("2006-01-02T15:04:05Z"))
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	var unreachable error
	for _, addr := range t.Addresses {
		j, err := joinAt(ctx, addr, t, key, csr, version, clk)
		if err == nil || !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return j, err
		}
		unreachable = errors.Join(unreachable, fmt.Errorf("%s: %w", addr, err))
	}
	return nil, fault.Wrap(unreachable, fault.Unreachable, "is parley server running there, and does the firewall let this host through? Then start again with the same token", "no server of the join token answers")
}

func joinAt(ctx context.Context, addr string, t Token, key crypto.Signer, csr []byte, version string, clk clock.Clock) (*Joined, error) {
	server, err := identity.ServerID(t.TrustDomain)
	if err != nil {
		return nil, err
	}
	// gRPC may still dial, or dial again, when the call is over.
	var mu sync.Mutex // guards root and refused
	var root *x509.Certificate
	var refused error
	config := mtls.Joining(t.Pin, server, clk, func(r *x509.Certificate) {
		mu.Lock()
		defer mu.Unlock()
		root = r
	})
	conn, err := newConn(func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := dialTLS(ctx, addr, config)
		if mtls.IsRefusal(err) {
			mu.Lock()
			defer mu.Unlock()
			refused = err
		}
		return conn, err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*mtls.DialTimeout)
	defer cancel()
	var reply JoinReply
	err = fromStatus(conn.Invoke(ctx, methodJoin, &JoinRequest{Protocol: Protocol, Version: version, ID: t.ID, Secret: t.Secret, CSR: csr}, &reply))
	mu.Lock()
	defer mu.Unlock()
	if refused != nil {
		return nil, fault.Wrap(refused, fault.ServerUntrusted, "make a token on the server that this host is to join: parley join-token "+t.Host,
			"what answers at %s is not the server of the join token", addr)
	}
	if err != nil {
		return nil, err
	}
	return t.accept(&reply, root, key)
}

// accept holds the reply to the root that was pinned: a bundle is trusted for what
// it vouches for later.
func (t Token) accept(reply *JoinReply, root *x509.Certificate, key crypto.Signer) (*Joined, error) {
	chain, err := parseChain(reply.Chain)
	if err != nil {
		return nil, err
	}
	bundle, err := reply.Bundle.Bundle()
	if err != nil {
		return nil, err
	}
	credential, err := identity.NewCredential(chain, key)
	if err != nil {
		return nil, err
	}
	want, err := identity.AgentID(t.TrustDomain, t.Host)
	if err != nil {
		return nil, err
	}
	pinned := false
	for _, r := range bundle.Roots {
		pinned = pinned || r.Equal(root)
	}
	if credential.ID != want || bundle.TrustDomain != t.TrustDomain || reply.Host != t.Host || !pinned {
		return nil, fmt.Errorf("%w: the answer is for %s of %s", ErrMessage, credential.ID, bundle.TrustDomain)
	}
	return &Joined{Credential: credential, Bundle: bundle}, nil
}

func dialTLS(ctx context.Context, addr string, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, mtls.DialTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// newConn is a gRPC connection over what dial opens, which has proven who is at
// its other end: gRPC adds no protection of its own, and takes none away.
func newConn(dial func(context.Context, string) (net.Conn, error), more ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///parley", append([]grpc.DialOption{
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(Codec{}), grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	}, more...)...)
}
