package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/identity"
)

// sessionTime is how long a verification may take on a host, with the time in which
// its server says nothing: what it holds open is let go then.
const sessionTime = 12 * time.Minute

// A verifier tries the orders of the control plane, one after another.
type verifier struct {
	agent   *Agent
	session *assess.Session
	run     string
	cancel  context.CancelFunc // of the phase that is being tried
	trying  sync.WaitGroup
}

// verifying tries what the control plane orders until ctx ends.
func (a *Agent) verifying(ctx context.Context) error {
	v := &verifier{agent: a, cancel: func() {}}
	defer v.end()
	for {
		wait, done := ctx, context.CancelFunc(func() {})
		if v.session != nil {
			wait, done = context.WithTimeout(ctx, sessionTime)
		}
		o, err := a.cfg.Control.NextOrder(wait)
		done()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			v.end()
			continue
		case err != nil:
			return err
		}
		v.take(ctx, o)
	}
}

// end stops what is being tried, and lets go of everything.
func (v *verifier) end() {
	v.cancel()
	v.trying.Wait()
	if v.session != nil {
		v.session.Close()
	}
	v.session, v.run = nil, ""
}

// take begins to try o. A new order ends what went before.
func (v *verifier) take(ctx context.Context, o assess.Order) {
	v.cancel()
	v.trying.Wait()
	var err error
	switch {
	case o.Phase == assess.Attack:
		v.end()
		v.session, err = assess.New(v.agent.tools(), o)
		v.run = o.Run
	case o.Phase == assess.Over:
		v.end()
	case v.session == nil || v.run != o.Run:
		err = errors.New("this host knows nothing of the verification: its agent may have started anew")
	}
	ctx, cancel := context.WithTimeout(ctx, sessionTime)
	v.cancel = cancel
	session := v.session
	v.trying.Go(func() {
		defer cancel()
		v.agent.try(ctx, session, o, err)
	})
}

// try tries one phase and tells what came of it.
func (a *Agent) try(ctx context.Context, s *assess.Session, o assess.Order, failed error) {
	report := &assess.Report{Run: o.Run, Phase: o.Phase, Done: true}
	tell := func(results []assess.Result) {
		r := &assess.Report{Run: o.Run, Phase: o.Phase, Results: results}
		if err := a.cfg.Control.Assessed(ctx, r); err != nil && ctx.Err() == nil {
			a.cfg.Logger.Warn("results of a verification not told", "run", o.Run, "error", err)
		}
	}
	switch {
	case failed != nil:
		report.Fault = failed.Error()
	case o.Phase == assess.Attack:
		s.Attack(ctx, tell)
	case o.Phase == assess.AfterBan:
		s.AfterBan(ctx, tell)
	}
	if err := a.cfg.Control.Assessed(ctx, report); err != nil && ctx.Err() == nil {
		a.cfg.Logger.Warn("the end of a verification not told", "run", o.Run, "error", err)
	}
}

// tools are what a session on this host works with.
func (a *Agent) tools() assess.Tools {
	var roots []*x509.Certificate
	for _, b := range a.trust.Load().Bundles {
		roots = append(roots, b.Roots...) // the mesh has one trust domain
	}
	return assess.Tools{
		Issue: a.cfg.Control.IssueProbe, Roots: roots, Call: a.proxy.Call, Stranger: dialStranger, Guarded: a.closer.closes, Clock: a.cfg.Clock,
		Own: func(id identity.ID) (*identity.Credential, error) {
			c, _, err := a.Credential(id)
			return c, err
		},
	}
}

// strangerTime bounds one connection of dialStranger.
const strangerTime = 3 * time.Second

// dialStranger connects as a user that no service runs as, where this process may
// become one.
func dialStranger(ctx context.Context, network, addr string) (conn net.Conn, own bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, strangerTime)
	defer cancel()
	own = !asStranger(func() {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
	})
	return conn, own, err
}
