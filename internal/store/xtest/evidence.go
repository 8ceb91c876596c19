package xtest

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
)

// Events of the first tile, of the middle and of the end are proven by the newest
// signed checkpoint, and those behind it are not.
func testProve(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	all := Entries(t, "agent", 0, 700)
	if err := s.Collect(t.Context(), "agent", all); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prove(t.Context(), "agent-3"); !errors.Is(err, control.ErrUnsigned) {
		t.Errorf("of a log that was never signed: %v", err)
	}
	if _, err := s.Witness(t.Context(), "agent", Statement("agent", all[:650])); err != nil {
		t.Fatal(err)
	}
	key := Key("agent").Verifier()
	for _, i := range []int{0, 255, 256, 511, 600, 649} {
		file, err := s.Prove(t.Context(), "agent-"+strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		p, err := tiles.ParseProofFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n, err := checkpoint.Open(p.Checkpoint, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := tiles.CheckInclusion(p.Hashes, n.Size, n.Root, p.Index, audit.LeafHash(p.Event)); err != nil || string(p.Event) != string(all[i].Body) {
			t.Errorf("entry %d: %v: %s", i, err, p.Event)
		}
	}
	if _, err := s.Prove(t.Context(), "agent-650"); !errors.Is(err, control.ErrUnsigned) {
		t.Errorf("behind the checkpoint: %v", err)
	}
	if _, err := s.Prove(t.Context(), "nobody"); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("no such event: %v", err)
	}
}

func testEntries(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	all := Entries(t, "agent", 0, 20)
	if err := s.Collect(t.Context(), "agent", all); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		first uint64
		limit int
		want  []audit.Entry
	}{{0, 5, all[:5]}, {7, 100, all[7:]}, {19, 1, all[19:]}, {20, 5, []audit.Entry{}}, {1 << 63, 5, nil}} {
		got, err := s.Entries(t.Context(), "agent", tt.first, tt.limit)
		if diff := cmp.Diff(tt.want, got); diff != "" || (err == nil) != (tt.want != nil) {
			t.Errorf("from %d: %v\n%s", tt.first, err, diff)
		}
	}
	for _, log := range []string{"other", "", "a b"} {
		if _, err := s.Entries(t.Context(), log, 0, 1); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("log %q: %v", log, err)
		}
	}
}

func testLogs(t *testing.T, db Database) {
	clk := &at{now: noon}
	s := db.open(t, clk)
	all := Entries(t, "agent", 0, 20)
	if err := s.Collect(t.Context(), "agent", all); err != nil {
		t.Fatal(err)
	}
	gap := &audit.Event{ID: "gap", Time: noon.Add(2 * time.Minute), Class: audit.Security, Action: audit.Gap, Outcome: audit.Failure, Gap: &audit.Range{From: 20, To: 29, Count: 9}}
	all = append(all, Entry(t, "agent", 20, gap))
	if err := s.Collect(t.Context(), "agent", all[20:]); err != nil {
		t.Fatal(err)
	}
	receipt, err := s.Witness(t.Context(), "agent", Statement("agent", all[:15]))
	if err != nil {
		t.Fatal(err)
	}
	own, k := Key(s.LogName()), Key("agent")
	want := []api.LogInfo{
		{
			Log: "agent", Origin: "shop.example/agent", Size: 21, Key: k.Verifier().String(), Witness: own.Witness().String(), Host: "host1", Keyed: noon.Truncate(time.Microsecond),
			Checkpoint: string(receipt), CheckpointSize: 15, CheckpointTime: noon.Truncate(time.Microsecond),
		},
		{Log: s.LogName(), Origin: "shop.example/" + s.LogName(), Own: true, Key: own.Verifier().String(), Host: "host1", Keyed: noon.Truncate(time.Microsecond)},
	}
	logs, err := s.Logs(t.Context())
	if diff := cmp.Diff(want, logs); err != nil || diff != "" {
		t.Errorf("Logs (%v):\n%s", err, diff)
	}
	bytes := 0
	for _, e := range all {
		bytes += len(e.Body)
	}
	stats, err := s.LogStats(t.Context())
	wantStats := []api.LogStats{
		{Log: "agent", Entries: 21, Bytes: int64(bytes), Oldest: noon.Truncate(time.Microsecond), Newest: noon.Add(2 * time.Minute).Truncate(time.Microsecond), Gaps: 1, Lost: 9, Unsigned: 6},
		{Log: s.LogName()},
	}
	if diff := cmp.Diff(wantStats, stats); err != nil || diff != "" {
		t.Errorf("LogStats (%v):\n%s", err, diff)
	}
	for _, tt := range []struct {
		since time.Time
		want  []api.ActionCount
	}{
		{time.Time{}, []api.ActionCount{{Action: "call", Outcome: "allowed", Events: 20}, {Action: "audit.gap", Outcome: "failure", Events: 1}}},
		{noon.Add(time.Minute).Truncate(time.Minute), []api.ActionCount{{Action: "audit.gap", Outcome: "failure", Events: 1}}},
		{noon.Add(2 * time.Hour), nil},
	} {
		got, err := s.Actions(t.Context(), tt.since)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("Actions since %s (%v):\n%s", tt.since, err, diff)
		}
	}
}
