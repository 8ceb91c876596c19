// Package resolve keeps the addresses of the endpoints that the mesh file lists by
// DNS name: it asks again and again in the background, so that no call waits for an
// answer, and keeps the last answer where there is no other.
//
// It refuses to trust: whoever answers at an address proves by mutual TLS who it is,
// so a wrong answer of DNS makes calls fail, and nothing else.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/metric"
)

const (
	// every is the time from one look-up of a name to the next, and longer by up to a
	// tenth, by lot. What the system's resolver answers has no time to live of its own.
	every = 10 * time.Second
	// retry is the same after a failure, doubled with each up to every.
	retry = time.Second
	// patience bounds one look-up.
	patience = 5 * time.Second
	// maxAddresses is how many addresses of one name are used.
	maxAddresses = 32
)

// ErrEmpty says that the answer had no address.
var ErrEmpty = errors.New("the answer has no address that can be called")

// Config is what Names work with. All of it is required.
type Config struct {
	// Lookup asks for all addresses of a host name: net.Resolver.LookupNetIP.
	Lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	// Changed is called when the addresses of a name are others.
	Changed func()
	Clock   clock.Clock
	Logger  *slog.Logger
	Metrics *metric.Registry
}

// Names are the names that a host calls. They are safe for concurrent use.
type Names struct {
	cfg     Config
	lookups *metric.CounterFamily

	ctx    context.Context // ends the keepers
	cancel context.CancelFunc
	wg     sync.WaitGroup // one a keeper

	mu    sync.Mutex // guards what follows, and what each keeper knows
	known map[string]*keeper
}

// A keeper keeps one name.
type keeper struct {
	name, host, port string
	cancel           context.CancelFunc
	asked            chan struct{} // closed after the first look-up

	addresses []string
	err       error // of the last look-up
}

// A Problem is a name of which the last look-up failed.
type Problem struct {
	Name string // host:port
	Err  error
	// Kept is how many addresses of an earlier answer are used.
	Kept int
}

// New knows no name yet. Stop it.
func New(cfg Config) *Names {
	n := &Names{
		cfg: cfg, known: map[string]*keeper{},
		lookups: cfg.Metrics.Counter("parley_endpoint_lookups_total", "Look-ups of endpoints that are DNS names, by name and result.", "name", "result"),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// Apply makes the names those of list, each host:port. One that stays keeps its
// addresses. The channels are closed when a name that is new was asked for once.
func (n *Names) Apply(list []string) (asked []<-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.known
	n.known = map[string]*keeper{}
	for _, name := range list {
		k := old[name]
		if k == nil {
			k = &keeper{name: name, asked: make(chan struct{})}
			k.host, k.port, _ = net.SplitHostPort(name)
			var ctx context.Context
			ctx, k.cancel = context.WithCancel(n.ctx)
			n.wg.Go(func() { n.keep(ctx, k) })
		}
		n.known[name] = k
		asked = append(asked, k.asked)
	}
	for name, k := range old {
		if n.known[name] != k {
			k.cancel()
		}
	}
	return asked
}

// Lookup is where name leads, each host:port, as far as that is known. It does not
// wait.
func (n *Names) Lookup(name string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if k := n.known[name]; k != nil {
		return k.addresses
	}
	return nil
}

// Problems are the names of which the last look-up failed, in order of name.
func (n *Names) Problems() (all []Problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range n.known {
		if k.err != nil {
			all = append(all, Problem{k.name, k.err, len(k.addresses)})
		}
	}
	slices.SortFunc(all, func(a, b Problem) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Stop ends every look-up and waits for it.
func (n *Names) Stop() {
	n.cancel()
	n.wg.Wait()
}

// keep looks k up until ctx ends.
func (n *Names) keep(ctx context.Context, k *keeper) {
	for wait := retry; ; {
		addresses, err := n.ask(ctx, k)
		if ctx.Err() != nil {
			return
		}
		n.took(k, addresses, err)
		pause := every
		if err != nil {
			pause, wait = wait, min(2*wait, every)
		} else {
			wait = retry
		}
		if n.cfg.Clock.Sleep(ctx, pause+rand.N(pause/10)) != nil {
			return
		}
	}
}

// ask looks k up once.
func (n *Names) ask(ctx context.Context, k *keeper) ([]string, error) {
	ctx, done := context.WithTimeout(ctx, patience)
	defer done()
	ips, err := n.cfg.Lookup(ctx, "ip", k.host)
	if err != nil {
		return nil, err
	}
	all := make([]string, 0, len(ips))
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.IsValid() && !ip.IsUnspecified() && !ip.IsMulticast() {
			all = append(all, net.JoinHostPort(ip.String(), k.port))
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	switch {
	case len(all) == 0:
		return nil, ErrEmpty
	case len(all) > maxAddresses:
		return all[:maxAddresses], fmt.Errorf("the answer has %d addresses, and %d are used", len(all), maxAddresses)
	}
	return all, nil
}

// took keeps what a look-up of k came to.
func (n *Names) took(k *keeper, addresses []string, err error) {
	n.mu.Lock()
	said := k.err
	k.err = err
	changed := len(addresses) > 0 && !slices.Equal(addresses, k.addresses)
	if changed {
		k.addresses = addresses
	}
	kept := len(k.addresses)
	n.mu.Unlock()
	switch {
	case err != nil && (said == nil || said.Error() != err.Error()):
		n.cfg.Logger.Warn("an endpoint's name cannot be looked up", "name", k.name, "addresses_in_use", kept, "error", err)
	case err == nil && said != nil:
		n.cfg.Logger.Info("an endpoint's name is looked up again", "name", k.name, "addresses_in_use", kept)
	}
	result := "ok"
	if err != nil {
		result = "failed"
	}
	n.lookups.With(k.name, result).Inc()
	if changed {
		n.cfg.Changed()
	}
	select {
	case <-k.asked:
	default:
		close(k.asked)
	}
}
