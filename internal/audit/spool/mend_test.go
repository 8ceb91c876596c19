package spool_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/spool"
	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/sys/unix"
)

// load records from several goroutines until stop is called, and returns the ids of
// what was acknowledged.
func load(s *spool.Spool) (stop func() []string) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var done []string
	over := make(chan struct{})
	for g := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				id := fmt.Sprintf("%d-%d", g, i)
				if s.Record(event(id)) == nil {
					mu.Lock()
					done = append(done, id)
					mu.Unlock()
				}
				time.Sleep(500 * time.Microsecond)
			}
		})
	}
	return func() []string {
		close(over)
		wg.Wait()
		return done
	}
}

// recovered waits until the log says that it has recovered of reason.
func recovered(t *testing.T, s *spool.Spool, reason string) {
	t.Helper()
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		for r := range strings.SplitSeq(reason, "|") {
			if slices.Contains(tolerant(t, s), "audit.recovered:"+r) {
				return
			}
		}
	}
	t.Fatalf("it does not recover of %s: %+v", reason, s.Troubles())
}

// tolerant are the ids of all that can be read now.
func tolerant(t *testing.T, s *spool.Spool) []string {
	t.Helper()
	var got []audit.Entry
	for {
		batch, err := s.Read(uint64(len(got)), 1000)
		if err != nil || len(batch) == 0 {
			return ids(t, s, 0, got)
		}
		got = append(got, batch...)
	}
}

// What happens to the files of a running log is found, named, and mended without a
// hand, while events go on to be recorded; and only what nobody has any more is lost,
// each entry a gap of its own.
func TestMending(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		reason string
		loses  bool
		harm   func(dir, newest string) error
	}{
		"deleted": {"log_deleted", false, func(_, newest string) error { return os.Remove(newest) }},
		"every segment deleted": {"log_deleted", false, func(dir, _ string) error {
			files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
			for _, f := range files {
				err = errors.Join(err, os.Remove(f))
			}
			return err
		}},
		"everything deleted": {"log_unlocked", false, func(dir, _ string) error {
			files, err := filepath.Glob(filepath.Join(dir, "*"))
			for _, f := range files {
				err = errors.Join(err, os.Remove(f))
			}
			return err
		}},
		"renamed": {"log_deleted", false, func(_, newest string) error { return os.Rename(newest, newest+".old") }},
		"replaced": {"log_replaced", false, func(dir, newest string) error {
			other := filepath.Join(filepath.Dir(dir), "other")
			return errors.Join(os.WriteFile(other, []byte("something else"), 0o600), os.Rename(other, newest))
		}},
		"cut to nothing":  {"log_truncated", true, func(_, newest string) error { return os.Truncate(newest, 0) }},
		"cut in the head": {"log_truncated", true, func(_, newest string) error { return os.Truncate(newest, 600) }},
		"cut behind the head": {"log_truncated", true, func(_, newest string) error {
			return os.Truncate(newest, spool.HeaderSize+8192)
		}},
		"cut and grown again": {"log_damaged|log_truncated", true, func(_, newest string) error {
			return errors.Join(os.Truncate(newest, 0), os.Truncate(newest, small))
		}},
		"written over":       {"log_damaged|log_truncated", true, func(_, newest string) error { return os.WriteFile(newest, make([]byte, small), 0o600) }},
		"directory renamed":  {"log_moved", false, func(dir, _ string) error { return os.Rename(dir, dir+".old") }},
		"directory deleted":  {"log_moved", false, func(dir, _ string) error { return os.RemoveAll(dir) }},
		"directory replaced": {"log_moved", false, func(dir, _ string) error { return errors.Join(os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o700)) }},
		"lock deleted":       {"log_unlocked", false, func(dir, _ string) error { return os.Remove(filepath.Join(dir, "lock")) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "log")
			s := open(t, dir)
			stop := run(t, s)
			record(t, s, 0, 600)
			all(t, s, 0)
			end := load(s)
			time.Sleep(200 * time.Millisecond)
			files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
			if err != nil || len(files) < 2 {
				t.Fatal(files, err)
			}
			if err := tt.harm(dir, files[len(files)-1]); err != nil {
				t.Fatal(err)
			}
			recovered(t, s, tt.reason)
			time.Sleep(200 * time.Millisecond)
			done := end()
			if all := s.Troubles(); len(all) > 0 && name != "renamed" {
				t.Errorf("still wrong: %+v", all)
			}
			stop()
			accounted(t, s, done, tt.loses)
			report, err := s.Verify()
			verified(t, report, err)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			accounted(t, s, done, tt.loses)
			report, err = s.Verify()
			verified(t, report, err)
		})
	}
}

// accounted says that what was acknowledged is there once, or that as many gaps of one
// entry are there as are missing.
func accounted(t *testing.T, s *spool.Spool, done []string, loses bool) {
	t.Helper()
	count := map[string]int{}
	for _, id := range ids(t, s, 0, all(t, s, 0)) {
		count[id]++
	}
	missing := 0
	for _, id := range append(series(0, 600), done...) {
		switch count[id] {
		case 0:
			missing++
		case 1:
		default:
			t.Errorf("%s is there %d times", id, count[id])
		}
	}
	if count["log_damaged:1"] < missing || !loses && (missing > 0 || count["log_damaged:1"] > 0) {
		t.Errorf("%d of %d are missing, with %d gaps", missing, 600+len(done), count["log_damaged:1"])
	}
	if loses && missing == 0 {
		t.Error("nothing is missing: the test does no harm")
	}
	for id, n := range count {
		if strings.HasPrefix(id, "audit.") && n != 1 {
			t.Errorf("%s is recorded %d times", id, n)
		}
	}
}

// A disk that does not sync ends recording until it does: then the log goes on in a
// new file, with everything that was recorded before.
func TestADiskThatDoesNotSync(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var bad atomic.Bool
	s, err := spool.OpenSyncing(config(dir), func(data []byte) error {
		if bad.Load() {
			return unix.EIO
		}
		return spool.Sync(data)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stop := run(t, s)
	record(t, s, 0, 3)
	all(t, s, 0)
	bad.Store(true)
	record(t, s, 3, 3)
	lost := 0
	for began := time.Now(); lost < 5; time.Sleep(10 * time.Millisecond) {
		if s.Record(event("lost")) != nil {
			lost++
		} else if time.Since(began) > 5*time.Second {
			t.Fatal("it goes on recording")
		}
	}
	if got := s.Troubles(); len(got) != 1 || got[0].Reason != "log_unsynced" || got[0].Code != fault.LogUnusable {
		t.Errorf("troubles: %+v", got)
	}
	bad.Store(false)
	recovered(t, s, "log_unsynced")
	record(t, s, 6, 1)
	got := tail(t, s, "e6")
	if i := slices.Index(got, "audit.degraded:log_unsynced"); i < 0 || !strings.HasPrefix(got[i-1], "not_recorded:") || !slices.Equal(got[:6], series(0, 6)) {
		t.Errorf("the log: %v", got)
	}
	stop()
	report, err := s.Verify()
	verified(t, report, err)
}

// tail waits until an event is there, and returns what is.
func tail(t *testing.T, s *spool.Spool, id string) (got []string) {
	t.Helper()
	for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(10 * time.Millisecond) {
		if got = tolerant(t, s); slices.Contains(got, id) {
			return got
		}
	}
	t.Fatalf("%s is not there: %v", id, got)
	return nil
}

// What a file is that is not the log's, is said, and nothing happens to it.
func TestForeignFilesStay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	names := []string{"7.seg", "00000000000000000009.seg", "notes.txt"}
	s := open(t, dir)
	run(t, s)
	record(t, s, 0, 1)
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := tail(t, s, "audit.degraded:log_foreign"); got[0] != "e0" {
		t.Errorf("%v", got)
	}
	if got := s.Troubles(); len(got) != 1 || got[0].Reason != "log_foreign" || !strings.Contains(got[0].Message, `"`) {
		t.Errorf("troubles: %+v", got)
	}
	for _, n := range names {
		if data, err := os.ReadFile(filepath.Join(dir, n)); err != nil || string(data) != "mine" {
			t.Errorf("%s: %q, %v", n, data, err)
		}
		if err := os.Remove(filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	recovered(t, s, "log_foreign")
}

// A full disk takes what must be known all the same, from what was set aside.
func TestTheReserve(t *testing.T) {
	t.Parallel()
	d := &disk{}
	dir := t.TempDir()
	s := openOn(t, d, dir)
	run(t, s)
	record(t, s, 0, 1)
	all(t, s, 0)
	for { // the reserve comes second
		if _, err := os.Stat(filepath.Join(dir, "reserve")); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	d.full.Store(true)
	n, err := fill(t, s, 1)
	wantCode(t, err, fault.LogFull)
	got := tail(t, s, "audit.degraded:log_full")
	if diff := append(series(0, n+1), "not_recorded:1", "audit.degraded:log_full"); !slices.Equal(got, diff) {
		t.Errorf("%v", got[n:])
	}
	urgent := event("urgent")
	urgent.Class = audit.Security
	if err := s.Record(urgent); err != nil {
		t.Errorf("a security event on a full disk: %v", err)
	}
	wantCode(t, s.Record(event("lost")), fault.LogFull) // and no other takes its room
	d.full.Store(false)
	recovered(t, s, "log_full")
	record(t, s, n+1, 1)
	got = tail(t, s, fmt.Sprint("e", n+1))
	want := []string{"urgent", "not_recorded:1", "audit.recovered:log_full", fmt.Sprint("e", n+1)}
	if !slices.Equal(got[len(got)-4:], want) {
		t.Errorf("%v", got[n:])
	}
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) { // it is refilled
		if _, err := os.Stat(filepath.Join(dir, "reserve")); err == nil {
			break
		} else if time.Since(began) > 5*time.Second {
			t.Fatal(err)
		}
	}
}

// A file that is cut short ends no call: what is recorded meanwhile goes into the next.
func TestRecordOutlivesATruncatedFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	stop := run(t, s)
	record(t, s, 0, 3)
	all(t, s, 0)
	stop() // no watchdog: Record meets it itself
	if err := os.Truncate(filepath.Join(dir, firstSegment), 0); err != nil {
		t.Fatal(err)
	}
	record(t, s, 3, 2)
	if _, err := s.Read(0, 1); err == nil {
		t.Error("what was cut off is read")
	}
	if report, err := s.Verify(); err == nil && report.Err() == nil {
		t.Error("what was cut off verifies")
	}
	run(t, s)
	recovered(t, s, "log_truncated")
	want(t, s, []string{"log_damaged:1", "log_damaged:1", "log_damaged:1", "e3", "e4", "audit.degraded:log_truncated", "audit.recovered:log_truncated"})
}

// What others keep in a directory beside the log comes along where that was moved.
func TestADirectoryBesideTheLogComesAlong(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "log")
	s := open(t, dir)
	run(t, s)
	if err := os.MkdirAll(filepath.Join(dir, "pins"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pins", "server.pin"), []byte("pinned"), 0o600); err != nil {
		t.Fatal(err)
	}
	record(t, s, 0, 1)
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	recovered(t, s, "log_moved")
	if data, err := os.ReadFile(filepath.Join(dir, "pins", "server.pin")); err != nil || string(data) != "pinned" {
		t.Errorf("%q, %v", data, err)
	}
}
