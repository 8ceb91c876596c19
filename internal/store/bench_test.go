package store_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/store"
	"github.com/parleymesh/parley/internal/store/xtest"
	"golang.org/x/sys/unix"
)

// busy is the CPU time that this process has used. The machine may be shared: this
// counts what the clock on the wall does not.
func busy(b *testing.B) time.Duration {
	b.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// traffic are n access events of a log from index first on as sidecars write them,
// about 750 bytes each: each of 20 services calls three others, and the entries are by
// turns the callee's end and the caller's.
func traffic(b *testing.B, log string, first, n int) []audit.Entry {
	b.Helper()
	all := make([]audit.Entry, n)
	for i := range all {
		k := first + i
		from, to := fmt.Sprintf("service-%d", k%20), fmt.Sprintf("service-%d", (k%20+1+k/20%3)%20)
		at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC).Add(time.Duration(k) * 50 * time.Microsecond)
		id := func(name string) identity.ID {
			v, err := identity.ParseID("spiffe://shop.example/" + name)
			if err != nil {
				b.Fatal(err)
			}
			return v
		}
		e := &audit.Event{
			ID: audit.NewID(at), Time: at, Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed, Host: "host-1", Reporter: "agent",
			Call: &audit.CallFacts{
				End: "inbound", Protocol: "http", Listener: to + ".inbound", RequestID: audit.NewID(at), Method: "GET", Host: to,
				Path: fmt.Sprintf("/orders/%d/items", k), Status: 200, BytesOut: 1432, Duration: int64(900 + k%400),
			},
			Caller:   &audit.Party{Service: from, ID: id(from), Address: "10.0.0.17:51034"},
			Callee:   &audit.Party{Service: to, ID: id(to)},
			Decision: &audit.Decision{Rule: from + "-to-" + to, Revision: 17},
			TLS:      &audit.TLS{Version: "1.3", Group: "X25519MLKEM768", ALPN: "h2", Connection: "c81f0a"},
			Trace:    &audit.Trace{TraceID: fmt.Sprintf("%032x", k/2), SpanID: fmt.Sprintf("%016x", k)},
		}
		if k%2 == 1 {
			e.Call.End, e.Call.Listener, e.TLS, e.UpstreamTLS = "outbound", from+".calls."+to, nil, e.TLS
		}
		all[i] = xtest.Entry(b, log, k, e)
	}
	return all
}

// BenchmarkCollect is the budget of the server's log: 20,000 events a second on two
// cores, with everything that an entry brings with it.
func BenchmarkCollect(b *testing.B) {
	s := xtest.Open(b, file(filepath.Join(b.TempDir(), "parley.db")), clock.System{})
	const batch = 256
	next, size := 0, 0
	var used time.Duration
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		entries := traffic(b, "bench", next, batch)
		for _, e := range entries {
			size += len(e.Body)
		}
		before := busy(b)
		b.StartTimer()
		if err := s.Collect(b.Context(), "bench", entries); err != nil {
			b.Fatal(err)
		}
		used += busy(b) - before
		next += batch
	}
	report(b, next, used)
	b.ReportMetric(float64(size)/float64(next), "B/event")
}

func report(b *testing.B, events int, used time.Duration) {
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(used.Nanoseconds())/float64(events)/1e3, "us-CPU/event")
}

// BenchmarkLogs are security events, each durable before its change is acknowledged.
func BenchmarkLogs(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := xtest.Open(b, file(filepath.Join(b.TempDir(), "parley.db")), clock.System{})
			before := busy(b)
			var all sync.WaitGroup
			next := make(chan struct{})
			for range writers {
				all.Go(func() { logs(b, s, next) })
			}
			for range b.N {
				next <- struct{}{}
			}
			close(next)
			all.Wait()
			report(b, b.N, busy(b)-before)
		})
	}
}

func logs(b *testing.B, s *store.Store, next <-chan struct{}) {
	for range next {
		if err := s.Log(b.Context(), xtest.Event(audit.SVIDIssued)); err != nil {
			b.Error(err)
			return
		}
	}
}

// BenchmarkProve is the proof of one event at a million: at most a millisecond.
func BenchmarkProve(b *testing.B) {
	const page = 10_000
	events := 1_000_000
	if testing.Short() {
		events /= 10
	}
	s := xtest.Open(b, file(filepath.Join(b.TempDir(), "parley.db")), clock.System{})
	model := traffic(b, "bench", 0, page)
	var tree audit.Tree
	for next := 0; next < events; next += page {
		batch := make([]audit.Entry, page)
		for i, e := range model {
			// As long as the others, and another one: an id of its own.
			e.Index = uint64(next + i)
			e.Body = bytes.Replace(e.Body, []byte(`"request_id":"`), fmt.Appendf(nil, `"request_id":"%08d-`, next+i), 1)
			e.Body = append(fmt.Appendf([]byte(`{"schema":1,"id":"`), "bench-%d", next+i), e.Body[len(`{"schema":1,"id":"`)+26:]...)
			e.Leaf = audit.LeafHash(e.Body)
			tree.Append(e.Leaf)
			batch[i] = e
		}
		if err := s.Collect(b.Context(), "bench", batch); err != nil {
			b.Fatal(err)
		}
	}
	k := xtest.Key("bench")
	st := collect.Statement{Host: "host1", Key: k.Verifier().String(), Note: k.Sign(nil, tree.Size(), tree.Root())}
	if _, err := s.Witness(b.Context(), "bench", st); err != nil {
		b.Fatal(err)
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Prove(b.Context(), fmt.Sprintf("bench-%d", n*7919%events)); err != nil {
			b.Fatal(err)
		}
		n++
	}
}
