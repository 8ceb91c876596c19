package web

import (
	"cmp"
	"errors"
	"net/http"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// An exchange is one request and its response.
type exchange struct {
	server *Server
	site   *Site
	conn   *conn
	w      http.ResponseWriter
	r      *http.Request
	req    call.Request

	control *http.ResponseController
	armed   time.Time // when the deadline for writing last moved

	query   string // with its question mark
	header  http.Header
	trailer http.Header
	kept    bool // the trace is the client's
	hop     Hop

	upgrade  bool  // a checked handshake of WebSocket
	body     *body // nil for none
	in       int64 // bytes that came over a WebSocket connection
	out      int64 // bytes of the response's body
	grpc     *int  // the status of gRPC that the client was sent
	upstream carrier
	cause    error     // of a failure, for the log
	answered time.Time // when the response began, where calls are logged
	reported bool
}

func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	c, _ := r.Context().Value(connKey{}).(*conn)
	c.reading.Store(false)
	x := &exchange{server: s, site: s.site.Load(), conn: c, w: w, r: r, control: http.NewResponseController(w)}
	defer x.recover()
	x.begin()
	x.armWrite()
	if c.attested != nil {
		process, refused := c.attested.Attestation()
		x.req.Process = process
		if refused != nil {
			// Recorded once for the connection, whatever it goes on to send.
			w.Header().Set("Connection", "close")
			x.refuse(*refused, route.ProcessRefused, http.StatusForbidden)
			return
		}
	}
	err := x.canonical()
	if err == nil && x.site.Redirect != nil {
		x.redirect(x.site.Redirect)
		return
	}
	if err == nil {
		if x.site.End == call.Edge {
			x.match()
		}
		err = x.checkUpgrade()
	}
	if err != nil {
		var refusal *route.Refusal
		if !errors.As(err, &refusal) {
			refusal = &route.Refusal{Code: route.HeaderRefused, Status: http.StatusBadRequest, Reason: err.Error()}
		}
		x.refuse(s.cfg.Gate.Refuse(&x.req, refusal.Code, refusal), refusal.Code, refusal.Status)
		return
	}
	verdict := s.cfg.Gate.Check(&x.req)
	defer x.finish(route.UpstreamClosed, 0) // for a panic on the way; otherwise it was reported
	if !verdict.Allow {
		x.deny(verdict)
		return
	}
	if x.probe() && x.answerProbe() {
		return
	}
	x.forward()
}

// recover ends a request in which this program failed: that is logged, without
// anything that was sent, and the connection is cut.
func (x *exchange) recover() {
	v := recover()
	if v == nil {
		return
	}
	if v != http.ErrAbortHandler { //nolint:errorlint // net/http compares it the same way
		x.server.cfg.Logger.Error("a request failed in this program", "component", "proxy", "request_id", x.req.RequestID,
			"trace_id", x.req.Trace.TraceID, "span_id", x.req.Trace.SpanID, "decision", x.req.Verdict.ID, "listener", x.site.Listener, logging.Panicked(v))
	}
	panic(http.ErrAbortHandler) // net/http would log the value
}

// begin fills in what is known without looking at anything that can be refused.
func (x *exchange) begin() {
	x.req = call.Request{
		End: x.site.End, Protocol: call.HTTP, Listener: x.site.Listener,
		Local: x.site.Local, LocalID: x.site.LocalID,
		Header:    route.Fields(nil),
		GRPC:      isGRPC(x.r),
		RequestID: call.RequestID(x.r.Header[route.RequestIDField]),
		Remote:    x.conn.remote, RemoteText: x.conn.text, Peer: x.conn.peer, TLS: x.conn.tls, Plaintext: x.conn.plaintext,
		Start: x.server.cfg.Clock.Now(),
	}
	if client, told := route.Client(x.conn.remote.Addr(), x.r.Header[route.ForwardedFor], x.site.Proxies); told {
		x.req.Client = client
	}
	x.req.Trace, x.kept = call.NextTrace(x.r.Header[route.TraceParent])
	if x.site.End != call.Edge {
		x.match() // the listener alone says where it leads
	}
}

// canonical makes the one form of the request that is decided on and forwarded.
func (x *exchange) canonical() (err error) {
	if err := route.CheckMethod(x.r.Method); err != nil {
		return err
	}
	x.req.Method = x.r.Method
	if x.req.Path, x.query, err = route.Target(x.r.RequestURI); err != nil {
		x.req.Path = ""
		return err
	}
	if x.req.Host, err = route.CanonicalHost(x.r.Host); err != nil {
		return err
	}
	// net/http keeps a Host field beside :authority; two that differ are two hosts.
	if h := x.r.Header["Host"]; len(h) > 0 && (len(h) > 1 || h[0] != x.r.Host) {
		return &route.Refusal{Code: route.HostRefused, Status: http.StatusBadRequest, Reason: "the request names two hosts"}
	}
	if err := route.CheckHeader(x.r.Header); err != nil {
		return err
	}
	if x.trailer, err = trailers(x.r.Trailer); err != nil {
		return err
	}
	peer := x.conn.peer.ID
	fromGateway := x.site.End == call.Inbound && peer.IsGateway() && peer.TrustDomain() == x.site.LocalID.TrustDomain()
	x.header = route.CleanRequest(x.r.Header, fromGateway)
	x.req.Header = route.Fields(x.header)
	return nil
}

func (x *exchange) match() {
	x.hop = x.site.Match(x.req.Host, x.req.Path, x.req.Method)
	x.req.Target, x.req.PolicyTarget, x.req.Revision = x.hop.Target, x.hop.PolicyTarget, x.site.Revision
}

// refuse answers a refusal that is recorded already.
func (x *exchange) refuse(v call.Verdict, code string, status int) {
	p := newProblem(&x.req, v.ID, code, status)
	_, x.grpc = x.req.Answer(status)
	contentType, body := x.encode(p)
	x.answer(p, &v, contentType, body)
}

// deny reports and answers what the gate refused.
func (x *exchange) deny(v call.Verdict) {
	if v.Status == 0 {
		v.Status = http.StatusForbidden
	}
	x.problem(v.Code, v.Status, "")
}

// fail reports and answers a call that was allowed and did not work out before
// its response began.
func (x *exchange) fail(err error) {
	code, status := route.Failure(err)
	x.cause = route.Told(err)
	switch cut := x.cut(); {
	case cut != "":
		code, status = cut, http.StatusBadGateway
	case x.r.Context().Err() != nil || code == route.ClientClosed || x.body != nil && x.body.gone.Load():
		x.finish(route.ClientClosed, 0)
		panic(http.ErrAbortHandler)
	case x.body != nil && x.body.broken.Load():
		code, status = route.ClientClosed, http.StatusBadRequest
		x.w.Header().Set("Connection", "close")
	}
	if late, s := x.ended(err); s != nil {
		code, status = cmp.Or(late, code), http.StatusBadGateway
		x.grpc = s
	}
	x.problem(code, status, code)
}

// problem reports and answers; failure is the outcome's error.
func (x *exchange) problem(code string, status int, failure string) {
	v := &x.req.Verdict
	p := newProblem(&x.req, v.ID, code, status)
	contentType, body := x.encode(p)
	status, s := x.req.Answer(status)
	if x.grpc == nil {
		x.grpc = s
	}
	x.finish(failure, status)
	x.answer(p, v, contentType, body)
}

// encode is p in the form that the client wants, counted as sent.
func (x *exchange) encode(p *problem) (contentType string, body []byte) {
	if x.req.GRPC {
		return grpcType, nil
	}
	contentType, body = p.encode(x.r.Header["Accept"])
	if x.r.Method != http.MethodHead {
		x.out = int64(len(body))
	}
	return contentType, body
}

// answer sends p, which is recorded, and is done with the request.
func (x *exchange) answer(p *problem, v *call.Verdict, contentType string, body []byte) {
	x.armWrite()
	x.armStream()
	if x.unread() {
		// Otherwise net/http waits for the body before it sends anything.
		_ = x.control.EnableFullDuplex()
	}
	x.lastUnlessRead()
	x.strict()
	if x.grpc != nil {
		p.answerGRPC(x.w, v.ID, *x.grpc)
	} else {
		p.answer(x.w, v.ID, v, contentType, body)
	}
	x.sendAhead()
	if x.unread() {
		x.skipBody()
	}
}

// strict puts the edge's own Strict-Transport-Security into the answer, in place
// of an application's: of several a browser takes the first (RFC 6797 section 8.1).
// Over plaintext there is none (section 7.2).
func (x *exchange) strict() {
	if x.site.HSTS != "" && secure(x.conn) {
		x.w.Header()["Strict-Transport-Security"] = []string{x.site.HSTS}
	}
}

// finish reports the outcome, once.
func (x *exchange) finish(failure string, status int) {
	if x.reported {
		return
	}
	x.reported = true
	o := call.Outcome{Status: status, GRPC: x.grpc, Error: failure, Cause: x.cause, Answered: x.answered, BytesIn: x.in, BytesOut: x.out, End: x.server.cfg.Clock.Now()}
	if x.body != nil {
		o.BytesIn = x.body.n.Load()
	}
	if c := x.upstream.get(); c != nil {
		o.UpstreamPeer, o.UpstreamTLS = mtls.ConnFacts(c)
		o.Upstream = c.RemoteAddr().String()
	} else if x.hop.Upstream != nil && x.req.Verdict.Allow {
		o.Upstream = x.hop.Upstream.address()
	}
	x.server.cfg.Gate.Done(&x.req, o)
}

// cut is why either connection was cut because of who is at its ends, "" where none was.
func (x *exchange) cut() string { return route.Cut(x.conn.net, x.upstream.get()) }

// lost names a failure in the middle of the response's body.
func (x *exchange) lost(err error) string {
	x.cause = route.Told(err)
	if cut := x.cut(); cut != "" {
		return cut
	}
	if x.r.Context().Err() != nil {
		return route.ClientClosed
	}
	code, _ := route.Failure(err)
	return code
}

// armWrite moves the deadline of a client that reads slowly, see body.arm. It is
// called before each write; net/http takes the deadline away with the end of the
// response.
func (x *exchange) armWrite() {
	if x.r.ProtoMajor != 1 {
		return
	}
	if now := x.server.cfg.Clock.Now(); now.Sub(x.armed) > stall/4 {
		x.armed = now
		_ = x.control.SetWriteDeadline(now.Add(stall))
	}
}

// armStream bounds the writes to a client of HTTP/2, which can leave them without
// room (RFC 9113 section 5.2) and its connection alive. Unlike that of HTTP/1.1
// the deadline ends the stream even where nothing is being written.
func (x *exchange) armStream() {
	if x.r.ProtoMajor == 2 {
		_ = x.control.SetWriteDeadline(x.server.cfg.Clock.Now().Add(stall))
	}
}

func (x *exchange) disarmStream() {
	if x.r.ProtoMajor == 2 {
		_ = x.control.SetWriteDeadline(time.Time{})
	}
}
