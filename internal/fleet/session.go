package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
)

// enter makes a connection the newest of host's agent. An older one of the same
// host ends: an agent that came back is believed before one that fell silent.
func (f *Fleet) enter(host, remote string, hello *link.Hello, stop context.CancelFunc) (connection uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil {
		a = new(agent)
		f.agents[host] = a
	}
	if a.stop != nil {
		a.stop()
	}
	f.connection++
	report := a.report
	report.Generation, report.Fault = 0, ""
	*a = agent{
		connection: f.connection, stop: stop, version: hello.Version, capabilities: hello.Capabilities,
		remote: remote, advertise: hello.Advertise, since: f.cfg.Clock.Now(), report: report,
	}
	return f.connection
}

// leave ends a connection, if it still is the newest.
func (f *Fleet) leave(host string, connection uint64) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil || a.connection != connection {
		return false
	}
	a.connection, a.stop, a.lost = 0, nil, f.cfg.Clock.Now()
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

// heard takes a report of the connection.
func (f *Fleet) heard(host string, connection uint64, r *link.Report) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil || a.connection != connection {
		return
	}
	moved := !sameEndpoints(a.report.Endpoints, r.Endpoints)
	a.report = *r
	if moved {
		f.next()
	}
	f.wake()
}

// due is what is to be sent to the agent now: nil where its part did not change.
// It notes that the agent is told.
func (f *Fleet) due(host string, connection uint64, u *link.Update) (*link.WireUpdate, error) {
	w, err := link.NewWireUpdate(u)
	if err != nil {
		return nil, err
	}
	sum, err := digest(w)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.agents[host]
	if a == nil || a.connection != connection {
		return nil, nil
	}
	a.lacks = link.Lacks(a.capabilities, w.Needs)
	if len(a.lacks) > 0 {
		f.wake()
		return nil, nil
	}
	same := a.sent == sum && a.wire > 0
	a.told = u.Generation
	if same {
		f.wake()
		return nil, nil
	}
	a.sent, a.wire = sum, u.Generation
	return w, nil
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
	if a := f.agents[host]; a != nil && a.connection == connection {
		a.settled = max(a.settled, n)
		f.wake()
	}
}

// digest is that of what an update says, whatever its generation.
func digest(w *link.WireUpdate) (sum [sha256.Size]byte, err error) {
	c := *w
	c.Generation = 0
	data, err := json.Marshal(&c)
	if err != nil {
		return sum, fmt.Errorf("encode an update: %w", err)
	}
	return sha256.Sum256(data), nil
}

// serve keeps one stream: updates as they come, reports as they arrive.
func (f *Fleet) serve(ctx context.Context, host, remote string, s stream) error {
	hello, err := f.greet(host, s)
	if err != nil {
		f.refused(host, remote, err)
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	connection := f.enter(host, remote, hello, stop)
	f.cfg.Logger.Info("agent connected", "agent_host", host, "version", hello.Version, "remote", remote)
	e := f.event(audit.AgentConnected, audit.Success, host, remote)
	e.Message = "version " + strings.ToValidUTF8(clip(hello.Version), "?")
	f.record(e)
	gone := make(chan error, 1)
	go func() { // ends with the stream, which ends with ctx
		gone <- f.listen(host, connection, s)
		stop()
	}()
	err = f.tell(ctx, host, connection, s)
	if f.leave(host, connection) {
		f.cfg.Logger.Info("agent lost", "agent_host", host)
		f.record(f.event(audit.AgentLost, audit.Success, host, remote))
	}
	select {
	case heard := <-gone:
		return heard
	default:
		return err
	}
}

// stream is what serve needs of one.
type stream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// greet hears the agent's name and versions and tells ours.
func (f *Fleet) greet(host string, s stream) (*link.Hello, error) {
	var m link.AgentMessage
	if err := s.RecvMsg(&m); err != nil {
		return nil, err
	}
	h := m.Hello
	switch {
	case h == nil || m.Report != nil:
		return nil, fmt.Errorf("%w: it did not begin with a hello", link.ErrMessage)
	case h.Protocol != link.Protocol:
		return nil, fmt.Errorf("%w: protocol %d, and this server speaks %d", link.ErrMessage, h.Protocol, link.Protocol)
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
		if u != nil {
			told = u.Generation
			w, err := f.due(host, connection, u)
			if err != nil {
				return err
			}
			if w != nil {
				if err := s.SendMsg(&link.ServerMessage{Update: w}); err != nil {
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
func (f *Fleet) listen(host string, connection uint64, s stream) error {
	for {
		var m link.AgentMessage
		if err := s.RecvMsg(&m); err != nil {
			return err
		}
		if m.Settled > 0 && m.Report == nil && m.Hello == nil {
			f.answered(host, connection, m.Settled)
			continue
		}
		if m.Report == nil || m.Hello != nil || m.Settled > 0 {
			return fmt.Errorf("%w: neither a report nor anything else that is known", link.ErrMessage)
		}
		f.heard(host, connection, m.Report)
	}
}

func clip(s string) string { return s[:min(len(s), 80)] }

// Local is the control plane for the agent in this process.
func (f *Fleet) Local(host string) *Local {
	l := &Local{fleet: f, host: host}
	l.connection = f.enter(host, "", &link.Hello{Version: f.cfg.Version, Capabilities: link.Capabilities()}, nil)
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

// Issue asks for a certificate of id.
func (l *Local) Issue(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	return l.fleet.cfg.Registrar.Issue(ctx, l.host, id, csr)
}

// IssueJWT asks for a JWT-SVID of id.
func (l *Local) IssueJWT(ctx context.Context, id identity.ID, audience []string) (string, time.Time, error) {
	return l.fleet.cfg.Registrar.IssueJWT(ctx, l.host, id, audience)
}
