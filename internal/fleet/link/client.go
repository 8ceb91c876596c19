package link

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/mtls"
)

// The pace of a Client: a server that is gone is tried again after waits that
// double from the least to the most, each with jitter, so that a fleet does not
// come back at one moment; one that is silent is found out by pings.
const (
	minWait     = 200 * time.Millisecond
	maxWait     = 4 * time.Second
	pingEvery   = 10 * time.Second
	pingTimeout = 5 * time.Second
	callTimeout = 20 * time.Second
	spreadTime  = 2 * time.Second
)

// ClientConfig is what a Client works with. Every field but Advertise is required.
type ClientConfig struct {
	// Addresses are host:port of servers, all equal.
	Addresses []string
	// Host is the agent's.
	Host      string
	Advertise string
	// Source has the agent's credential and the trust in which the server is.
	Source  identity.Source
	Server  identity.ID
	Version string
	// Last is the update of an earlier run, nil where there is none: what is
	// followed until a server answers.
	Last *Update
	// Settle delivers the events that were recorded so far, within its own time.
	Settle func(context.Context)
	Clock  clock.Clock
	Logger *slog.Logger
}

// A Client is an agent's connection to its servers. It is safe for concurrent use.
type Client struct {
	cfg    ClientConfig
	dialer *mtls.Dialer
	levels *logging.Levels // nil where they are fixed

	mu        sync.Mutex       // guards what follows
	conn      *grpc.ClientConn // what streams and calls go over
	ends      time.Time        // of the certificates of the connection that was opened last
	next      int              // of Addresses
	update    *Update
	wire      uint64   // the server's own number of update, 0 for one of another connection
	refused   *refusal // of an update that is newer than that; nil where there is none
	report    *Report
	relevel   uint64 // the newest LogLevel that was done, on this stream
	settled   uint64 // the newest Settle that was done, on this stream
	orders    []assess.Order
	ordered   chan struct{} // closed at the next order
	changed   chan struct{} // closed at the next update
	reported  chan struct{} // closed at the next report
	connected bool
	failure   error // why there is no stream
}

// A refusal is why an update was not taken.
type refusal struct {
	generation uint64
	why        string
}

// NewClient is a client that does not connect before Run or a call.
func NewClient(cfg ClientConfig) (*Client, error) {
	c := &Client{cfg: cfg, levels: logging.Of(cfg.Logger), changed: make(chan struct{}), reported: make(chan struct{}), ordered: make(chan struct{}), failure: ErrUnreachable}
	if cfg.Last != nil {
		last := *cfg.Last
		last.Generation = 1
		c.update = &last
	}
	c.dialer = mtls.NewDialer(cfg.Source, cfg.Server, cfg.Clock, mtls.Fleet)
	var err error
	c.conn, err = c.newConn()
	return c, err
}

func (c *Client) newConn() (*grpc.ClientConn, error) {
	return newConn(
		func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx) },
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: minWait, Multiplier: 2, Jitter: 0.5, MaxDelay: maxWait},
			// gRPC gives one attempt this long: a silent address leaves time for the others.
			MinConnectTimeout: mtls.DialTimeout * time.Duration(max(1, len(c.cfg.Addresses))),
		}),
	)
}

// dial tries the addresses in turn, each time beginning behind the last that
// failed.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var errs []error
	for range c.cfg.Addresses {
		c.mu.Lock()
		addr := c.cfg.Addresses[c.next%len(c.cfg.Addresses)]
		c.mu.Unlock()
		conn, err := c.dialer.DialContext(ctx, "tcp", addr)
		c.mu.Lock()
		if err == nil {
			c.ends = mtls.Ends(conn)
			c.mu.Unlock()
			return conn, nil
		}
		c.next++
		c.mu.Unlock()
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		if ctx.Err() != nil {
			break // out of time: the next attempt begins with the next address
		}
	}
	err := errors.Join(errs...)
	c.fail(err)
	return nil, err
}

// Close ends the connection.
func (c *Client) Close() error { return c.current().Close() }

// current is the connection that streams and calls go over.
func (c *Client) current() *grpc.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// Run keeps a stream to a server until ctx ends. The connection below it has its
// own waits; those of the stream are for a server that takes connections and ends
// streams.
func (c *Client) Run(ctx context.Context) error {
	var retired sync.WaitGroup
	defer retired.Wait()
	var next *stream
	for wait, said := minWait, ""; ; {
		began, err := c.cfg.Clock.Now(), error(nil)
		s := next
		if s == nil {
			s, err = c.open(ctx, c.current(), grpc.WaitForReady(true))
		}
		if err == nil {
			next, err = c.follow(ctx, s, &retired)
		}
		switch {
		case ctx.Err() != nil:
			if next != nil {
				next.stop()
			}
			return nil
		case next != nil:
			continue
		}
		c.fail(err)
		if text := err.Error(); text != said { // once, however long it lasts
			c.cfg.Logger.Warn("no server: the last snapshot stays in force", "error", err)
			said = text
		}
		if c.cfg.Clock.Now().Sub(began) > maxWait {
			wait = minWait
		}
		if c.cfg.Clock.Sleep(ctx, wait/2+rand.N(wait)) != nil {
			return nil
		}
		wait = min(2*wait, maxWait)
	}
}

// fail notes why there is no stream. What the dialer said is more than what gRPC
// makes of it.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connected, c.failure = false, err
}

// State says whether a server is connected, and why not.
func (c *Client) State() (connected bool, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connected, c.failure
}

// receive takes updates until the stream ends.
func (c *Client) receive(ctx context.Context, s grpc.ClientStream) error {
	for {
		var m ServerMessage
		if err := s.RecvMsg(&m); err != nil {
			return err
		}
		switch {
		case m.Welcome != nil || m.kinds() != 1:
			return fmt.Errorf("%w: neither an update nor anything else that is known", ErrMessage)
		case m.Settle > 0:
			go c.settle(ctx, m.Settle) // within the time that settling takes
			continue
		case m.Assess != nil:
			c.order(m.Assess)
			continue
		case m.Withdraw != nil:
			c.withdraw(m.Withdraw)
			continue
		case m.LogLevel != nil:
			if err := c.setLevel(m.LogLevel); err != nil {
				return err
			}
			continue
		}
		u, err := m.Update.Update()
		if err == nil {
			err = c.concerns(u)
		}
		if err != nil {
			// Refused whole: the last one stays, and the server is told.
			c.cfg.Logger.Error("snapshot refused", "revision", m.Update.Revision, "error", err)
			c.refuse(m.Update.Generation, err)
			continue
		}
		c.take(u)
	}
}

// settle delivers what was recorded so far, and says so on the stream that ctx is of.
func (c *Client) settle(ctx context.Context, n uint64) {
	c.cfg.Settle(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	c.settled = max(c.settled, n)
	close(c.reported)
	c.reported = make(chan struct{})
}

// concerns refuses an update of another mesh or for another host: what would be
// run by it, and whom it would be trusted by, is not this agent's to take over.
func (c *Client) concerns(u *Update) error {
	if td := c.cfg.Server.TrustDomain(); u.Snapshot.TrustDomain != td {
		return fmt.Errorf("%w: it is of %s, and this agent of %s", ErrMessage, u.Snapshot.TrustDomain, td)
	}
	for _, h := range u.Snapshot.Hosts {
		if h.Name != c.cfg.Host {
			return fmt.Errorf("%w: it is for host %q, and this is %q", ErrMessage, h.Name, c.cfg.Host)
		}
	}
	return nil
}

// take makes u the newest update, under a number of our own: servers count anew
// when they start.
func (c *Client) take(u *Update) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wire, c.refused = u.Generation, nil
	next := *u
	next.Generation = 1
	if c.update != nil {
		next.Generation = c.update.Generation + 1
	}
	c.update = &next
	close(c.changed)
	c.changed = make(chan struct{})
}

// withdraw takes out of the newest update what w withdraws.
func (c *Client) withdraw(w *Withdrawal) {
	c.mu.Lock()
	last := c.update
	if last == nil { // nothing runs here, so nobody has to be kept out
		c.wire, c.refused = w.Generation, nil
		c.tell(&Report{})
	}
	c.mu.Unlock()
	if last == nil {
		return
	}
	u, err := w.From(last)
	if err != nil {
		c.cfg.Logger.Error("withdrawal refused", "error", err)
		c.refuse(w.Generation, err)
		return
	}
	c.cfg.Logger.Warn("this program is too old for the newest revision: the last one stays in force, without what was withdrawn since", "revision", u.Snapshot.Revision)
	c.take(u)
}

// refuse reports that an update was not taken, now and with whatever is reported
// until the next one comes.
func (c *Client) refuse(generation uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = &refusal{generation, err.Error()}
	r := Report{}
	if c.report != nil {
		r = *c.report
	}
	c.tell(&r)
}

// tell makes r, whose numbers it fills in, what is sent next. It requires c.mu.
func (c *Client) tell(r *Report) {
	r.Generation = c.wire
	if c.refused != nil {
		r.Generation, r.Fault = c.refused.generation, c.refused.why
	}
	c.report = r
	close(c.reported)
	c.reported = make(chan struct{})
}

// Watch returns the newest update once its generation is above seen.
func (c *Client) Watch(ctx context.Context, seen uint64) (Update, error) {
	for {
		c.mu.Lock()
		u, changed := c.update, c.changed
		c.mu.Unlock()
		if u != nil && u.Generation > seen {
			return *u, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Update{}, ctx.Err()
		}
	}
}

// Report tells the server r, now or once there is one. r's generation is that of an
// update of Watch.
func (c *Client) Report(r *Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *r
	if c.update == nil || r.Generation != c.update.Generation {
		return // it is about an update that is no longer the newest: another follows
	}
	c.tell(&next)
}

// Spread waits until what was reported is in force on other hosts, as far as can be
// known here: for as long as that takes a fleet that is well. Without a server there
// is nothing to wait for.
func (c *Client) Spread(ctx context.Context) {
	if connected, _ := c.State(); connected {
		_ = c.cfg.Clock.Sleep(ctx, spreadTime)
	}
}

// send sends reports as they come.
func (c *Client) send(ctx context.Context, s *stream) error {
	var last *Report
	var said uint64
	var level *LogState
	for {
		c.mu.Lock()
		r, settled, reported := c.report, c.settled, c.reported
		c.mu.Unlock()
		now, relevelled := c.level(s.capabilities)
		if now != nil && (level == nil || *now != *level) {
			if err := s.SendMsg(&AgentMessage{LogLevel: now}); err != nil {
				return err
			}
			level = now
		}
		if r != nil && r != last {
			if err := s.SendMsg(&AgentMessage{Report: r.readable(s.capabilities)}); err != nil {
				return err
			}
			last = r
		}
		if settled > said {
			if err := s.SendMsg(&AgentMessage{Settled: settled}); err != nil {
				return err
			}
			said = settled
		}
		select {
		case <-reported:
		case <-relevelled:
		case <-ctx.Done():
			return s.CloseSend()
		}
	}
}

// readable is r for a server that has these capabilities: a message that it does not
// know whole it refuses whole.
func (r *Report) readable(has []string) *Report {
	if len(r.Plaintext) == 0 || slices.Contains(has, Plaintext) {
		return r
	}
	out := *r
	out.Plaintext = nil
	return &out
}

// call makes one call within its time.
func (c *Client) call(ctx context.Context, method string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return fromStatus(c.current().Invoke(ctx, method, in, out))
}

// Issue asks for a certificate of id over csr.
func (c *Client) Issue(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	var reply IssueReply
	if err := c.call(ctx, methodIssue, &IssueRequest{ID: id, CSR: csr}, &reply); err != nil {
		return nil, err
	}
	return parseChain(reply.Chain)
}

// IssueJWT asks for a JWT-SVID of id.
func (c *Client) IssueJWT(ctx context.Context, id identity.ID, audience []string) (string, time.Time, error) {
	var reply IssueReply
	err := c.call(ctx, methodIssueJWT, &IssueRequest{ID: id, Audience: audience}, &reply)
	return reply.Token, reply.Expires, err
}

// Cursor implements collect.Sink.
func (c *Client) Cursor(ctx context.Context, log string) (uint64, error) {
	var reply CollectReply
	err := c.call(ctx, methodCursor, &CollectRequest{Log: log}, &reply)
	return reply.Next, err
}

// Collect implements collect.Sink.
func (c *Client) Collect(ctx context.Context, log string, entries []audit.Entry) error {
	return c.call(ctx, methodCollect, &CollectRequest{Log: log, Entries: entries}, new(CollectReply))
}

// Witness implements collect.Witness. The host is the certificate's, whatever s says.
// A server that is too old for it is errors.ErrUnsupported.
func (c *Client) Witness(ctx context.Context, log string, s collect.Statement) ([]byte, error) {
	var reply WitnessReply
	err := c.call(ctx, methodWitness, &WitnessRequest{Log: log, Key: s.Key, Note: s.Note}, &reply)
	return reply.Receipt, err
}

// Growth implements collect.Counterpart. A server that is too old for it is
// errors.ErrUnsupported.
func (c *Client) Growth(ctx context.Context, have uint64) (*collect.Growth, error) {
	var reply GrowthReply
	if err := c.call(ctx, methodGrowth, &GrowthRequest{Have: have}, &reply); err != nil {
		return nil, err
	}
	return reply.growth()
}
