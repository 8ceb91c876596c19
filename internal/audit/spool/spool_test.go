package spool_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/spool"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"golang.org/x/sys/unix"
)

const small = 256 << 10 // the smallest segment

func config(dir string) spool.Config {
	return spool.Config{Dir: dir, Log: "host1", SegmentSize: small, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler)}
}

func open(t testing.TB, dir string) *spool.Spool {
	t.Helper()
	s, err := spool.Open(config(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// run seals in the background until the test ends.
func run(t testing.TB, s *spool.Spool) (stop func()) {
	t.Helper()
	return runBy(t, s.Run)
}

// unwatched is run for a test that knows each event of the log.
func unwatched(t testing.TB, s *spool.Spool) (stop func()) {
	t.Helper()
	return runBy(t, func(ctx context.Context) error { return spool.RunUnwatched(ctx, s) })
}

func runBy(t testing.TB, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func event(id string) *audit.Event {
	parse := func(uri string) identity.ID {
		id, err := identity.ParseID(uri)
		if err != nil {
			panic(err)
		}
		return id
	}
	return &audit.Event{
		ID: id, Time: time.Date(2026, 11, 23, 12, 0, 0, 123456000, time.UTC), Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed,
		Reason: "allowed", Host: "host1", Reporter: "agent",
		Call: &audit.CallFacts{
			End: "inbound", Protocol: "http", Listener: "orders.inbound", RequestID: "0123456789abcdef",
			Method: "GET", Host: "orders", Path: "/orders/7/items", Status: 200, BytesOut: 512, Duration: 1234, Upstream: "127.0.0.1:8080",
		},
		Caller:   &audit.Party{Service: "web", ID: parse("spiffe://shop.example/web"), Serial: "5f3a9c0d1e2b", Address: "10.0.0.7:40112"},
		Callee:   &audit.Party{Service: "orders", ID: parse("spiffe://shop.example/orders")},
		Decision: &audit.Decision{Rule: "orders.allow[0]", Revision: 17},
		TLS:      &audit.TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", ALPN: "h2", Connection: "00112233445566778899aabbccddeeff"},
		Trace:    &audit.Trace{TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", SpanID: "00f067aa0ba902b7"},
	}
}

func record(t testing.TB, s *spool.Spool, first, n int) {
	t.Helper()
	for i := first; i < first+n; i++ {
		if err := s.Record(event(fmt.Sprint("e", i))); err != nil {
			t.Fatal(err)
		}
	}
}

// all are the entries that can be read from index from on, after waiting for
// those that are recorded.
func all(t testing.TB, s *spool.Spool, from uint64) []audit.Entry {
	t.Helper()
	if next := s.Next(); next > from {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Wait(ctx, next-1); err != nil {
			t.Fatalf("wait for entry %d: %v", next-1, err)
		}
	}
	var got []audit.Entry
	for {
		batch, err := s.Read(from+uint64(len(got)), 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) == 0 {
			return got
		}
		got = append(got, batch...)
	}
}

// ids checks that entries follow each other from index from on, that their
// leaves are right, and returns the events' ids; a gap event is "gap:count".
func ids(t testing.TB, s *spool.Spool, from uint64, entries []audit.Entry) []string {
	t.Helper()
	var ids []string
	for i, n := range entries {
		if n.Index != from+uint64(i) || n.Log != s.Log() || n.Leaf != audit.LeafHash(n.Body) {
			t.Fatalf("entry %d of %s where %d of %s should be, or its leaf is wrong", n.Index, n.Log, from+uint64(i), s.Log())
		}
		e, err := audit.Decode(n.Body)
		if err != nil {
			t.Fatalf("entry %d: %v", n.Index, err)
		}
		if e.Action == audit.Gap {
			if e.Gap.From != n.Index || e.Gap.To != n.Index || e.Outcome != audit.Failure || e.Message == "" || e.Host != "host1" {
				t.Errorf("entry %d: %s", n.Index, n.Body)
			}
			ids = append(ids, fmt.Sprintf("%s:%d", e.Reason, e.Gap.Count))
			continue
		}
		if e.Action == audit.Degraded || e.Action == audit.Recovered {
			ids = append(ids, string(e.Action)+":"+e.Reason)
			continue
		}
		ids = append(ids, e.ID)
	}
	return ids
}

func series(first, n int) []string {
	var ids []string
	for i := first; i < first+n; i++ {
		ids = append(ids, fmt.Sprint("e", i))
	}
	return ids
}

func want(t testing.TB, s *spool.Spool, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, ids(t, s, 0, all(t, s, 0))); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func verified(t testing.TB, report spool.Report, err error) spool.Report {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if err := report.Err(); err != nil {
		t.Errorf("%v; %+v", err, report.Problems)
	}
	return report
}

func wantCode(t testing.TB, err error, want fault.Code) {
	t.Helper()
	if all := fault.All(err); len(all) != 1 || all[0].Code != want || all[0].Hint == "" {
		t.Fatalf("error %v, want %s with a hint", err, want)
	}
}

func TestWhatIsRecordedIsReadAfterSealing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "audit")
	s := open(t, dir)
	record(t, s, 0, 3)
	if got, err := s.Read(0, 10); err != nil || len(got) != 0 {
		t.Errorf("%d entries are readable before they are sealed (%v)", len(got), err)
	}
	stop := run(t, s)
	want(t, s, series(0, 3))
	record(t, s, 3, 4)
	stop() // seals once more
	want(t, s, series(0, 7))
	got, err := s.Read(2, 3)
	if diff := cmp.Diff(series(2, 3), ids(t, s, 2, got)); err != nil || diff != "" {
		t.Errorf("Read(2, 3) (%v):\n%s", err, diff)
	}
	if got, err := s.Read(7, 3); err != nil || len(got) != 0 {
		t.Errorf("Read behind the end: %d entries, %v", len(got), err)
	}
	report, err := s.Verify()
	verified(t, report, err)
	var tree audit.Tree
	for _, n := range all(t, s, 0) {
		tree.Append(n.Leaf)
	}
	if diff := cmp.Diff(spool.Report{Log: s.Log(), Next: 7, Root: tree.Root()}, report); diff != "" {
		t.Errorf("report:\n%s", diff)
	}
	for name, mode := range map[string]os.FileMode{".": 0o700, "lock": 0o600, "00000000000000000000.seg": 0o600, "spare": 0o600, "reserve": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, mode %v, want %v", name, err, info.Mode(), mode)
		}
	}
}

func TestTheNameIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	name := s.Log()
	if !strings.HasPrefix(name, "host1-") || !audit.ValidLogName(name) {
		t.Errorf("the log is called %q", name)
	}
	record(t, s, 0, 2)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := config(dir)
	cfg.Log = "renamed"
	s, err := spool.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Log() != name || s.Next() != 2 {
		t.Errorf("after a restart it is %s with %d entries", s.Log(), s.Next())
	}
	if other := open(t, t.TempDir()); other.Log() == name {
		t.Error("two directories have one log")
	}
}

func TestTheDirectoryIsLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	_, err := spool.Open(config(dir))
	wantCode(t, err, fault.LogBusy)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

func TestAfterCloseNothingIsAccepted(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	record(t, s, 0, 1)
	waited := make(chan error)
	go func() { waited <- s.Wait(context.Background(), 5) }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Wait: %v", err)
	}
	if err := s.Record(event("late")); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Record: %v", err)
	}
	if _, err := s.Read(0, 1); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Read: %v", err)
	}
	if _, err := s.Verify(); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Verify: %v", err)
	}
	if err := s.Discard(1); err != nil {
		t.Errorf("Discard: %v", err)
	}
	if err := s.Run(context.Background()); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
}

func TestManyRecordersAcrossSegments(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	stop := run(t, s)
	const recorders, each = 8, 300
	var wg sync.WaitGroup
	for g := range recorders {
		wg.Go(func() {
			for i := range each {
				if err := s.Record(event(fmt.Sprintf("%d-%d", g, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	check := func() {
		t.Helper()
		last := map[string]int{}
		got := ids(t, s, 0, all(t, s, 0))
		for _, id := range got {
			g, i, _ := strings.Cut(id, "-")
			if fmt.Sprint(last[g]) != i {
				t.Fatalf("%s follows %s-%d", id, g, last[g]-1)
			}
			last[g]++
		}
		if len(got) != recorders*each {
			t.Errorf("%d entries, want %d", len(got), recorders*each)
		}
	}
	check()
	report, err := s.Verify()
	root := verified(t, report, err).Root
	report, err = spool.Verify(dir) // as another process would, beside this one
	if verified(t, report, err).Root != root {
		t.Error("another root from outside")
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*.seg")); len(files) < 5 {
		t.Errorf("only %d segments", len(files))
	}
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	check()
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	stop := run(t, s)
	record(t, s, 0, 2400)
	all(t, s, 0)
	files := func() []string {
		names, err := filepath.Glob(filepath.Join(dir, "*.seg"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	report, err := s.Verify()
	root := verified(t, report, err).Root
	before := files()
	if len(before) < 4 {
		t.Fatalf("%d segments", len(before))
	}
	var second uint64
	if _, err := fmt.Sscanf(filepath.Base(before[1]), "%d.seg", &second); err != nil {
		t.Fatal(err)
	}
	discard := func(before uint64, gone, oldest int) {
		t.Helper()
		if err := s.Discard(before); err != nil {
			t.Fatal(err)
		}
		if n := len(files()); n != oldest-gone {
			t.Errorf("Discard(%d): %d segments, want %d", before, n, oldest-gone)
		}
	}
	discard(second-1, 0, len(before)) // one of its entries is still wanted
	discard(second, 1, len(before))
	if _, err := s.Read(second-1, 1); !errors.Is(err, spool.ErrDiscarded) {
		t.Errorf("Read of a discarded entry: %v", err)
	}
	if diff := cmp.Diff(series(int(second), 2400-int(second)), ids(t, s, second, all(t, s, second))); diff != "" {
		t.Errorf("the rest:\n%s", diff)
	}
	discard(1<<60, len(before)-1, len(before)) // the newest stays
	report, err = s.Verify()
	if r := verified(t, report, err); r.Next != 2400 || r.First == 0 || r.Root != root {
		t.Errorf("report %+v", r)
	}
	stop()
	name := s.Log()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if s.Log() != name || s.Next() != 2400 {
		t.Errorf("after a restart: %s with %d entries", s.Log(), s.Next())
	}
}

func TestRecordAllocatesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	e := event("one")
	record(t, s, 0, 1)
	if n := testing.AllocsPerRun(100, func() {
		if err := s.Record(e); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestTheLargestEvent(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	run(t, s)
	e := event("large")
	long := strings.Repeat("\x01", 4000)
	e.Message, e.Host, e.Reason, e.Call.Path, e.Call.Host, e.Caller.Exe = long, long, long, long, long, long
	e.Object = &audit.Object{Kind: long, Name: long, Serial: long, Detail: long}
	for range 20 {
		if err := s.Record(e); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(all(t, s, 0)); n != 20 {
		t.Errorf("%d entries, want 20", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	s := openLarge(b)
	stop := run(b, s)
	defer stop()
	e := event(audit.NewID(time.Now()))
	b.ReportAllocs()
	discarded := uint64(0)
	for b.Loop() {
		if err := s.Record(e); err != nil {
			b.Fatal(err)
		}
		if n := s.Next(); n >= discarded+50_000 {
			discarded = n
			b.StopTimer()
			if err := s.Wait(b.Context(), n-1); err != nil {
				b.Fatal(err)
			}
			if err := s.Discard(n); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
}

// openLarge is a log that signs, with segments that hold much.
func openLarge(b *testing.B) *spool.Spool {
	b.Helper()
	cfg := config(b.TempDir())
	cfg.SegmentSize, cfg.Key = 64<<20, keyring{}.key
	s, err := spool.Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// BenchmarkEvent is the CPU of an event from Record to its signed checkpoint, in
// batches of 100: 2,000 events a second, sealed every 50 ms. cpu-ns/op is what the whole
// process used, the kernel's part of the sync included.
func BenchmarkEvent(b *testing.B) {
	s := openLarge(b)
	e := event(audit.NewID(time.Now()))
	const batch = 100
	b.ReportAllocs()
	before := cpu(b)
	events := 0
	for b.Loop() {
		if err := s.Record(e); err != nil {
			b.Fatal(err)
		}
		if events++; events%batch == 0 {
			if err := spool.Seal(s); err != nil {
				b.Fatal(err)
			}
		}
		if events%100_000 == 0 {
			if err := s.Discard(s.Next()); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(cpu(b)-before)/float64(events), "cpu-ns/op")
}

// cpu is what this process used so far.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
