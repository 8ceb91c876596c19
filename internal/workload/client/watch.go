package client

import (
	"context"
	"math/rand/v2"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// watch follows the stream, and begins another when it ends, until ctx ends or
// the server says that the request itself is wrong.
func (c *Client) watch(ctx context.Context) {
	wait := firstWait
	for ctx.Err() == nil {
		err := c.follow(ctx, func() { wait = firstWait })
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		if code := status.Code(err); code == codes.InvalidArgument || code == codes.Unimplemented {
			c.cfg.Logger.Error("the Workload API refuses this client", "socket", c.cfg.Socket, "error", err)
			return
		}
		c.cfg.Logger.Warn("no answer from the Workload API, trying again", "socket", c.cfg.Socket, "error", err, "wait", wait)
		// Jitter, so that the processes of a host do not come back together.
		if c.cfg.Clock.Sleep(ctx, wait/2+rand.N(wait/2+1)) != nil {
			return
		}
		wait = min(2*wait, longestWait)
	}
}

// follow takes messages from one stream; good is called after each usable one.
// An unusable message ends the stream and changes nothing.
func (c *Client) follow(ctx context.Context, good func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.api.FetchX509SVID(outgoing(ctx), &workloadpb.X509SVIDRequest{})
	if err != nil {
		return err
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			return err
		}
		next, err := parse(msg, c.state.Load())
		if err != nil {
			return err
		}
		before := c.state.Swap(next)
		if before == nil {
			close(c.first)
		}
		good()
		c.cfg.Logger.Debug("credential from the Workload API", "id", next.credential.ID.String(),
			"serial", next.credential.Serial(), "not_after", next.credential.NotAfter().UTC().Format(time.RFC3339))
	}
}
