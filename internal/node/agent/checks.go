package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/health"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/snapshot"
)

// checks ask the applications whose health the mesh file says how to ask, each at its
// own pace.
type checks struct {
	clk    clock.Clock
	logger *slog.Logger
	ask    func(context.Context, *snapshot.Inbound) error
	// changed is told when an application became healthy, or is no more.
	changed broadcast
	results *metric.CounterFamily
	healthy *metric.GaugeFamily

	ctx    context.Context // ends the questions
	cancel context.CancelFunc
	wg     sync.WaitGroup // one an application

	mu  sync.Mutex // guards all, and the states in it
	all map[string]*check
}

// A check is one application that is asked.
type check struct {
	appState
	service string
	in      snapshot.Inbound
	cancel  context.CancelFunc
	known   bool // it was asked once
	row     int  // of answers that speak against its state
}

func newChecks(clk clock.Clock, logger *slog.Logger, metrics *metric.Registry) *checks {
	c := &checks{clk: clk, logger: logger, ask: askApp, all: map[string]*check{}}
	c.results = metrics.Counter("parley_health_checks_total", "Questions to applications whether they can take calls, by service and result.", "service", "result")
	c.healthy = metrics.Gauge("parley_service_healthy", "Whether the application of a service can take calls, as its health says: 1 or 0.", "service")
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// apply asks the applications of s. One that stays as it was keeps its state.
func (c *checks) apply(s *snapshot.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.all
	c.all = map[string]*check{}
	for _, svc := range s.Services {
		if svc.Inbound == nil || svc.Inbound.Health == nil {
			continue
		}
		k := old[svc.Name]
		if k == nil || !sameQuestion(&k.in, svc.Inbound) {
			k = &check{service: svc.Name, in: *svc.Inbound}
			var ctx context.Context
			ctx, k.cancel = context.WithCancel(c.ctx)
			c.wg.Go(func() { c.keep(ctx, k) })
		}
		c.all[svc.Name] = k
		c.healthy.Set(func() float64 { return c.gauge(k) }, svc.Name)
	}
	for name, k := range old {
		if c.all[name] != k {
			k.cancel()
		}
		if c.all[name] == nil {
			c.healthy.Remove(name)
		}
	}
}

func sameQuestion(a, b *snapshot.Inbound) bool {
	return a.App == b.App && a.AppHTTP2 == b.AppHTTP2 && *a.Health == *b.Health
}

func (c *checks) gauge(k *check) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.known && k.Down == nil {
		return 1
	}
	return 0
}

// stop ends every question and waits for it.
func (c *checks) stop() {
	c.cancel()
	c.wg.Wait()
}

// state is where the application of service stands, false where nobody asks it.
func (c *checks) state(service string) (appState, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.all[service]
	if k == nil {
		return appState{}, false
	}
	if !k.known {
		return appState{Down: fault.New(fault.AppUnhealthy, "", "the application of %s has not been asked yet", service)}, true
	}
	return k.appState, true
}

// keep asks k's application until ctx ends.
func (c *checks) keep(ctx context.Context, k *check) {
	for {
		err := c.ask(ctx, &k.in)
		if ctx.Err() != nil {
			return // it says nothing
		}
		result := "ok"
		if err != nil {
			result = "failed"
		}
		c.results.With(k.service, result).Inc()
		if c.took(k, err) {
			c.changed.send()
		}
		every := k.in.Health.Interval
		if c.clk.Sleep(ctx, every-every/20+rand.N(every/10)) != nil {
			return
		}
	}
}

// took takes an answer, and says whether by it the state is another. The first one
// of all decides alone.
func (c *checks) took(k *check, err error) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, was := !k.known, k.Down
	k.known = true
	why := (*fault.Fault)(nil)
	if err != nil {
		why = unhealthy(k.service, &k.in, err)
	}
	if !first && (err != nil) == (was != nil) {
		k.row, k.Down = 0, why // the newest reason
		return false
	}
	k.row++
	need := k.in.Health.Unhealthy
	if err == nil {
		need = k.in.Health.Healthy
	}
	if !first && k.row < need {
		return false
	}
	k.row, k.Down = 0, why
	switch {
	case err != nil:
		c.logger.Warn("an application cannot take calls", "service", k.service, "error", why)
	case !first:
		c.logger.Info("an application can take calls again", "service", k.service)
	}
	k.Seen = k.Seen || err == nil
	return true
}

// askApp asks once.
func askApp(ctx context.Context, in *snapshot.Inbound) error {
	if in.Health.Kind != snapshot.HealthTCP {
		return health.Check(ctx, in.App, in.AppHTTP2, in.Health)
	}
	if listening(in.App) {
		return nil
	}
	ctx, done := context.WithTimeout(ctx, in.Health.Timeout)
	defer done()
	return tryApp(ctx, in.App)
}

// unhealthy is what an answer means, and how to ask oneself.
func unhealthy(service string, in *snapshot.Inbound, err error) *fault.Fault {
	h, hint, what := in.Health, "", "the port"
	at, socket := strings.CutPrefix(in.App, "unix:")
	flags := ""
	if socket {
		flags = "--unix-socket " + at + " "
		at = "localhost"
	}
	switch h.Kind {
	case snapshot.HealthHTTP:
		if in.AppHTTP2 {
			flags += "--http2-prior-knowledge "
		}
		what = "GET " + h.Path
		hint = fmt.Sprintf("ask it yourself: curl -i %shttp://%s%s", flags, at, h.Path)
	case snapshot.HealthGRPC:
		what = "grpc.health.v1.Health/Check"
		hint = fmt.Sprintf(`ask it yourself: grpcurl -plaintext -d '{"service":%q}' %s grpc.health.v1.Health/Check`, h.Service, at)
	default:
		return appDown(service, in.App, err)
	}
	return fault.New(fault.AppUnhealthy, hint, "%s of %s, the application of %s: %v", what, in.App, service, cause(err))
}
