package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

const (
	// tryTime bounds one connection that is made to see whether it is taken.
	tryTime = time.Second
	// maxTries is how many of them are made at once.
	maxTries = 16
)

// An appState is where the application of a service stands.
type appState struct {
	// Down is why nothing takes its calls, nil where something does. The code is
	// fault.AppDown.
	Down *fault.Fault
	// Seen says that it was up before, at this address.
	Seen bool
}

// apps watches the applications of the snapshot. The kernel is asked whether
// anything listens: that is no connection, which an application might log or
// count. Where nothing does, one is tried, at most every lookEvery, since what the
// packet filter leads elsewhere listens nowhere here.
type apps struct {
	clk    clock.Clock
	logger *slog.Logger
	try    func(ctx context.Context, addr string) error
	// asked is where an application stands that is asked by its health.
	asked func(service string) (appState, bool)

	mu  sync.Mutex // guards all; held throughout look
	all map[string]*watchedApp
}

type watchedApp struct {
	appState
	addr  string
	tried time.Time // last, zero for never
}

func newApps(clk clock.Clock, logger *slog.Logger, asked func(service string) (appState, bool)) *apps {
	return &apps{clk: clk, logger: logger, try: tryApp, asked: asked}
}

// look brings what is known up to date and returns it, by service. A change is
// logged, once.
func (a *apps) look(ctx context.Context, s *snapshot.Snapshot) map[string]appState {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string]appState{}
	known := a.all
	a.all = map[string]*watchedApp{}
	var wg sync.WaitGroup
	places := make(chan struct{}, maxTries)
	for _, svc := range s.Services {
		if svc.Inbound == nil {
			continue
		}
		state, asked := a.asked(svc.Name)
		if asked {
			out[svc.Name] = state
		}
		if asked && (state.Down != nil || svc.Inbound.Health != nil && svc.Inbound.Health.Kind == snapshot.HealthTCP) {
			continue // nothing is worse than that
		}
		w := known[svc.Name]
		if w == nil || w.addr != svc.Inbound.App {
			w = &watchedApp{addr: svc.Inbound.App}
		}
		a.all[svc.Name] = w
		if listening(w.addr) {
			a.set(svc.Name, w, nil)
			continue
		}
		if now := a.clk.Now(); w.tried.IsZero() || now.Sub(w.tried) >= lookEvery {
			w.tried = now
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				err := a.try(ctx, w.addr)
				if ctx.Err() == nil { // otherwise it says nothing
					a.set(svc.Name, w, err)
				}
			})
		}
	}
	wg.Wait()
	for name, w := range a.all {
		out[name] = w.appState
	}
	return out
}

// set keeps how a look at w went.
func (a *apps) set(service string, w *watchedApp, err error) {
	was := w.Down
	w.Down = nil
	switch {
	case err != nil:
		w.Down = appDown(service, w.addr, err)
		if was == nil && w.Seen {
			a.logger.Warn("nothing listens for an application any more", "service", service, "error", w.Down)
		}
		return
	case was != nil && w.Seen:
		a.logger.Warn("something listens for an application again", "service", service, "address", w.addr)
	}
	w.Seen = true
}

func appDown(service, addr string, err error) *fault.Fault {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok && errors.Is(err, fs.ErrPermission) {
		return fault.Wrap(cause(err), fault.AppDown, "let the agent's user write to it: ls -l "+path, "the agent may not connect to %s, the application of %s", addr, service)
	}
	see := "ss -xlp"
	if at, err := netip.ParseAddrPort(addr); err == nil {
		see = fmt.Sprintf("ss -ltnp 'sport = :%d'", at.Port())
	}
	hint := fmt.Sprintf("start it, or correct inbound.app of %s; what listens there: %s", service, see)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.AppDown, hint, "nothing listens on %s, the application of %s", addr, service)
	}
	return fault.Wrap(cause(err), fault.AppDown, hint, "no connection to %s, the application of %s", addr, service)
}

// listening says whether a process of this host, and of the agent's network
// namespace, listens on addr.
func listening(addr string) bool {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		// A datagram socket never gets a connection to a stream socket: that it is
		// of the wrong kind is said where a process holds one, and only there.
		c, err := net.Dial("unixgram", path)
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, syscall.EPROTOTYPE)
	}
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return false
	}
	_, found, err := attest.PortOwner(at)
	return err == nil && found
}

// tryApp connects and lets go again.
func tryApp(ctx context.Context, addr string) error {
	ctx, done := context.WithTimeout(ctx, tryTime)
	defer done()
	network, at := "tcp", addr
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, at = "unix", path
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, at)
	if err != nil {
		return err
	}
	return c.Close()
}
