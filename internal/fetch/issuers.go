package fetch

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Errors of Issuer and Newer.
var (
	// ErrUnknown says that the snapshot has no such issuer.
	ErrUnknown = errors.New("no such issuer")
	// ErrUnavailable says that the issuer's keys were never loaded, or so long ago
	// that they are not used any more. Why is in Problems.
	ErrUnavailable = errors.New("the issuer's keys are not available")
)

// Config is what Issuers work with. All of it is required.
type Config struct {
	Clock   clock.Clock
	Logger  *slog.Logger
	Metrics *metric.Registry
}

// Issuers keep the keys of every issuer of a snapshot. They are safe for
// concurrent use.
type Issuers struct {
	cfg     Config
	fetches *metric.CounterFamily

	ctx    context.Context // ends the keepers
	cancel context.CancelFunc
	wg     sync.WaitGroup // one a keeper

	mu    sync.Mutex // held while keepers are replaced
	byURL atomic.Pointer[map[string]*keeper]
}

// NewIssuers know no issuer yet. Stop them.
func NewIssuers(cfg Config) *Issuers {
	s := &Issuers{
		cfg:     cfg,
		fetches: cfg.Metrics.Counter("parley_jwks_loads_total", "Attempts to load an issuer's keys, by issuer and result.", "issuer", "result"),
	}
	s.byURL.Store(&map[string]*keeper{})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Apply makes the issuers those of list. One that stays as it was keeps its keys;
// one that is new, or changed in any way, has none until they are loaded, which
// Apply does not wait for.
func (s *Issuers) Apply(list []snapshot.Issuer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, next := *s.byURL.Load(), map[string]*keeper{}
	for _, conf := range list {
		if k := old[conf.URL]; k != nil && reflect.DeepEqual(k.conf, conf) {
			next[conf.URL] = k
			continue
		}
		k := newKeeper(s, conf)
		next[conf.URL] = k
		if conf.Keys != nil {
			_ = k.load() // they are here, and never change
			continue
		}
		s.wg.Go(k.run)
	}
	s.byURL.Store(&next)
	for url, k := range old {
		if next[url] != k {
			k.cancel()
		}
	}
}

// Stop ends every load and waits for it.
func (s *Issuers) Stop() {
	s.cancel()
	s.wg.Wait()
}

// Issuer is the issuer of that URL with the keys that it has now. It does not
// wait. The error is ErrUnknown or ErrUnavailable.
func (s *Issuers) Issuer(url string) (*jose.Issuer, error) {
	k := (*s.byURL.Load())[url]
	if k == nil {
		return nil, ErrUnknown
	}
	return k.current()
}

// Newer is the same for a token whose key than, which may be nil, does not have:
// it has the keys loaded again, unless that was done a moment ago, and waits for
// them, for two seconds at most.
func (s *Issuers) Newer(url string, than *jose.Issuer) (*jose.Issuer, error) {
	k := (*s.byURL.Load())[url]
	if k == nil {
		return nil, ErrUnknown
	}
	if i, err := k.current(); err == nil && i != than {
		return i, nil
	}
	k.refresh()
	return k.current()
}

// A Problem is an issuer whose keys could not be loaded the last time, or some of
// whose keys are not used.
type Problem struct {
	// Name is the issuer's in the mesh file.
	Name string
	// Closed says that its tokens are refused now. Otherwise the keys of before
	// are used until Until.
	Closed bool
	Until  time.Time
	// Err is why.
	Err error
}

// Problems are those there are, in order of name.
func (s *Issuers) Problems() (out []Problem) {
	for _, k := range *s.byURL.Load() {
		if p := k.problem(); p != nil {
			out = append(out, *p)
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// URLs are the issuers there are, in order.
func (s *Issuers) URLs() []string { return slices.Sorted(maps.Keys(*s.byURL.Load())) }
