package resolve_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/resolve"
)

// A zone answers look-ups.
type zone struct {
	mu    sync.Mutex // guards what follows
	hosts map[string][]string
	err   error
	asked int
	log   strings.Builder
}

func (z *zone) set(host string, err error, addresses ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.hosts[host], z.err = addresses, err
}

func (z *zone) lookup(_ context.Context, _, host string) (all []netip.Addr, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	for _, a := range z.hosts[host] {
		all = append(all, netip.MustParseAddr(a))
	}
	return all, z.err
}

func (z *zone) Write(line []byte) (int, error) { return z.log.Write(line) }

// start starts names over z in a bubble of synctest, and counts their changes.
func start(t *testing.T, z *zone, lookup func(context.Context, string, string) ([]netip.Addr, error)) (*resolve.Names, *atomic.Int32) {
	t.Helper()
	changes := new(atomic.Int32)
	n := resolve.New(resolve.Config{
		Lookup: lookup, Changed: func() { changes.Add(1) }, Clock: clock.System{},
		Logger: slog.New(slog.NewTextHandler(z, nil)), Metrics: metric.NewRegistry(),
	})
	t.Cleanup(n.Stop)
	return n, changes
}

func wantAt(t *testing.T, n *resolve.Names, what string, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := n.Lookup("site.internal:9443"); !slices.Equal(got, want) {
		t.Errorf("%s: at %v, want %v", what, got, want)
	}
}

const site = "site.internal:9443"

func TestAnswersAreFollowed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		z := &zone{hosts: map[string][]string{"site.internal": {"10.0.0.2", "10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "0.0.0.0", "ff02::1"}}}
		n, changes := start(t, z, z.lookup)
		for _, c := range n.Apply([]string{site}) {
			<-c
		}
		wantAt(t, n, "first", "10.0.0.1:9443", "10.0.0.2:9443", "[2001:db8::1]:9443")
		z.set("site.internal", nil, "10.0.0.3")
		time.Sleep(12 * time.Second)
		wantAt(t, n, "moved", "10.0.0.3:9443")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := changes.Load(); got != 2 {
			t.Errorf("told of %d changes", got)
		}
		if z.asked < 6 || z.asked > 9 {
			t.Errorf("asked %d times in 72 seconds", z.asked)
		}
		if n.Lookup("other.internal:1") != nil || len(n.Problems()) > 0 {
			t.Errorf("problems %v", n.Problems())
		}
		n.Apply(nil)
		before := z.asked
		time.Sleep(time.Minute)
		wantAt(t, n, "removed")
		if z.asked != before {
			t.Error("still asked for")
		}
	})
}

// What was known stays where there is no answer, or an empty one, and that is said.
func TestFailuresKeepTheLastAnswer(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{errors.New("no such host"), nil} {
		synctest.Test(t, func(t *testing.T) {
			z := &zone{hosts: map[string][]string{"site.internal": {"10.0.0.1"}}}
			n, changes := start(t, z, z.lookup)
			n.Apply([]string{site})
			wantAt(t, n, "first", "10.0.0.1:9443")
			z.set("site.internal", failure)
			time.Sleep(time.Minute)
			wantAt(t, n, "failed", "10.0.0.1:9443")
			p := n.Problems()
			if len(p) != 1 || p[0].Name != site || p[0].Kept != 1 || failure == nil && !errors.Is(p[0].Err, resolve.ErrEmpty) {
				t.Errorf("problems: %+v", p)
			}
			if got := strings.Count(z.log.String(), "cannot be looked up"); got != 1 || changes.Load() != 1 {
				t.Errorf("said %d times, changed %d times:\n%s", got, changes.Load(), z.log.String())
			}
			z.set("site.internal", nil, "10.0.0.1")
			time.Sleep(12 * time.Second)
			synctest.Wait()
			if p := n.Problems(); len(p) > 0 || !strings.Contains(z.log.String(), "looked up again") {
				t.Errorf("afterwards: %+v\n%s", p, z.log.String())
			}
		})
	}
}

// A name that leads nowhere at first is tried sooner, keeps nobody waiting for long,
// and a resolver that does not answer is not waited for for ever.
func TestFirstLookups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var late atomic.Bool
		n, _ := start(t, &zone{}, func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
			if late.Load() {
				return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})
		began := time.Now()
		asked := n.Apply([]string{site})
		<-asked[0]
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("the first took %s", took)
		}
		late.Store(true)
		time.Sleep(1200 * time.Millisecond)
		wantAt(t, n, "soon", "10.0.0.1:9443")
		if again := n.Apply([]string{site}); again[0] != asked[0] {
			t.Error("a name that stays is waited for again")
		}
	})
}

func TestManyAddresses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		z := &zone{hosts: map[string][]string{}}
		for i := range 100 {
			z.hosts["site.internal"] = append(z.hosts["site.internal"], fmt.Sprintf("10.0.1.%d", i))
		}
		n, _ := start(t, z, z.lookup)
		n.Apply([]string{site})
		synctest.Wait()
		if got := n.Lookup(site); len(got) != 32 {
			t.Errorf("%d addresses", len(got))
		}
		if p := n.Problems(); len(p) != 1 || !strings.Contains(p[0].Err.Error(), "100 addresses") {
			t.Errorf("problems %+v", p)
		}
	})
}
