// Package tcp relays connections whose protocol is nobody's business: it decides
// once, after the handshake and before the first byte, dials, and copies both
// ways until both sides have ended. It peeks at nothing, so protocols in which
// the server speaks first are not delayed.
//
// It refuses to authorise, and to turn a broken stream into a complete one: a
// side that fails is passed on as a reset, never as an end.
package tcp

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/route"
)

const (
	// DefaultIdle ends a connection on which nothing was sent either way. Dead
	// peers are found sooner by TCP keep-alive; this is for the forgotten ones.
	DefaultIdle = time.Hour
	// lastWords is the same once the server has ended its side: nobody answers
	// any more, and a server that closed altogether looks no different.
	lastWords = time.Minute
	// bufferSize is two TLS records.
	bufferSize = 32 << 10
)

// Config is what a Relay needs.
type Config struct {
	Gate  route.Gate
	Clock clock.Clock
	// Idle is the time without a byte either way; zero is DefaultIdle.
	Idle time.Duration
}

// A Relay serves connections. It is safe for concurrent use.
type Relay struct {
	cfg     Config
	buffers sync.Pool // *[bufferSize]byte
}

// New is a relay.
func New(cfg Config) *Relay {
	if cfg.Idle == 0 {
		cfg.Idle = DefaultIdle
	}
	return &Relay{cfg: cfg, buffers: sync.Pool{New: func() any { return new([bufferSize]byte) }}}
}

// An Upstream is what an allowed connection is joined to.
type Upstream interface {
	// Address is for the record of a call that finds no connection there.
	Address() string
	// Dial opens the connection; ended is called once when it is over.
	Dial(context.Context) (c net.Conn, ended func(), err error)
}

// Serve asks the gate about req and relays down until both directions ended, one
// failed, or ctx ended. It closes down, and returns after the gate was told the
// outcome, which happens before the last end of stream is sent.
func (r *Relay) Serve(ctx context.Context, down net.Conn, req *call.Request, to Upstream) {
	if v := r.cfg.Gate.Check(req); !v.Allow {
		r.cfg.Gate.Done(req, call.Outcome{End: r.cfg.Clock.Now()})
		mtls.Abort(down) // an end of stream would look like an empty answer
		return
	}
	if req.TLS.ALPN == call.Probe {
		r.answerProbe(down, req)
		return
	}
	up, ended, err := to.Dial(ctx)
	if err != nil {
		code, _ := route.Failure(err)
		if ctx.Err() != nil {
			code = route.Stopped
		}
		r.cfg.Gate.Done(req, call.Outcome{Error: code, Cause: route.Told(err), Upstream: to.Address(), End: r.cfg.Clock.Now()})
		mtls.Abort(down)
		return
	}
	defer ended()
	r.Join(ctx, down, up, func(in, out int64, code string) {
		peer, facts := mtls.ConnFacts(up)
		r.cfg.Gate.Done(req, call.Outcome{
			Error: code, BytesIn: in, BytesOut: out, End: r.cfg.Clock.Now(),
			Upstream: up.RemoteAddr().String(), UpstreamPeer: peer, UpstreamTLS: facts,
		})
	})
}

// ProbeAnswer is what an allowed probe of `parley verify` is told, in place of what
// the application would say. A denied one is told what every other connection is.
const ProbeAnswer = "parley-probe: allowed\n"

// answerProbe answers an allowed probe, of which the application hears nothing.
func (r *Relay) answerProbe(down net.Conn, req *call.Request) {
	r.cfg.Gate.Done(req, call.Outcome{BytesOut: int64(len(ProbeAnswer)), End: r.cfg.Clock.Now()})
	_ = down.SetWriteDeadline(r.cfg.Clock.Now().Add(lastWords))
	_, _ = io.WriteString(down, ProbeAnswer) // a prober that left wants none
	_ = down.Close()
}

// Join relays between a client's connection and its upstream's until both
// directions ended, one failed, or ctx ended, and closes both. ended is told once
// how many bytes came from the client and went to it, and the code of a failure,
// before the last end of stream is sent.
func (r *Relay) Join(ctx context.Context, down, up net.Conn, ended func(in, out int64, code string)) {
	s := &stream{relay: r, ended: ended, down: down, up: up, ctx: ctx}
	s.run()
}

// A stream is one joined pair.
type stream struct {
	relay    *Relay
	ended    func(in, out int64, code string)
	down, up net.Conn
	ctx      context.Context

	in, out atomic.Int64 // bytes from and to the client
	began   time.Time    // with its monotonic reading: a clock that is set ends nobody
	active  atomic.Int64 // when the last byte came, nanoseconds after began
	limit   atomic.Int64 // time without a byte, a time.Duration
	open    atomic.Int32 // directions that have not ended
	done    sync.Once    // the outcome was reported
	broken  sync.Once    // the first failure aborted both sides
	failure string       // set within broken
}

func (s *stream) run() {
	s.open.Store(2)
	s.limit.Store(int64(s.relay.cfg.Idle))
	s.began = s.relay.cfg.Clock.Now()
	stop := context.AfterFunc(s.ctx, func() { s.fail(route.Stopped) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { s.pump(s.up, s.down, &s.in, route.ClientClosed, "") })
	s.pump(s.down, s.up, &s.out, "", route.ClientClosed)
	wg.Wait()
	// Also waits for a failure that another goroutine is still writing down.
	s.broken.Do(func() {})
	s.report(s.failure)
	_ = s.up.Close()
	_ = s.down.Close()
}

// pump copies src to dst until src ends. readCode and writeCode name a failure
// on either side; empty asks route.Failure, which knows upstreams.
func (s *stream) pump(dst, src net.Conn, n *atomic.Int64, readCode, writeCode string) {
	buf := s.relay.buffers.Get().(*[bufferSize]byte)
	defer s.relay.buffers.Put(buf)
	var armed time.Time
	for {
		armed = s.arm(dst, src, armed)
		got, err := src.Read(buf[:])
		if got > 0 {
			armed = s.arm(dst, src, armed)
			s.touch()
			n.Add(int64(got))
			if _, werr := dst.Write(buf[:got]); werr != nil {
				s.fail(s.name(werr, writeCode))
				return
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			s.end(dst)
			return
		case isTimeout(err) && s.idle() < s.idleLimit():
			armed = time.Time{} // the other direction is at work
		case isTimeout(err) && s.idleLimit() < s.relay.cfg.Idle:
			s.fail("") // the server had ended the call
			return
		case isTimeout(err):
			s.fail(route.IdleTimeout)
			return
		default:
			s.fail(s.name(err, readCode))
			return
		}
	}
}

// arm moves the deadlines when an eighth of the idle time has passed since it
// last did: a deadline for each read would cost more than the read's copy.
func (s *stream) arm(dst, src net.Conn, armed time.Time) time.Time {
	now := s.relay.cfg.Clock.Now()
	limit := s.idleLimit()
	if now.Sub(armed) < limit/8 {
		return armed
	}
	_ = src.SetReadDeadline(now.Add(limit))
	_ = dst.SetWriteDeadline(now.Add(limit))
	return now
}

func (s *stream) idleLimit() time.Duration { return time.Duration(s.limit.Load()) }

func (s *stream) idle() time.Duration {
	return s.since() - time.Duration(s.active.Load())
}

func (s *stream) touch() { s.active.Store(int64(s.since())) }

func (s *stream) since() time.Duration { return s.relay.cfg.Clock.Now().Sub(s.began) }

// end passes the end of one direction on. Before the second one, which ends the
// call, the outcome is reported.
func (s *stream) end(dst net.Conn) {
	if s.open.Add(-1) == 0 {
		s.report("")
	}
	if dst == s.down {
		limit := min(lastWords, s.relay.cfg.Idle)
		s.limit.Store(int64(limit))
		s.touch()
		_ = s.down.SetReadDeadline(s.relay.cfg.Clock.Now().Add(limit))
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		return
	}
	_ = dst.Close()
}

// fail aborts both sides; the first failure is the one that is reported.
func (s *stream) fail(code string) {
	s.broken.Do(func() {
		s.failure = code
		// Reported before anybody can notice.
		s.report(code)
		mtls.Abort(s.down)
		mtls.Abort(s.up)
	})
}

func (s *stream) name(err error, code string) string {
	if cut := route.Cut(s.down, s.up); cut != "" {
		return cut
	}
	if code == "" {
		code, _ = route.Failure(err)
	}
	return code
}

func (s *stream) report(code string) {
	s.done.Do(func() { s.ended(s.in.Load(), s.out.Load(), code) })
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
