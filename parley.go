// Package parley puts a Go program into a Parley mesh without a sidecar: its
// connections are mutual TLS 1.3 under the identity that the agent of the host
// gives this process, and nobody calls it who is not allowed to.
//
//	w := &parley.Workload{Allow: []string{"web"}}
//	l, err := w.Listen("tcp", ":9443")
//	if err != nil { ... }
//	http.Serve(l, w.Handler(handler))
//
// # Who this process is
//
// The agent of the host asks the kernel which process connected and gives it the
// certificate of the service that it is by the mesh file's runs_as. There is no
// key and no secret to configure, only, where it is not the usual one, the socket
// of the agent's SPIFFE Workload API. Certificates renew by themselves without a
// dropped connection.
//
// # Calling
//
// Dial and HTTPClient call one service by its name. The connection is only made
// if the other side proves that it is exactly that service; the address is just
// where to find it.
//
//	orders := w.HTTPClient("orders")
//	resp, err := orders.Get("https://10.0.0.7:9443/orders/7")
//
// # Being called
//
// Listen yields connections of the callers in Allow and of nobody else. A caller
// who is not in it and speaks HTTP gets 403 with an application/problem+json
// body (RFC 9457) and a decision id that is in the log too; any other is cut off.
// Handler checks each request once more, so that a caller whose certificate has
// ended meanwhile is refused, and puts the Caller into the request's context: of a
// gateway with its Origin, whom it let in by an API key or a token.
//
// # What it does not do
//
// Rules in the mesh file with their methods and paths, its bans, who is in it at
// all, and the audit log are the sidecar's. A program that uses this package allows
// by caller, in Allow, decides the rest itself, and logs what is refused.
//
// The Workload API says what signs certificates, and not who is still a member: an
// identity that was taken out of the mesh file and is in Allow is admitted until
// its last certificate ends, at most leaf_ttl (an hour by default) later. Where that
// is too long, use a sidecar, which refuses it at once.
//
// # Compatibility
//
// Exported names keep their meaning within a major version; fields are only
// added, and their zero value is what was before.
package parley

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/workload/client"
)

// DefaultSocket is where an agent serves the Workload API if nobody says
// otherwise.
const DefaultSocket = "/run/parley/workload.sock"

// startTime bounds how long Listen, Dial and a first request wait for an identity where Start was not
// called.
const startTime = 30 * time.Second

// ErrClosed is what a Workload's methods return after Close; it is net.ErrClosed
// too.
var ErrClosed = fmt.Errorf("parley: the workload is closed: %w", net.ErrClosed)

// A Workload is this process as a member of the mesh. The zero value is ready
// for use: it starts with its first use, may call others, and may be called by
// nobody. Set the fields before that and do not copy it. It is safe for
// concurrent use.
type Workload struct {
	// Socket is the path of the agent's Workload API, or the same as a URL,
	// unix:///run/parley/workload.sock. Empty means the environment variable
	// SPIFFE_ENDPOINT_SOCKET (SPIFFE_Workload_Endpoint.md section 4), and without
	// it DefaultSocket.
	Socket string

	// Allow are the callers that are let in: services of this trust domain
	// ("web"), gateways ("gateway/edge"), or whole SPIFFE IDs
	// ("spiffe://partner.example/billing"). Empty means nobody.
	Allow []string

	// Logger gets refused callers and trouble with the agent. Nil logs nothing, but
	// for one line to slog.Default where the start has to wait for an identity.
	Logger *slog.Logger

	once    sync.Once
	turn    chan struct{}   // held to start and to close
	ended   context.Context // ends with Close
	end     context.CancelFunc
	running atomic.Pointer[running]
}

// running is what a started Workload has.
type running struct {
	src   *client.Client
	clk   clock.Clock
	log   *slog.Logger
	allow map[identity.ID]bool
	peers verified
	told  authn.Verifier
	deny  *denier

	mu      sync.Mutex // guards what follows
	closed  bool
	open    map[*listener]bool
	callees map[identity.ID]*callee
}

// Start waits until the agent has an identity for this process, as long as ctx
// lasts; its error then says why there is none. Calling it is optional: Dial and
// the first request of an HTTPClient do so within their context and 30 seconds,
// and Listen within 30 seconds. A failed Start may be tried again.
func (w *Workload) Start(ctx context.Context) error {
	_, err := w.start(ctx)
	return err
}

// started is start where nobody said how long to wait: no call may hang for ever
// because the process is not in the mesh file.
func (w *Workload) started(ctx context.Context) (*running, error) {
	ctx, done := context.WithTimeout(ctx, startTime)
	defer done()
	return w.start(ctx)
}

func (w *Workload) prepare() {
	w.once.Do(func() {
		w.turn = make(chan struct{}, 1)
		w.ended, w.end = context.WithCancel(context.Background())
	})
}

func (w *Workload) start(ctx context.Context) (*running, error) {
	w.prepare()
	if w.ended.Err() != nil {
		return nil, ErrClosed
	}
	if r := w.running.Load(); r != nil {
		return r, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.ended, cancel)()
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, w.why(ctx.Err())
	}
	defer func() { <-w.turn }()
	if w.ended.Err() != nil {
		return nil, ErrClosed
	}
	if r := w.running.Load(); r != nil {
		return r, nil
	}
	r, err := w.run(ctx)
	if err != nil {
		return nil, w.why(err)
	}
	w.running.Store(r)
	return r, nil
}

func (w *Workload) run(ctx context.Context) (*running, error) {
	log := w.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	src, err := client.Dial(ctx, client.Config{Socket: w.socket(), Clock: clock.System{}, Logger: log, Waiting: w.waiting})
	if err != nil {
		return nil, err
	}
	r := &running{
		src: src, clk: clock.System{}, log: log,
		allow: map[identity.ID]bool{}, open: map[*listener]bool{}, callees: map[identity.ID]*callee{},
	}
	r.deny = newDenier(r)
	for _, name := range w.Allow {
		id, err := r.named(name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("who may call: %w", err), r.close())
		}
		r.allow[id] = true
	}
	return r, nil
}

// waiting says why nothing happens yet: half a minute of silence looks like a program
// that hangs.
func (w *Workload) waiting(f *fault.Fault) {
	log := w.Logger
	if log == nil {
		log = slog.Default()
	}
	log.Warn("waiting for an identity", "error", f.Error(), "hint", f.Hint)
}

func (w *Workload) socket() string {
	s := w.Socket
	if s == "" {
		s = client.EnvSocket()
	}
	if s == "" {
		s = DefaultSocket
	}
	if strings.HasPrefix(s, "/") {
		s = "unix://" + (&url.URL{Path: s}).EscapedPath()
	}
	return s
}

// why is err, or that the Workload was closed, which ended everything.
func (w *Workload) why(err error) error {
	if w.ended.Err() != nil {
		return ErrClosed
	}
	for _, f := range fault.All(err) {
		return fmt.Errorf("parley: %w; %s", err, f.Hint)
	}
	return fmt.Errorf("parley: %w", err)
}

// Close ends every listener and idle connection and gives up the identity.
// Connections that were accepted or dialled are their owners' to close.
func (w *Workload) Close() error {
	w.prepare()
	w.end()
	w.turn <- struct{}{} // a start under way has ended
	defer func() { <-w.turn }()
	if r := w.running.Load(); r != nil {
		return r.close()
	}
	return nil
}

// ID is this process's SPIFFE ID, empty before the Workload has started.
func (w *Workload) ID() string {
	if r := w.running.Load(); r != nil {
		return r.id().String()
	}
	return ""
}

func (r *running) id() identity.ID { return r.src.ID() }

// named is the identity of a member of our trust domain, or of anybody by SPIFFE ID.
func (r *running) named(name string) (identity.ID, error) {
	if strings.Contains(name, "://") {
		id, err := identity.ParseID(name)
		if err == nil && id.Path() == "" {
			err = fmt.Errorf("%q: %w", name, identity.ErrNoPath)
		}
		return id, err
	}
	return identity.NewID(r.id().TrustDomain(), "/"+name)
}

func (r *running) close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	var all []io.Closer
	for l := range r.open {
		all = append(all, l)
	}
	for _, c := range r.callees {
		all = append(all, c)
	}
	r.mu.Unlock()
	var errs []error
	for _, c := range append(all, r.deny, r.src) {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
