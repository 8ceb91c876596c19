package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// helloTime is how long a server gets to say its name and version, maxSkew how far
// its clock may be from ours before that is said, and minRenew the shortest
// life of a connection, whatever its certificates say.
const (
	helloTime = 10 * time.Second
	maxSkew   = time.Minute
	minRenew  = time.Second
)

// errSilent says that a server took the connection and said nothing.
var errSilent = fmt.Errorf("%w: it took the connection and did not say who it is", ErrUnreachable)

// A stream is one on which both sides have said who they are.
type stream struct {
	grpc.ClientStream
	stop context.CancelFunc
	// capabilities are the server's.
	capabilities []string
	// renew is when another connection has to take its place: before one of the
	// certificates that it was opened with ends.
	renew time.Time
}

// open opens a stream over conn and greets. It ends with ctx, or with its stop.
func (c *Client) open(ctx context.Context, conn *grpc.ClientConn, how ...grpc.CallOption) (*stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	s, capabilities, err := c.greet(ctx, cancel, conn, how...)
	if err != nil {
		if errors.Is(context.Cause(ctx), errSilent) {
			err = errSilent
		}
		cancel(nil)
		return nil, fromStatus(err)
	}
	now := c.cfg.Clock.Now()
	c.mu.Lock()
	left := c.ends.Sub(now)
	c.mu.Unlock()
	// Somewhere in the third quarter of what is left: a fleet that connected at one
	// moment does not come again at one moment.
	renew := now.Add(max(left/2+rand.N(max(left/4, 1)), minRenew))
	return &stream{ClientStream: s, stop: func() { cancel(nil) }, capabilities: capabilities, renew: renew}, nil
}

func (c *Client) greet(ctx context.Context, cancel context.CancelCauseFunc, conn *grpc.ClientConn, how ...grpc.CallOption) (s grpc.ClientStream, capabilities []string, err error) {
	s, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, methodConnect, how...)
	if err != nil {
		return nil, nil, err
	}
	greeted, done := context.WithCancel(ctx)
	defer done()
	go func() { // ends with greet
		if c.cfg.Clock.Sleep(greeted, helloTime) == nil {
			cancel(errSilent)
		}
	}()
	hello := &Hello{
		Protocol: Protocol, Version: c.cfg.Version, Capabilities: c.capabilities(), Host: c.cfg.Host,
		Advertise: c.cfg.Advertise, Now: c.cfg.Clock.Now().UTC(),
	}
	if err := s.SendMsg(&AgentMessage{Hello: hello}); err != nil {
		return nil, nil, firstError(s, err)
	}
	var m ServerMessage
	if err := s.RecvMsg(&m); err != nil {
		return nil, nil, err
	}
	w := m.Welcome
	switch {
	case w == nil || m.kinds() != 1:
		return nil, nil, fmt.Errorf("%w: the server did not begin with its name and version", ErrMessage)
	case w.Protocol != Protocol:
		return nil, nil, fmt.Errorf("%w: the server speaks protocol %d, and this agent %d", ErrMessage, w.Protocol, Protocol)
	}
	c.cfg.Logger.Info("connected to the server", "version", w.Version)
	if skew := w.Now.Sub(c.cfg.Clock.Now()).Round(time.Second); skew.Abs() > maxSkew {
		c.cfg.Logger.Warn("the server's clock is another one: certificates may begin or end at the wrong time", "ahead_by", skew)
	}
	return s, w.Capabilities, nil
}

// firstError is why a stream ended: SendMsg says only that it did.
func firstError(s grpc.ClientStream, err error) error {
	if got := s.RecvMsg(new(ServerMessage)); got != nil {
		return got
	}
	return err
}

// follow runs s to its end. When its time is over it is succeeded by a stream over
// another connection, which is open before s ends: a server that loses a host for a
// moment takes its services out of service. The old connection gets time for the
// calls that are under way; retired waits for its end.
func (c *Client) follow(ctx context.Context, s *stream, retired *sync.WaitGroup) (next *stream, err error) {
	c.begin()
	var parts sync.WaitGroup
	own, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		s.stop()
		parts.Wait()
	}()
	ended, due := make(chan error, 1), make(chan struct{})
	parts.Go(func() { ended <- c.receive(own, s) })
	parts.Go(func() { _ = c.send(own, s) }) // that it failed, receive says too
	parts.Go(func() {
		for wait := s.renew.Sub(c.cfg.Clock.Now()); c.cfg.Clock.Sleep(own, wait) == nil; wait = maxWait / 2 {
			select {
			case due <- struct{}{}:
			case <-own.Done():
			}
		}
	})
	for {
		select {
		case err := <-ended:
			return nil, fromStatus(err)
		case <-due:
			if next, err := c.succeed(ctx, retired); err == nil {
				return next, nil
			} else if ctx.Err() == nil {
				c.cfg.Logger.Warn("the connection to the server is not renewed yet", "error", err)
			}
		}
	}
}

// succeed opens a stream over another connection, which is used from then on.
func (c *Client) succeed(ctx context.Context, retired *sync.WaitGroup) (*stream, error) {
	conn, err := c.newConn()
	if err != nil {
		return nil, err
	}
	s, err := c.open(ctx, conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c.mu.Lock()
	old := c.conn
	c.conn = conn
	c.mu.Unlock()
	retired.Go(func() {
		_ = c.cfg.Clock.Sleep(ctx, callTimeout) // or until there is nothing to wait for
		_ = old.Close()
	})
	return s, nil
}

// begin makes ready for a stream. The numbers of updates that were sent on another
// one say nothing on this: it may be of another server, or of one that started
// anew.
func (c *Client) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connected, c.failure = true, nil
	c.wire, c.refused, c.settled, c.relevel = 0, nil, 0, 0
	if c.report != nil {
		r := *c.report
		r.Generation = 0
		c.report = &r
	}
}
