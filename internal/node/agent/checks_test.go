package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/snapshot"
)

func watchedBy(h *snapshot.Health) *snapshot.Snapshot {
	return &snapshot.Snapshot{Services: []snapshot.Service{
		{Name: "caller"},
		{Name: "plain", Inbound: &snapshot.Inbound{App: "127.0.0.1:1"}},
		{Name: "orders", Inbound: &snapshot.Inbound{App: "127.0.0.1:8080", Health: h}},
	}}
}

// TestChecks: the first answer decides alone, and after that as many in a row as the
// thresholds say.
func TestChecks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var well, asked atomic.Int32
		log := new(bytes.Buffer)
		metrics := metric.NewRegistry()
		c := newChecks(clock.System{}, slog.New(slog.NewTextHandler(log, nil)), metrics)
		defer c.stop()
		c.ask = func(context.Context, *snapshot.Inbound) error {
			asked.Add(1)
			if well.Load() == 1 {
				return nil
			}
			return errors.New("status 503, want 2xx")
		}
		every := &snapshot.Health{Kind: snapshot.HealthHTTP, Path: "/healthz", Interval: 10 * time.Second, Timeout: time.Second, Unhealthy: 3, Healthy: 2}
		c.apply(watchedBy(every))
		want := func(what string, up, seen bool) {
			t.Helper()
			synctest.Wait()
			if got, ok := c.state("orders"); !ok || (got.Down == nil) != up || got.Seen != seen {
				t.Errorf("%s: %+v", what, got)
			}
			gauge := "parley_service_healthy{service=\"orders\"} 0"
			if up {
				gauge = "parley_service_healthy{service=\"orders\"} 1"
			}
			if text := string(metrics.Append(nil)); !strings.Contains(text, gauge) {
				t.Errorf("%s: the metrics say %s", what, text)
			}
		}
		after := func(rounds int) { time.Sleep(time.Duration(rounds) * 10600 * time.Millisecond) }
		want("first", false, false)
		got, _ := c.state("orders")
		if f := got.Down; f.Code != fault.AppUnhealthy || !strings.Contains(f.Error(), "GET /healthz of 127.0.0.1:8080, the application of orders: status 503") || f.Hint != "ask it yourself: curl -i http://127.0.0.1:8080/healthz" {
			t.Errorf("%v\n%s", f, f.Hint)
		}
		changed := c.changed.wait()
		well.Store(1)
		after(1)
		want("once well", false, false)
		after(1)
		want("twice well", true, true)
		<-changed // somebody was told
		well.Store(0)
		after(1)
		want("once sick", true, true)
		well.Store(1)
		after(1)
		well.Store(0)
		after(2)
		want("twice sick", true, true)
		after(1)
		want("three times sick", false, true)
		for text, n := range map[string]int{"cannot take calls": 2, `level=INFO msg="an application can take calls again"`: 1} {
			if got := strings.Count(log.String(), text); got != n {
				t.Errorf("%q is logged %d times:\n%s", text, got, log)
			}
		}
		before := asked.Load()
		c.apply(watchedBy(every)) // as it was
		want("the same again", false, true)
		if asked.Load() != before {
			t.Error("it was asked anew")
		}
		other := *every
		other.Path, other.Interval = "/other", time.Second
		well.Store(1)
		c.apply(watchedBy(&other))
		want("asked otherwise", true, true) // the first answer
		c.apply(watchedBy(nil))
		synctest.Wait()
		before = asked.Load()
		time.Sleep(time.Minute)
		if _, ok := c.state("orders"); ok || asked.Load() != before {
			t.Error("it is asked still")
		}
		if _, ok := c.state("plain"); ok {
			t.Error("a service without health is asked")
		}
		if strings.Contains(string(metrics.Append(nil)), "parley_service_healthy{") {
			t.Error("a metric of what is not asked stays")
		}
	})
}

// TestNotAskedYet: before the first answer a service is not announced.
func TestNotAskedYet(t *testing.T) {
	t.Parallel()
	c := newChecks(clock.System{}, slog.New(slog.DiscardHandler), metric.NewRegistry())
	asked := make(chan struct{})
	c.ask = func(ctx context.Context, _ *snapshot.Inbound) error {
		close(asked)
		<-ctx.Done()
		return ctx.Err()
	}
	c.apply(watchedBy(&snapshot.Health{Kind: snapshot.HealthTCP, Interval: time.Second, Timeout: time.Second, Unhealthy: 1, Healthy: 1}))
	<-asked
	if got, ok := c.state("orders"); !ok || got.Down == nil || got.Seen {
		t.Errorf("%+v", got)
	}
	c.stop()
	if got, _ := c.state("orders"); got.Seen {
		t.Errorf("what was broken off counted: %+v", got)
	}
}

// TestHealthBesideThePort: the kernel's word that nothing listens does not wait for
// thresholds, and a port that answers does not make a sick application well.
func TestHealthBesideThePort(t *testing.T) {
	t.Parallel()
	l, n := counting(t, "tcp", "127.0.0.1:0")
	sick := appState{Down: fault.New(fault.AppUnhealthy, "", "sick"), Seen: true}
	state := appState{Seen: true}
	a := newApps(clock.System{}, slog.New(slog.DiscardHandler), func(string) (appState, bool) { return state, true })
	s := called(l.Addr().String())
	s.Services[1].Inbound.Health = &snapshot.Health{Kind: snapshot.HealthHTTP}
	if got := a.look(t.Context(), s)["orders"]; got.Down != nil {
		t.Errorf("well: %+v", got)
	}
	state = sick
	if got := a.look(t.Context(), s)["orders"]; got.Down == nil || got.Down.Code != fault.AppUnhealthy {
		t.Errorf("sick: %+v", got)
	}
	state = appState{Seen: true}
	l.Close()
	if got := a.look(t.Context(), s)["orders"]; got.Down == nil || got.Down.Code != fault.AppDown {
		t.Errorf("gone: %+v", got)
	}
	if n.Load() > 0 {
		t.Errorf("%d connections were made", n.Load())
	}
	s.Services[1].Inbound.Health.Kind = snapshot.HealthTCP // its thresholds decide
	if got := a.look(t.Context(), s)["orders"]; got.Down != nil {
		t.Errorf("tcp: %+v", got)
	}
}
