// Package audit_test measures what the audit log costs where it is written: on the
// request path, and from there to a signed checkpoint.
package audit_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/spool"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A sidecar is what of one a call passes that is decided and recorded: a gate over
// the agent's log.
type sidecar struct {
	*gate.Gate
	log *spool.Spool
	req call.Request
}

func newSidecar(b *testing.B) *sidecar {
	b.Helper()
	td, err := identity.ParseTrustDomain("shop.example")
	if err != nil {
		b.Fatal(err)
	}
	id := func(name string) identity.ID {
		v, err := identity.NewID(td, "/"+name)
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
	web, orders := id("web"), id("orders")
	s := &sidecar{}
	s.log, err = spool.Open(spool.Config{
		Dir: b.TempDir(), Log: "host-1", SegmentSize: 64 << 20, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler),
		Key: func(log string) (*checkpoint.Signer, error) { return checkpoint.GenerateKey("shop.example/" + log) },
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.log.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, s.log.Close()); err != nil {
			b.Error(err)
		}
	})
	s.Gate = gate.New(gate.Config{Host: "host-1", Recorder: s.log, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler), Metrics: metric.NewRegistry()})
	trust := &identity.Trust{
		Epoch: 1, Bundles: map[identity.TrustDomain]*identity.Bundle{td: {TrustDomain: td}},
		Members: map[identity.ID]bool{web: true, orders: true}, Banned: map[identity.ID]bool{},
	}
	s.SetTrust(func() *identity.Trust { return trust })
	err = s.Apply(&snapshot.Snapshot{
		Version: snapshot.Version, Revision: 7, TrustDomain: td, Members: []identity.ID{web, orders},
		Services: []snapshot.Service{{Name: "orders", ID: orders}, {Name: "web", ID: web}},
		Rules:    []policy.Rule{{ID: "orders.allow[0]", Target: "orders", From: []identity.ID{web}, Methods: []string{"GET"}, Paths: []string{"/orders/**"}}},
	})
	if err != nil {
		b.Fatal(err)
	}
	s.req = call.Request{
		End: call.Inbound, Protocol: call.HTTP, Listener: "orders.inbound", Local: "orders", LocalID: orders, Target: "orders", PolicyTarget: "orders",
		Method: "GET", Host: "orders", Path: "/orders/4711/items", Header: http.Header{}, RequestID: strings.Repeat("4", 32),
		Trace:  call.Trace{TraceID: strings.Repeat("a", 32), ParentID: strings.Repeat("b", 16), SpanID: strings.Repeat("c", 16)},
		Remote: netip.MustParseAddrPort("10.0.0.9:40000"), RemoteText: "10.0.0.9:40000",
		Peer:  call.Peer{ID: web, Serial: strings.Repeat("1", 32), Fingerprint: strings.Repeat("2", 64), NotAfter: time.Now().Add(time.Hour)},
		TLS:   call.TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", ALPN: "h2", Connection: strings.Repeat("3", 32)},
		Start: time.Now(),
	}
	return s
}

// call is one call, of which the event is recorded or not.
func (s *sidecar) call(b *testing.B, recorded bool) {
	if !s.Check(&s.req).Allow {
		b.Fatal("denied")
	}
	if !recorded {
		s.req.Verdict.ID = "" // the gate finds nothing to record
	}
	s.Done(&s.req, call.Outcome{Status: 200, BytesOut: 1432, Upstream: "127.0.0.1:8080", End: s.req.Start.Add(900 * time.Microsecond)})
}

// BenchmarkRequestPath is what an access event adds to a request: the difference of
// calls that are recorded to calls that are not, by turns, in CPU of the thread that
// makes them, as event-ns/op. Row P8 of the budget: 500 ns. What a call allocates
// beside is its id.
func BenchmarkRequestPath(b *testing.B) {
	s := newSidecar(b)
	var with, without time.Duration
	const turn = 1000 // and 50 ms for the sealer: 20,000 calls a second
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if n++; n%turn != 0 {
			continue
		}
		began := used(b, unix.CLOCK_THREAD_CPUTIME_ID)
		for range turn {
			s.call(b, true)
		}
		middle := used(b, unix.CLOCK_THREAD_CPUTIME_ID)
		for range turn {
			s.call(b, false)
		}
		with += middle - began
		without += used(b, unix.CLOCK_THREAD_CPUTIME_ID) - middle
		s.seal(b)
	}
	if turns := n / turn * turn; turns > 0 {
		b.ReportMetric(float64(with-without)/float64(turns), "event-ns/op")
	}
}

// seal waits until what was recorded is hashed and signed, and lets go of it.
func (s *sidecar) seal(b *testing.B) {
	b.Helper()
	next := s.log.Next()
	if err := s.log.Wait(b.Context(), next-1); err != nil {
		b.Fatal(err)
	}
	if err := s.log.Discard(next); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkEvent is the CPU of an event from the gate to its signed checkpoint, in
// batches of 100: 2,000 events a second that are sealed every 50 ms. It is what the
// whole process used, the kernel's part of the sync included, less calls that are not
// recorded. Row P13: 3 us.
func BenchmarkEvent(b *testing.B) {
	s := newSidecar(b)
	var with, without time.Duration
	const turn = 100
	n := 0
	for b.Loop() {
		if n++; n%turn != 0 {
			continue
		}
		before := used(b, unix.CLOCK_PROCESS_CPUTIME_ID)
		for range turn {
			s.call(b, true)
		}
		s.seal(b)
		middle := used(b, unix.CLOCK_PROCESS_CPUTIME_ID)
		for range turn {
			s.call(b, false)
		}
		with += middle - before
		without += used(b, unix.CLOCK_PROCESS_CPUTIME_ID) - middle
	}
	if turns := n / turn * turn; turns > 0 {
		b.ReportMetric(float64(with-without)/float64(turns), "event-cpu-ns/op")
	}
}

// used is the CPU that this process, or this thread, has used so far. The kernel brings
// it up to date for this question, which it does not for getrusage.
func used(b *testing.B, clock int32) time.Duration {
	b.Helper()
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}
