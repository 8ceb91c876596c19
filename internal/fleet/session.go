package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
)

// enter makes a stream over conn, which is nil in this process, the newest of host's
// agent. An older one of the same host ends: an agent that came back is believed
// before one that fell silent. former is the connection of that one, to be closed
// once its calls had their time. Two streams over one connection are no agent's of
// ours, and none is made: what they were sent and do not read would add up.
func (f *Fleet) enter(host, remote string, hello *link.Hello, stop context.CancelFunc, conn net.Conn) (connection uint64, former net.Conn, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil {
		a = new(agent)
		f.agents[host] = a
	}
	if a.stop != nil {
		if a.conn == conn {
			return 0, nil, fmt.Errorf("%w: it opened two streams over one connection", link.ErrMessage)
		}
		former = a.conn
		a.stop()
	}
	f.connection++
	report := a.report
	report.Generation, report.Fault = 0, ""
	// The endpoints stay until it reports others; where the host is may be new.
	moved := len(report.Endpoints) > 0 && (a.remote != remote || a.advertise != hello.Advertise)
	*a = agent{
		connection: f.connection, stop: stop, conn: conn, version: hello.Version, capabilities: hello.Capabilities,
		remote: remote, advertise: hello.Advertise, since: f.cfg.Clock.Now(), report: report,
		comings: a.comings, unrecorded: a.unrecorded,
	}
	if moved {
		f.next()
	}
	return f.connection, former, nil
}

// coming says whether this connection of host's is recorded, with how many that
// were not since the last that was: an agent can come and go as fast as it likes.
func (f *Fleet) coming(host string) (more int, due bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a.comings.wait(f.cfg.Clock.Now(), comingPeriod, comingBurst) > 0 {
		a.unrecorded++
		return 0, false
	}
	more, a.unrecorded = a.unrecorded, 0
	return more, true
}

// leave ends a connection, if it still is the newest.
func (f *Fleet) leave(host string, connection uint64) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil || a.connection != connection {
		return false
	}
	a.connection, a.stop, a.conn, a.lost = 0, nil, nil, f.cfg.Clock.Now()
	withdrawn := len(a.report.Endpoints) > 0
	a.report.Endpoints = nil
	if withdrawn {
		f.next()
	}
	f.wake()
	return true
}

// wake tells those who wait that something was reported. It requires f.mu.
func (f *Fleet) wake() {
	close(f.reported)
	f.reported = make(chan struct{})
}

// heard takes a report of the connection, and says whether by it services are
// reached at other places.
func (f *Fleet) heard(host string, connection uint64, r *link.Report) (moved bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil || a.connection != connection {
		return false
	}
	moved = !sameEndpoints(a.report.Endpoints, r.Endpoints)
	a.report = *r
	if r.Generation > a.wire {
		a.report.Generation = 0 // nobody has tried what was not sent
	}
	f.returns(host)
	if moved {
		f.next()
	}
	f.wake()
	return moved
}

// due is what is to be sent to the agent now: nil where its part did not change.
// It notes that the agent is told.
func (f *Fleet) due(host string, connection uint64, u *link.Update) (*link.ServerMessage, error) {
	has, ok := f.capabilities(host, connection)
	if !ok {
		return nil, nil
	}
	lacks := link.Lacks(has, link.Needs(u.Snapshot))
	m, err := message(u, lacks, has)
	if err != nil {
		return nil, err
	}
	sum, err := digest(m)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil || a.connection != connection {
		return nil, nil
	}
	a.lacks, a.told = lacks, u.Generation
	if m == nil || a.sent == sum && a.wire > 0 {
		f.wake()
		return nil, nil
	}
	a.sent, a.wire = sum, u.Generation
	return m, nil
}

// capabilities are those of the agent of a connection, while that is the newest.
func (f *Fleet) capabilities(host string, connection uint64) (has []string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil || a.connection != connection {
		return nil, false
	}
	return a.capabilities, true
}

// message is u for an agent that has some capabilities: all of it, or where it
// lacks one what u withdraws, or nil where it would not know that either.
func message(u *link.Update, lacks, has []string) (*link.ServerMessage, error) {
	switch {
	case len(lacks) == 0:
		w, err := link.NewWireUpdate(u)
		return &link.ServerMessage{Update: w}, err
	case slices.Contains(has, link.Withdraws):
		w, err := link.NewWithdrawal(u)
		return &link.ServerMessage{Withdraw: w}, err
	}
	return nil, nil
}

// question is the number of a question to settle that was not asked yet, 0 for none.
func (f *Fleet) question(host string, connection, last uint64) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.agents[host]; a != nil && a.connection == connection && a.asked > last {
		return a.asked
	}
	return 0
}

// answered takes the answer to one.
func (f *Fleet) answered(host string, connection, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.agents[host]; a != nil && a.connection == connection && n <= a.asked {
		a.settled = max(a.settled, n)
		f.wake()
	}
}

// digest is that of what a message says, whatever its generation; m may be nil.
func digest(m *link.ServerMessage) (sum [sha256.Size]byte, err error) {
	var c link.ServerMessage
	if m != nil && m.Update != nil {
		w := *m.Update
		w.Generation, c.Update = 0, &w
	}
	if m != nil && m.Withdraw != nil {
		w := *m.Withdraw
		w.Generation, c.Withdraw = 0, &w
	}
	data, err := json.Marshal(&c)
	if err != nil {
		return sum, fmt.Errorf("encode an update: %w", err)
	}
	return sha256.Sum256(data), nil
}

// errCertificate ends a stream: no call would be served on its connection.
var errCertificate = status.Error(codes.Unauthenticated, "the certificate of this connection has ended: connect anew")

// serve keeps one stream: updates as they come, reports as they arrive. It ends
// with its connection's certificate at the latest, and whatever its peer does with
// what it is sent: an older stream of a host must give way to a newer one.
func (f *Fleet) serve(ctx context.Context, host string, who shakenInfo, s stream) error {
	remote, ends := who.remote, who.peer.NotAfter
	hello, err := f.greet(ctx, host, s)
	if err != nil {
		f.refused(host, remote, err)
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	connection, former, err := f.enter(host, remote, hello, stop, who.conn)
	if err != nil {
		f.refused(host, remote, err)
		mtls.Abort(who.conn)
		return err
	}
	if former != nil {
		go func() { // ends with ctx at the latest
			_ = f.cfg.Clock.Sleep(ctx, formerTime)
			mtls.Abort(former)
		}()
	}
	more, due := f.coming(host)
	f.cfg.Logger.Info("agent connected", "agent_host", host, "version", hello.Version, "remote", remote)
	if due {
		e := f.event(audit.AgentConnected, audit.Success, host, remote)
		e.Message = "version " + hello.Version
		if more > 0 {
			e.Message += fmt.Sprintf(" (%d more since the last record)", more)
		}
		f.record(e)
	}
	over := make(chan error, 3) // its senders end with the stream or with ctx
	go func() { over <- f.listen(ctx, host, connection, s) }()
	go func() { over <- f.tell(ctx, host, connection, s) }()
	go func() {
		if f.cfg.Clock.Sleep(ctx, ends.Sub(f.cfg.Clock.Now())) == nil {
			over <- errCertificate
		}
	}()
	select {
	case err = <-over:
	case <-ctx.Done():
	}
	if f.leave(host, connection) {
		f.cfg.Logger.Info("agent lost", "agent_host", host, "error", err)
		if due {
			f.record(f.event(audit.AgentLost, audit.Success, host, remote))
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// stream is what serve needs of one.
type stream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// first is the agent's first message, for which it has a limited time. The
// stream has to end soon where there is none.
func (f *Fleet) first(ctx context.Context, s stream) (*link.AgentMessage, error) {
	ctx, done := context.WithCancel(ctx)
	defer done()
	got := make(chan error, 1)
	m := new(link.AgentMessage)
	go func() { got <- s.RecvMsg(m) }() // ends with the stream at the latest
	late := make(chan struct{})
	go func() {
		if f.cfg.Clock.Sleep(ctx, helloTime) == nil {
			close(late)
		}
	}()
	select {
	case err := <-got:
		return m, err
	case <-late:
		return nil, fmt.Errorf("%w: it said nothing in %s", link.ErrMessage, helloTime)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// greet hears the agent's name and versions and tells ours.
func (f *Fleet) greet(ctx context.Context, host string, s stream) (*link.Hello, error) {
	m, err := f.first(ctx, s)
	if err != nil {
		return nil, err
	}
	h := m.Hello
	switch {
	case h == nil || m.Kinds() != 1:
		return nil, fmt.Errorf("%w: it did not begin with a hello", link.ErrMessage)
	case h.Protocol != link.Protocol:
		return nil, fmt.Errorf("%w: protocol %d, and this server speaks %d", link.ErrMessage, h.Protocol, link.Protocol)
	case len(h.Version) > maxVersion || len(h.Capabilities) > maxCapabilities || slices.ContainsFunc(h.Capabilities, long):
		return nil, fmt.Errorf("%w: it has too much to say of itself", link.ErrMessage)
	case h.Host != host:
		return nil, fmt.Errorf("%w: it calls itself %q, and its certificate %q", link.ErrMessage, clip(h.Host), host)
	case !usable(h.Advertise):
		return nil, fmt.Errorf("%w: %q is no address where others could reach it", link.ErrMessage, clip(h.Advertise))
	}
	return h, s.SendMsg(&link.ServerMessage{Welcome: &link.Hello{
		Protocol: link.Protocol, Version: f.cfg.Version, Capabilities: link.Capabilities(), Now: f.cfg.Clock.Now().UTC(),
	}})
}

// refused records an agent that was turned away, bounded.
func (f *Fleet) refused(host, remote string, err error) {
	if more, due := f.refusals.Count(host, f.cfg.Clock.Now()); due {
		e := f.event(audit.AgentRefused, audit.Denied, host, remote)
		e.Reason, e.Message = "agent_message", fmt.Sprintf("%q (%d more since the last record)", err.Error(), more)
		f.record(e)
	}
}

// tell sends every update until ctx ends.
func (f *Fleet) tell(ctx context.Context, host string, connection uint64, s stream) error {
	var told, asked uint64
	for {
		u, changed := f.update(host, told)
		if n := f.question(host, connection, asked); n > 0 {
			if err := s.SendMsg(&link.ServerMessage{Settle: n}); err != nil {
				return err
			}
			asked = n
		}
		if o := f.levelOrder(host, connection); o != nil {
			if err := s.SendMsg(&link.ServerMessage{LogLevel: o}); err != nil {
				return err
			}
		}
		if o := f.order(host, connection); o != nil {
			if err := s.SendMsg(&link.ServerMessage{Assess: o}); err != nil {
				return err
			}
		}
		if u != nil {
			told = u.Generation
			m, err := f.due(host, connection, u)
			if err != nil {
				return err
			}
			if m != nil {
				if err := s.SendMsg(m); err != nil {
					return err
				}
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// listen takes reports until the stream ends.
func (f *Fleet) listen(ctx context.Context, host string, connection uint64, s stream) error {
	var reports, moves, levels pace
	for {
		var m link.AgentMessage
		if err := s.RecvMsg(&m); err != nil {
			return err
		}
		switch {
		case m.Kinds() != 1 || m.Hello != nil:
			return fmt.Errorf("%w: neither a report nor anything else that is known", link.ErrMessage)
		case m.Settled > 0:
			f.answered(host, connection, m.Settled)
			continue
		case m.LogLevel != nil:
			if err := f.leveled(host, connection, m.LogLevel); err != nil {
				return err
			}
			if wait := levels.wait(f.cfg.Clock.Now(), reportPeriod, reportBurst); wait > 0 && f.cfg.Clock.Sleep(ctx, wait) != nil {
				return nil
			}
			continue
		}
		tame(m.Report)
		now := f.cfg.Clock.Now()
		wait := reports.wait(now, reportPeriod, reportBurst)
		if f.heard(host, connection, m.Report) {
			wait = max(wait, moves.wait(now, movePeriod, moveBurst)) // each is news to every other host
		}
		if wait > 0 && f.cfg.Clock.Sleep(ctx, wait) != nil {
			return nil
		}
	}
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 80)], "") }

// Local is the control plane for the agent in this process.
func (f *Fleet) Local(host string) *Local {
	l := &Local{fleet: f, host: host}
	// It cannot fail: nothing but a stream is refused.
	l.connection, _, _ = f.enter(host, "", &link.Hello{Version: f.cfg.Version, Capabilities: link.Capabilities()}, nil, nil)
	return l
}

// A Local is the control plane for the agent in the server's own process: the
// same words, handed over.
type Local struct {
	fleet      *Fleet
	host       string
	connection uint64
}

// Watch returns the newest update once its generation is above seen.
func (l *Local) Watch(ctx context.Context, seen uint64) (link.Update, error) {
	for {
		u, changed := l.fleet.update(l.host, seen)
		if u != nil {
			l.fleet.mu.Lock()
			if a := l.fleet.agents[l.host]; a != nil && a.connection == l.connection {
				a.told, a.wire = u.Generation, u.Generation
			}
			l.fleet.mu.Unlock()
			return *u, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return link.Update{}, ctx.Err()
		}
	}
}

// Report takes what the agent says of itself.
func (l *Local) Report(r *link.Report) { l.fleet.heard(l.host, l.connection, r) }

// Spread waits until every agent runs by what was reported, for at most two seconds.
func (l *Local) Spread(ctx context.Context) {
	ctx, done := context.WithTimeout(ctx, spreadTime)
	defer done()
	l.fleet.mu.Lock()
	generation := l.fleet.state.generation
	l.fleet.mu.Unlock()
	l.fleet.Wait(ctx, generation)
}

// Issue asks for a certificate of id.
func (l *Local) Issue(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	return l.fleet.cfg.Registrar.Issue(ctx, l.host, id, csr)
}

// IssueJWT asks for a JWT-SVID of id.
func (l *Local) IssueJWT(ctx context.Context, id identity.ID, audience []string) (string, time.Time, error) {
	return l.fleet.cfg.Registrar.IssueJWT(ctx, l.host, id, audience)
}
