package spool_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/spool"
	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/sys/unix"
)

// disk is one that can be filled.
type disk struct{ full, slow atomic.Bool }

func (d *disk) allocate(f *os.File, size int64) error {
	if d.full.Load() {
		return unix.ENOSPC
	}
	for d.slow.Load() {
		time.Sleep(5 * time.Millisecond)
	}
	return spool.Allocate(f, size)
}

func openOn(t *testing.T, d *disk, dir string) *spool.Spool {
	t.Helper()
	s, err := spool.OpenAllocating(config(dir), d.allocate)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// fill records until the log refuses, and returns how many it took.
func fill(t *testing.T, s *spool.Spool, first int) (n int, err error) {
	t.Helper()
	for ; n < 10_000; n++ {
		start := time.Now()
		if err = s.Record(event(fmt.Sprint("e", first+n))); err != nil {
			if took := time.Since(start); took > time.Second { // 250 ms and a busy machine
				t.Errorf("Record blocked for %v", took)
			}
			return n, err
		}
	}
	t.Fatal("the log never gets full")
	return 0, nil
}

func TestFullDiskIsAGapOnceThereIsRoom(t *testing.T) {
	t.Parallel()
	d := &disk{}
	s := openOn(t, d, t.TempDir())
	unwatched(t, s)
	record(t, s, 0, 1)
	all(t, s, 0)
	d.full.Store(true)
	n, err := fill(t, s, 1)
	wantCode(t, err, fault.LogFull)
	for range 4 { // known to be full: refused at once
		start := time.Now()
		wantCode(t, s.Record(event("lost")), fault.LogFull)
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Errorf("a known full disk holds Record up for %v", took)
		}
	}
	d.full.Store(false)
	lost := 5
	for s.Record(event("after")) != nil {
		lost++
		if lost > 1000 {
			t.Fatal("the log does not recover")
		}
		time.Sleep(5 * time.Millisecond)
	}
	want(t, s, append(series(0, n+1), fmt.Sprintf("not_recorded:%d", lost), "after"))
	record(t, s, n+1, 1)
	want(t, s, append(series(0, n+1), fmt.Sprintf("not_recorded:%d", lost), "after", fmt.Sprint("e", n+1)))
}

func TestSlowDiskHoldsRecordUpFor250ms(t *testing.T) {
	t.Parallel()
	d := &disk{}
	s := openOn(t, d, t.TempDir())
	d.slow.Store(true)
	stop := unwatched(t, s)
	_, err := fill(t, s, 0)
	wantCode(t, err, fault.LogFull)
	start := time.Now()
	wantCode(t, s.Record(event("lost")), fault.LogFull)
	if took := time.Since(start); took < 200*time.Millisecond {
		t.Errorf("Record waited %v for a slow disk, want 250 ms", took)
	}
	d.slow.Store(false)
	for s.Record(event("after")) != nil {
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	report, err := s.Verify()
	verified(t, report, err)
}

// The process that owes a gap event is killed; the next one pays.
func TestOwedGapSurvivesAKill(t *testing.T) {
	t.Parallel()
	d := &disk{}
	dir := t.TempDir()
	s := openOn(t, d, dir)
	d.full.Store(true)
	unwatched(t, s)
	n, _ := fill(t, s, 0)
	for range 2 {
		wantCode(t, s.Record(event("lost")), fault.LogFull)
	}
	dir = killed(t, dir)
	again := open(t, dir)
	unwatched(t, again)
	if err := again.Record(event("after")); err != nil {
		t.Fatal(err)
	}
	// Once only, and whichever of the two segments it was counted in.
	want(t, again, append(series(0, n), "not_recorded:3", "after"))
	third := open(t, killed(t, dir))
	unwatched(t, third)
	record(t, third, n, 1)
	want(t, third, append(series(0, n), "not_recorded:3", "after", fmt.Sprint("e", n)))
}

func TestEventThatCannotBeEncodedIsOwed(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	unwatched(t, s)
	bad := event("bad")
	bad.Time = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)
	if err := s.Record(bad); !errors.Is(err, audit.ErrTime) {
		t.Errorf("Record: %v", err)
	}
	record(t, s, 0, 1)
	want(t, s, []string{"not_recorded:1", "e0"})
}

func TestNoSpaceForANewLog(t *testing.T) {
	t.Parallel()
	d := &disk{}
	d.full.Store(true)
	dir := t.TempDir()
	_, err := spool.OpenAllocating(config(dir), d.allocate)
	wantCode(t, err, fault.LogFull)
	d.full.Store(false)
	s := openOn(t, d, dir) // the lock and the directory are free
	if s.Next() != 0 {
		t.Errorf("next is %d", s.Next())
	}
}

// A file that was prepared and could not be taken into use is none of the log's, and
// what was recorded elsewhere meanwhile stays.
func TestASpareThatCouldNotBeUsed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	record(t, s, 0, 2) // so many that some room is left in the end
	long := event("long")
	long.Message, long.Call.Path = strings.Repeat("x", 20_000), "/"+strings.Repeat("x", 20_000)
	for refused := false; !refused; { // until there is room for a short one alone
		inTheWay := filepath.Join(dir, fmt.Sprintf("%020d.seg", s.Next()))
		if err := os.Mkdir(inTheWay, 0o700); err != nil {
			t.Fatal(err)
		}
		refused = s.Record(long) != nil
		if err := os.Remove(inTheWay); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Record(event("short")); err != nil {
		t.Fatal(err)
	}
	again := open(t, killed(t, dir))
	got := ids(t, again, 0, all(t, again, 0))
	if last := got[len(got)-2:]; !slices.Equal(last, []string{"not_recorded:1", "short"}) {
		t.Errorf("the log ends with %q", last)
	}
}
