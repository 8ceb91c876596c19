// Package web serves HTTP/1.1 and HTTP/2 and forwards it, on net/http: the
// server half hands each request to package route's checks and to the gate, the
// client half keeps the pools to sidecars and applications.
//
// The forwarder is its own and not httputil.ReverseProxy. The outcome of a call
// has to be recorded before the last byte of its response leaves, which needs a
// hand on the last write; the fields and bytes that travel are those that were
// checked, not an edited copy of what came; and the connection that carried a
// call is part of its record.
//
// It refuses to authorise, to retry what may have been done, and to tell a client
// where or why an upstream failed.
package web

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/route"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Limits of the server half.
const (
	readHeaderTimeout = 10 * time.Second
	serverIdle        = 5 * time.Minute
	maxHeaderBytes    = 64 << 10
	// maxStreams is how many requests a connection of HTTP/2 has under way. An
	// application at its own outbound listener, whose gRPC client waits for room
	// instead of opening another connection, has ownStreams. A stranger at an edge,
	// who opens as many connections as he likes and of whose streams each can hold
	// one to an application, has edgeStreams.
	maxStreams  = 100
	ownStreams  = 1000
	edgeStreams = 50
	// stall is how long a body may stand still in either direction of an
	// HTTP/1.1 connection, and on the way in over HTTP/2 at an edge.
	stall = 5 * time.Minute
	// pingAfter and pingTimeout find dead HTTP/2 peers; writeTimeout those that
	// do not read.
	pingAfter    = time.Minute
	pingTimeout  = 15 * time.Second
	writeTimeout = time.Minute
)

// A Hop is where a request goes.
type Hop struct {
	// Target is the called service, PolicyTarget what policy knows the way by;
	// see call.Request.
	Target, PolicyTarget string
	Upstream             Upstream
	// ForwardToken hands the caller's token on.
	ForwardToken bool
	// WebSocket lets requests become WebSocket connections; nil refuses it.
	WebSocket *snapshot.WebSocket
	// Probe is the one request of a probe that goes on, nil for none.
	Probe *snapshot.Probe
}

// A Site is what a listener serves. It is immutable and replaced as a whole.
type Site struct {
	End      call.End
	Listener string
	// Local is the service or gateway that listens, LocalID its identity.
	Local   string
	LocalID identity.ID
	// Revision is the one that Match is of.
	Revision int64
	// Match finds the hop by canonical host and path and by method; a Hop
	// without an Upstream says that there is no route.
	Match func(host, path, method string) Hop

	// Of an edge: the value of Strict-Transport-Security of its answers, the proxies
	// that are believed about the client, and what a listener for plaintext does
	// instead of everything else.
	HSTS     string
	Proxies  *snapshot.Proxies
	Redirect *Redirect
}

// Config is what a Server needs.
type Config struct {
	Gate   route.Gate
	Clock  clock.Clock
	Logger *slog.Logger
	// Unreadable, where set, is called for each connection of HTTP/1.1 that ended in
	// a request which never became one: malformed, too large, or broken off.
	// net/http answers those by itself, and no Gate hears of them.
	Unreadable func()
	// Joiner relays what became a WebSocket connection.
	Joiner Joiner
}

// A Joiner relays between a client's connection and its upstream's until it is
// over, and closes both. ended is told once, before the last end of stream is sent,
// how many bytes came from the client and went to it, and the code of a failure.
type Joiner interface {
	Join(ctx context.Context, down, up net.Conn, ended func(in, out int64, code string))
}

// Attested is a connection whose process was asked for. The answer is there once
// the first byte was read.
type Attested interface {
	// Attestation is the process, and the recorded refusal if it may not call.
	Attestation() (call.Process, *call.Verdict)
}

// A Server serves the connections of one listener.
type Server struct {
	cfg   Config
	http  *http.Server
	site  atomic.Pointer[Site]
	conns atomic.Int64
	open  sync.Map // net.Conn to *conn

	// tunnels is held for reading by each WebSocket connection; cut ends those that
	// are left when the server is over.
	tunnels sync.RWMutex
	ctx     context.Context
	cut     context.CancelFunc

	buffers sync.Pool // *[copySize]byte
}

// NewServer serves site. HTTP/2 is spoken where TLS negotiated it, and without
// TLS to those who begin with it (RFC 9113 section 3.3).
func NewServer(cfg Config, site *Site) *Server {
	s := &Server{cfg: cfg, buffers: sync.Pool{New: func() any { return new([copySize]byte) }}}
	s.site.Store(site)
	s.ctx, s.cut = context.WithCancel(context.Background())
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.handle),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       serverIdle,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         &protocols,
		HTTP2:             serverHTTP2(site.End),
		ConnContext:       s.connContext,
		ConnState:         s.connState,
		ErrorLog:          logging.Remarks(cfg.Logger, "proxy"),
		// "OPTIONS *" goes the way of every other request.
		DisableGeneralOptionsHandler: true,
	}
	return s
}

// Windows of HTTP/2 (RFC 9113 section 5.2), in bytes. One stream whose reader
// stands still must not take the room of its whole connection, which is what equal
// windows do; and strangers must not make an edge keep much.
const (
	streamWindow     = 512 << 10
	connWindow       = 16 << 20
	edgeStreamWindow = 256 << 10
	edgeConnWindow   = 1 << 20
)

func serverHTTP2(end call.End) *http.HTTP2Config {
	c := &http.HTTP2Config{
		MaxConcurrentStreams:          maxStreams,
		MaxReceiveBufferPerStream:     streamWindow,
		MaxReceiveBufferPerConnection: connWindow,
		SendPingTimeout:               pingAfter,
		PingTimeout:                   pingTimeout,
		WriteByteTimeout:              writeTimeout,
	}
	switch end {
	case call.Outbound:
		c.MaxConcurrentStreams = ownStreams
	case call.Edge:
		c.MaxConcurrentStreams = edgeStreams
		c.MaxReceiveBufferPerStream, c.MaxReceiveBufferPerConnection = edgeStreamWindow, edgeConnWindow
	}
	return c
}

// SetSite replaces what is served; requests under way end as they began.
func (s *Server) SetSite(site *Site) { s.site.Store(site) }

// Serve serves ln's connections until ln is closed or Shutdown is called. The
// error is never nil.
func (s *Server) Serve(ln net.Listener) error { return s.http.Serve(probed{ln}) }

// Shutdown stops accepting, lets requests and WebSocket connections under way end
// until ctx does, and then closes what is left.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		_ = s.http.Close()
	}
	// net/http knows nothing of connections that were taken over.
	over := make(chan struct{})
	go func() {
		s.tunnels.Lock()
		//lint:ignore SA2001 to wait for those that hold it for reading is the purpose
		s.tunnels.Unlock()
		close(over)
	}()
	select {
	case <-over:
	case <-ctx.Done():
	}
	s.cut()
	<-over
	return err
}

// Connections is how many there are.
func (s *Server) Connections() int { return int(s.conns.Load()) }

// conn is what the requests of one connection share.
type conn struct {
	net       net.Conn
	reading   atomic.Bool // a request's first byte came, and not yet the request
	attested  Attested
	remote    netip.AddrPort
	text      string // remote as text
	peer      call.Peer
	tls       call.TLS
	plaintext bool // at a listener that otherwise wants TLS
}

type connKey struct{}

func (s *Server) connContext(ctx context.Context, c net.Conn) context.Context {
	info := &conn{net: c}
	info.attested, _ = c.(Attested)
	info.peer, info.tls = mtls.ConnFacts(c)
	info.plaintext = mtls.Plaintext(c)
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		info.remote = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		info.text = info.remote.String()
	}
	s.open.Store(c, info)
	return context.WithValue(ctx, connKey{}, info)
}

func (s *Server) connState(c net.Conn, state http.ConnState) {
	known, _ := s.open.Load(c)
	info, ok := known.(*conn)
	switch state {
	case http.StateNew:
		s.conns.Add(1)
	case http.StateActive:
		if ok {
			info.reading.Store(true)
		}
	case http.StateIdle:
		if ok {
			info.reading.Store(false)
		}
	case http.StateClosed, http.StateHijacked:
		s.conns.Add(-1)
		s.open.Delete(c)
		if ok && info.reading.Load() && s.cfg.Unreadable != nil {
			s.cfg.Unreadable()
		}
	}
}

// secure says that the client's side of the request is TLS.
func secure(c *conn) bool {
	_, ok := c.net.(*tls.Conn)
	return ok
}
