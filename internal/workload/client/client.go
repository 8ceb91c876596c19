// Package client is the process's side of the SPIFFE Workload API: it keeps the
// X509-SVID and the bundles that the socket streams, and implements
// identity.Source with them. It is what the SDK stands on.
//
// It refuses to talk to anything but a Unix socket, to use an SVID that is not
// well formed, and to decide who may call whom: it knows no members, so its
// trust admits every identity that a bundle vouches for.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

const (
	// maxReply bounds a message of the server, in bytes.
	maxReply = 4 << 20
	// Waits between attempts double from first to longest, with jitter.
	firstWait   = 100 * time.Millisecond
	longestWait = 15 * time.Second
	// patience is how long Dial waits before it tells somebody.
	patience = time.Second
)

// Config is what a Client needs; every field but Waiting is required.
type Config struct {
	// Socket is where the API is, as SPIFFE_ENDPOINT_SOCKET has it:
	// unix:///run/parley/workload.sock.
	Socket string
	Clock  clock.Clock
	Logger *slog.Logger
	// Waiting is told once that there is still no identity after a second: why, and
	// what to do about it. Dial goes on.
	Waiting func(*fault.Fault)
}

// A Client holds this process's current credential and trust, and follows their
// changes until it is closed. It implements identity.Source.
type Client struct {
	cfg    Config
	conn   *grpc.ClientConn
	api    workloadpb.SpiffeWorkloadAPIClient
	state  atomic.Pointer[state]
	first  chan struct{} // closed once there is a state
	cancel context.CancelFunc
	wg     sync.WaitGroup // the one goroutine, which cancel ends

	mu      sync.Mutex // guards what follows
	err     error      // why the last attempt failed
	dialErr error      // the system's word on the socket, nil where it opened
}

// A state is one message of the server.
type state struct {
	credential *identity.Credential
	trust      *identity.Trust
}

// Dial connects and waits for the first SVID, trying again as long as ctx lasts:
// the agent may be starting, or the process not in the mesh file yet.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	path, err := ParseSocket(cfg.Socket)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, first: make(chan struct{})}
	if c.conn, err = c.connect(path); err != nil {
		return nil, fmt.Errorf("workload API %s: %w", cfg.Socket, err)
	}
	c.api = workloadpb.NewSpiffeWorkloadAPIClient(c.conn)
	var run context.Context
	run, c.cancel = context.WithCancel(context.Background())
	done, late := make(chan struct{}), make(chan struct{})
	c.wg.Go(func() {
		defer close(done)
		c.watch(run)
	})
	c.wg.Go(func() {
		if cfg.Clock.Sleep(run, patience) == nil {
			close(late)
		}
	})
	for err == nil {
		select {
		case <-c.first:
			return c, nil
		case <-late:
			if late = nil; cfg.Waiting != nil {
				cfg.Waiting(c.missing(nil))
			}
		case <-done: // the server will never answer this
			err = c.missing(nil)
		case <-ctx.Done():
			err = c.missing(ctx.Err())
		}
	}
	_ = c.Close()
	return nil, err
}

// missing says why there is no identity, and what to do. The end of the wait is
// ended, if it has.
func (c *Client) missing(ended error) *fault.Fault {
	c.mu.Lock()
	err, dialErr := c.err, c.dialErr
	c.mu.Unlock()
	hint := "see what runs: parley status"
	switch code := status.Code(err); {
	case dialErr != nil:
		err = dialErr
		hint = "is the agent running (parley dev), and is this its socket? set SPIFFE_ENDPOINT_SOCKET=unix:///path/to/workload.sock"
	case code == codes.PermissionDenied:
		exe, _ := os.Executable()
		hint = fmt.Sprintf("no service's runs_as matches process %d (user %d, exe %s): see parley audit search --action workload.refused", os.Getpid(), os.Geteuid(), exe)
	}
	if st, ok := status.FromError(err); ok && err != nil {
		err = fmt.Errorf("%s: %s", st.Code(), st.Message()) // without "rpc error" and the like
	}
	if ended != nil && err != nil {
		err = fmt.Errorf("%w (%w)", err, ended)
	} else if err == nil {
		err = ended
	}
	return fault.Wrap(err, fault.Unreachable, hint, "no identity from the Workload API at %s", c.cfg.Socket)
}

func (c *Client) connect(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel says who both ends are
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", path)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.dialErr = err
			var errno syscall.Errno
			if errors.As(err, &errno) {
				c.dialErr = errno
			}
			return conn, err
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstWait, Multiplier: 2, Jitter: 0.2, MaxDelay: longestWait},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		grpc.WithDisableServiceConfig(),
	)
}

// Close ends the connection; Credential and Trust keep their last values.
func (c *Client) Close() error {
	c.cancel()
	c.wg.Wait()
	if err := c.conn.Close(); err != nil && status.Code(err) != codes.Canceled {
		return err
	}
	return nil
}

// ID is the process's identity as the server last told it.
func (c *Client) ID() identity.ID { return c.state.Load().credential.ID }

// Credential implements identity.Source.
func (c *Client) Credential() (*identity.Credential, error) {
	st := c.state.Load()
	switch {
	case st == nil:
		return nil, identity.ErrNoCredential
	case c.cfg.Clock.Now().After(st.credential.NotAfter()):
		return nil, fmt.Errorf("%w: the last certificate has ended", identity.ErrNoCredential)
	}
	return st.credential, nil
}

// Trust implements identity.Source. It admits any member of the trust domains
// that the server gave bundles of.
func (c *Client) Trust() *identity.Trust {
	if st := c.state.Load(); st != nil {
		return st.trust
	}
	return nil
}

// FetchJWT gets a JWT-SVID of this process for the audience.
func (c *Client) FetchJWT(ctx context.Context, audience ...string) (string, error) {
	req := &workloadpb.JWTSVIDRequest{Audience: audience}
	if st := c.state.Load(); st != nil {
		req.SpiffeId = st.credential.ID.String()
	}
	resp, err := c.api.FetchJWTSVID(outgoing(ctx), req)
	if err != nil {
		return "", fmt.Errorf("fetch a JWT-SVID: %w", err)
	}
	if len(resp.Svids) == 0 {
		return "", errors.New("fetch a JWT-SVID: the answer has none")
	}
	return resp.Svids[0].Svid, nil
}

func outgoing(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}
