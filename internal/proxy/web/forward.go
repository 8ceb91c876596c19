package web

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/route"
)

const copySize = 32 << 10

// keyMark is in every API key of Parley's.
const keyMark = "parley_key_"

// A carrier remembers the connection that carries a request; one that is sent
// again moves to another.
type carrier struct {
	mu   sync.Mutex // guards what follows
	conn net.Conn
}

func (c *carrier) set(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
}

func (c *carrier) get() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// forward sends an allowed request on and its response back.
func (x *exchange) forward() {
	up := x.hop.Upstream
	if up == nil {
		x.fail(errors.New("an allowed request without a route"))
		return
	}
	interim := &interim{arm: x.armWrite, w: x.w, proto11: x.r.ProtoAtLeast(1, 1), expects: x.r.Header.Get("Expect") != ""}
	out := x.outgoing(up, interim)
	if x.body != nil && x.r.ProtoMajor == 1 {
		// None of the body is thrown away because the response begins early.
		_ = x.control.EnableFullDuplex()
	}
	resp, err := up.roundTrip(x.carriage(), out, x.prepare)
	interim.close()
	defer x.over(resp)
	if err != nil {
		x.fail(err)
		return
	}
	if x.server.cfg.Logger.Enabled(x.r.Context(), slog.LevelDebug) {
		x.answered = x.server.cfg.Clock.Now()
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		x.tunnel(resp, up.mesh())
		return
	}
	x.respond(resp, up.mesh())
}

// prepare says to the service who calls, where this is a gateway that let somebody
// in. It is signed with the key of the certificate that c was made with, which alone
// the service takes it for, and of which no other connection needs to be. A request
// that was sent once is copied to be changed: net/http may still be reading it.
func (x *exchange) prepare(c net.Conn, out *http.Request) (*http.Request, error) {
	x.upstream.set(c)
	own := mtls.Own(c)
	if x.site.End != call.Edge || own == nil {
		return out, nil
	}
	peer, _ := mtls.ConnFacts(c)
	token, err := x.server.cfg.Gate.Vouch(&x.req, own, peer.ID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", route.ErrUnsigned, err)
	}
	switch before := out.Header[call.IdentityField]; {
	case token == "":
	case before == nil:
		out.Header[call.IdentityField] = []string{token}
	case before[0] != token:
		out = out.WithContext(out.Context())
		out.Header = maps.Clone(out.Header)
		out.Header[call.IdentityField] = []string{token}
	}
	return out, nil
}

// carriage is how the request goes on: in the version of HTTP in which it came. An
// upgrade is of HTTP/1.1, so it has a connection of that on every hop.
func (x *exchange) carriage() carriage {
	switch {
	case x.upgrade:
		return upgrading
	case x.req.GRPC:
		return streaming
	case x.r.ProtoMajor == 2:
		return http2
	}
	return http1
}

// over ends both bodies, the request's first: nothing may read it once the handler
// has returned, and closing that of an HTTP/2 response waits for the client half,
// which waits for the client's next byte where the response ended before the
// request did.
func (x *exchange) over(resp *http.Response) {
	if x.body != nil {
		x.body.release()
	}
	if resp != nil {
		_ = resp.Body.Close()
	}
}

// outgoing is the request for the upstream: what was checked, and our own fields.
func (x *exchange) outgoing(up Upstream, interim *interim) *http.Request {
	h := x.header
	h[route.TraceParent] = []string{call.FormatTraceParent(x.req.Trace)}
	if !x.kept {
		delete(h, route.TraceState)
	}
	h[route.RequestIDField] = []string{x.req.RequestID}
	if x.site.End == call.Edge {
		x.edgeFields(h)
	}
	if x.req.Caller.Origin == nil {
		delete(h, call.IdentityField) // the gate has not verified it
	}
	if x.req.Plaintext {
		h[route.Plaintext] = []string{"observed"}
	}
	if len(h["User-Agent"]) == 0 {
		h["User-Agent"] = []string{""} // otherwise net/http makes one up
	}
	if x.upgrade {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	// An empty query keeps its question mark: the bytes are the client's.
	query := strings.TrimPrefix(x.query, "?")
	out := &http.Request{
		Method: x.req.Method,
		URL: &url.URL{
			Scheme: up.scheme(), Host: "upstream", Path: unescape(x.req.Path), RawPath: x.req.Path,
			RawQuery: query, ForceQuery: x.query == "?",
		},
		Host: x.req.Host, Header: h, ContentLength: x.r.ContentLength,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if x.r.ContentLength != 0 && x.r.Body != nil && x.r.Body != http.NoBody {
		x.body = &body{
			src: x.r.Body, from: x.r, trailer: x.trailer, control: x.control,
			clk: x.server.cfg.Clock, http1: x.r.ProtoMajor == 1,
			deadline: x.r.ProtoMajor == 1 || x.strange() && !x.req.GRPC,
		}
		out.Body, out.Trailer = x.body, x.trailer
	}
	trace := &httptrace.ClientTrace{Got1xxResponse: interim.send}
	return out.WithContext(httptrace.WithClientTrace(x.r.Context(), trace))
}

// strange says that the client may be anybody: one of an edge, or one without TLS.
func (x *exchange) strange() bool { return x.site.End == call.Edge || x.req.Plaintext }

// edgeFields tell services about the client of an edge. What the client said of
// itself in these fields was dropped before. A Parley key stays here, on a route
// that asks for none too: it is a secret between its holder and the gateway. So
// does a token unless the route says otherwise: whoever has it could use it
// wherever it is good.
func (x *exchange) edgeFields(h http.Header) {
	if client := x.req.Client; client.IsValid() {
		h[route.ForwardedFor] = []string{client.String()}
	} else if x.req.Remote.IsValid() {
		h[route.ForwardedFor] = []string{x.req.Remote.Addr().String()}
	}
	h[route.ForwardedProto] = []string{route.Proto(x.req.Remote.Addr(), x.r.Header[route.ForwardedProto], x.site.Proxies, secure(x.conn))}
	h[route.ForwardedHost] = []string{x.req.Host}
	if x.req.Caller.Token != nil && !x.hop.ForwardToken {
		delete(h, "Authorization")
	}
	if x.req.Caller.KeyID != "" {
		delete(h, "X-Api-Key")
	}
	dropKeys(h)
}

// dropKeys takes the fields away that hold an API key of Parley's. A credential of
// the application's own stays beside it.
func dropKeys(h http.Header) {
	for name, values := range h {
		if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, keyMark) }) {
			delete(h, name)
		}
	}
}

// respond copies the response. The outcome is reported before the write that
// ends it: the last one of a known length, or the end that returning sends.
func (x *exchange) respond(resp *http.Response, fromMesh bool) {
	if fromMesh && x.site.End == call.Edge {
		if status, ok := x.sidecarStatus(resp); ok {
			x.reword(resp.Header[route.Decision][0], status)
			return
		}
	}
	if x.req.GRPC {
		x.grpc = parseStatus(resp.Header)
	}
	x.armWrite()
	h := x.w.Header()
	route.CleanResponse(h, resp.Header, fromMesh)
	x.strict()
	if len(h["Content-Type"]) == 0 {
		h["Content-Type"] = nil // otherwise net/http guesses one from the body
	}
	for name := range resp.Trailer {
		if route.ResponseTrailerAllowed(name, fromMesh) {
			h.Add("Trailer", name)
		}
	}
	x.lastUnlessRead()
	if len(resp.Trailer) > 0 || x.req.GRPC && resp.ContentLength > 0 {
		// HTTP/2 may bring a length and trailers; HTTP/1.1 has room for one of them.
		delete(h, "Content-Length")
		resp.ContentLength = -1
	}
	if x.r.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent ||
		resp.StatusCode == http.StatusNotModified || resp.ContentLength == 0 {
		x.finish("", resp.StatusCode)
		if x.early() && resp.ContentLength == 0 && len(h["Content-Length"]) == 0 && x.r.Method != http.MethodHead && resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusNotModified {
			h["Content-Length"] = []string{"0"} // net/http adds it only to what is not sent ahead
		}
		x.w.WriteHeader(resp.StatusCode)
		x.sendAhead()
		return
	}
	x.w.WriteHeader(resp.StatusCode)
	if err := x.copyBody(resp); err != nil {
		failure := x.lost(err)
		if !x.reported && x.breakGRPC(failure, err) {
			return
		}
		x.finish(failure, resp.StatusCode)
		// The client must not take what it has for the whole.
		panic(http.ErrAbortHandler)
	}
	x.copyTrailer(resp, fromMesh)
	if x.req.GRPC && x.grpc == nil {
		x.grpc = parseStatus(resp.Trailer)
	}
	x.finish("", resp.StatusCode)
	x.sendAhead()
}

var errWrite = errors.New("the client does not read")

func (x *exchange) copyBody(resp *http.Response) error {
	stream := resp.ContentLength < 0
	if stream {
		if err := x.control.Flush(); err != nil {
			return err
		}
	}
	// Members of the mesh may keep each other waiting; strangers may not.
	strange := x.strange()
	buf := x.server.buffers.Get().(*[copySize]byte)
	defer x.server.buffers.Put(buf)
	for {
		n, err := resp.Body.Read(buf[:])
		x.out += int64(n)
		if n > 0 {
			last := err != nil || !stream && x.out >= resp.ContentLength
			x.armWrite()
			if strange {
				x.armStream()
			}
			if !stream && x.out >= resp.ContentLength {
				x.finish("", resp.StatusCode)
			}
			if _, werr := x.w.Write(buf[:n]); werr != nil {
				x.finish(route.ClientClosed, resp.StatusCode)
				return errWrite
			}
			if stream && err == nil {
				_ = x.control.Flush()
			}
			if strange && !last {
				x.disarmStream()
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// copyTrailer hands over the trailers that were announced, and those that were
// not but came, as gRPC servers do.
func (x *exchange) copyTrailer(resp *http.Response, fromMesh bool) {
	h := x.w.Header()
	for name, values := range resp.Trailer {
		if route.ResponseTrailerAllowed(name, fromMesh) {
			h[http.TrailerPrefix+name] = values
		}
	}
}

// interim passes 1xx responses on while the round trip lasts.
type interim struct {
	mu      sync.Mutex // guards over, and until it is set arm and w
	over    bool
	arm     func() // before each write
	w       http.ResponseWriter
	proto11 bool // HTTP/1.0 knows none
	expects bool // the client waits for 100
}

func (i *interim) send(code int, header textproto.MIMEHeader) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.over || !i.proto11 || code == http.StatusContinue && !i.expects {
		return nil
	}
	i.arm()
	h := i.w.Header()
	final := maps.Clone(h) // what the answer to come says already
	clear(h)
	route.CleanResponse(h, http.Header(header), false)
	i.w.WriteHeader(code)
	clear(h)
	maps.Copy(h, final)
	return nil
}

func (i *interim) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.over = true
}

// unescape decodes a canonical path, whose encodings are known to be well formed.
func unescape(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return path
	}
	return decoded
}
