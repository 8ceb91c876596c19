// Package parley is the Go SDK of Parley: a program that uses it speaks mutual
// TLS itself, with the identity that the agent of its host gives it, and needs
// no sidecar.
//
// A program is one Workload:
//
//	w := &parley.Workload{Allow: []string{"web"}}
//	l, err := w.Listen("tcp", ":9443")
//	...
//	http.Serve(l, w.Handler(mux))
//
// and calls others by name:
//
//	client, err := w.HTTPClient("payments")
//	...
//	client.Post("https://10.0.4.9:9443/charge", "application/json", body)
//
// # Identity
//
// The credential comes from the SPIFFE Workload API: the agent asks the kernel
// which process connected and gives it the SVID of the service that it is. There
// is no secret to configure. Certificates are renewed by themselves; connections
// that are open outlive them, and new ones use the new certificate.
//
// # Who may call
//
// Allow names them; an empty Allow lets nobody in. The other side's certificate
// is verified in full on every handshake, also on resumed ones. A caller that is
// not allowed gets no byte of the program from Listen, and a 403 from Handler.
//
// # What it does not do
//
// The rules of the mesh file, its bans, and the audit log are the sidecar's: a
// program with the SDK decides by its own Allow and logs what it refuses.
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
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/workload/client"
)

// DefaultSocket is where an agent serves the Workload API if nobody says
// otherwise.
const DefaultSocket = "/run/parley/workload.sock"

// startTime bounds how long Listen, Dial and HTTPClient wait for the first
// credential where Start was not called.
const startTime = 30 * time.Second

// ErrClosed is what a Workload's methods return after Close.
var ErrClosed = errors.New("parley: the workload is closed")

// A Workload is this process as a member of the mesh. Its fields are read by the
// first method that is called and must not change after it. Methods are safe for
// concurrent use.
type Workload struct {
	// Socket is the path of the SPIFFE Workload API, or the same as a URL,
	// unix:///run/parley/workload.sock. Empty means the environment variable
	// SPIFFE_ENDPOINT_SOCKET (SPIFFE_Workload_Endpoint.md section 4), and without
	// it DefaultSocket.
	Socket string
	// Allow names who may call: services of this trust domain ("web"), gateways
	// ("gateway/edge"), or whole SPIFFE IDs. Empty means nobody.
	Allow []string
	// Logger gets what is refused and what fails in the background. Nil logs
	// nothing.
	Logger *slog.Logger

	mu      sync.Mutex // guards what follows
	source  *client.Client
	allowed map[identity.ID]bool
	dialers map[identity.ID]*mtls.Dialer
	open    map[net.Listener]struct{}
	closed  bool
}

// Start connects to the Workload API and waits for this process's first
// credential, as long as ctx lasts. The other methods call it by themselves; call
// it first to choose how long to wait. A failed Start may be tried again.
func (w *Workload) Start(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	if w.source != nil {
		return nil
	}
	source, err := client.Dial(ctx, client.Config{Socket: w.socket(), Clock: clock.System{}, Logger: w.logger()})
	if err != nil {
		return fmt.Errorf("parley: %w", err)
	}
	allowed, err := w.resolve(source)
	if err != nil {
		return errors.Join(err, source.Close())
	}
	w.source, w.allowed = source, allowed
	w.dialers, w.open = map[identity.ID]*mtls.Dialer{}, map[net.Listener]struct{}{}
	return nil
}

// started is Start where nobody called it.
func (w *Workload) started() (*client.Client, error) {
	ctx, done := context.WithTimeout(context.Background(), startTime)
	defer done()
	if err := w.Start(ctx); err != nil {
		return nil, err
	}
	return w.source, nil
}

// resolve turns the names of Allow into identities.
func (w *Workload) resolve(source identity.Source) (map[identity.ID]bool, error) {
	own, err := source.Credential()
	if err != nil {
		return nil, fmt.Errorf("parley: %w", err)
	}
	allowed := make(map[identity.ID]bool, len(w.Allow))
	for _, name := range w.Allow {
		id, err := parseID(own.ID.TrustDomain(), name)
		if err != nil {
			return nil, fmt.Errorf("parley: Allow: %w", err)
		}
		allowed[id] = true
	}
	return allowed, nil
}

// parseID is a service's name in td, or a whole SPIFFE ID.
func parseID(td identity.TrustDomain, name string) (identity.ID, error) {
	if strings.Contains(name, "://") {
		id, err := identity.ParseID(name)
		if err == nil && id.Path() == "" {
			err = fmt.Errorf("%q: %w", name, identity.ErrNoPath)
		}
		return id, err
	}
	return identity.NewID(td, "/"+name)
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
		s = "unix://" + s
	}
	return s
}

func (w *Workload) logger() *slog.Logger {
	if w.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return w.Logger
}

// ID is this process's SPIFFE ID, empty before Start.
func (w *Workload) ID() string {
	w.mu.Lock()
	source := w.source
	w.mu.Unlock()
	if source == nil {
		return ""
	}
	cred, err := source.Credential()
	if err != nil {
		return ""
	}
	return cred.ID.String()
}

// Close closes the Workload's listeners and its connection to the agent.
// Connections that were accepted or dialled stay open until they are closed.
func (w *Workload) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	var errs []error
	for l := range w.open {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if w.source != nil {
		errs = append(errs, w.source.Close())
	}
	return errors.Join(errs...)
}
