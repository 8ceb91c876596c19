package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/logging"
)

// Limits of the server, against clients that are slow, large or many.
const (
	maxBody       = 8 << 20
	maxHeader     = 64 << 10
	headerTimeout = 5 * time.Second
	readTimeout   = 30 * time.Second
	writeTimeout  = time.Minute
	idleTimeout   = 2 * time.Minute
)

// Config is what a Server is made of. Every field is required.
type Config struct {
	// TrustDomain is the realm that the data directory serves; a mesh file of
	// another one is refused.
	TrustDomain  identity.TrustDomain
	Revisions    Revisions
	Keys         Keys
	Bans         Bans
	Events       Events
	Evidence     Evidence
	Eraser       Eraser
	Certificates Certificates
	Collector    Collector
	Runtime      Runtime
	Prober       Prober
	Hosts        Hosts
	Logs         Logs
	Admins       Admins
	// Version is the program's.
	Version api.Version
	// Host names this machine in events.
	Host   string
	Clock  clock.Clock
	Logger *slog.Logger
}

// A Server serves the admin API to root and to the user that it runs as on a Unix
// socket, and to the administrators of the mesh file over TLS.
type Server struct {
	cfg      Config
	uid      int
	http     *http.Server
	refusals audit.Throttle[refusal]
	// changing is held by whoever changes the desired state: one at a time, so
	// that revisions are published in their order.
	changing chan struct{}
	// verifying is held by a verification: one at a time, by one identity that they ban.
	verifying chan struct{}
}

// New is a server that does not serve yet.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, uid: os.Geteuid(), changing: make(chan struct{}, 1), verifying: make(chan struct{}, 1)}
	base, stop := context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       s.connContext,
		ErrorLog:          logging.Remarks(cfg.Logger, "control"),
	}
	// A tail ends only with its context, and Shutdown waits for it.
	s.http.RegisterOnShutdown(stop)
	return s
}

// Serve answers on l until Shutdown; then it returns nil.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown closes the listeners, ends tails, and waits for the other requests
// until ctx ends; then it cuts them.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// lock waits for the right to change the desired state. An administrator who lost
// the role for it meanwhile does not get it.
func (s *Server) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case s.changing <- struct{}{}:
		if pattern, ok := ctx.Value(patternKey{}).(string); ok {
			if err := s.authorise(ctx, pattern); err != nil {
				<-s.changing
				return nil, err
			}
		}
		return func() { <-s.changing }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
