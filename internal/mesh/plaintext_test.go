package mesh_test

import (
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/mesh"
)

// day is when the files of testdata are looked at.
var day = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// A date holds as a whole and by UTC, and neither one that is over nor one out of
// sight can be applied.
func TestCheckDates(t *testing.T) {
	const text = `trust_domain: shop.example
services:
  orders:
    runs_as: {user: orders}
    inbound:
      listen: ":9443"
      app: 127.0.0.1:8080
      plaintext: observe
      plaintext_until: `
	for until, tt := range map[string]struct {
		now        time.Time
		want, hint string
	}{
		"2026-12-31":                {now: day},
		"2026-11-24":                {now: time.Date(2026, 11, 24, 23, 59, 59, 0, time.UTC)},
		"2026-11-23":                {day, "ended on 2026-11-23", "remove plaintext"},
		"2026-11-22":                {time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC), "ended", "remove plaintext"},
		"2026-11-24T12:00:01Z":      {now: day},
		"2026-11-24T12:00:00Z":      {day, "ended", "remove plaintext"},
		"2026-11-24T12:30:00+01:00": {day, "ended", "remove plaintext"},
		"2027-05-22":                {now: day},
		"2027-05-23":                {day, "more than 180 days", "2027-05-22"},
	} {
		t.Run(until, func(t *testing.T) {
			f := parse(t, text+until+"\n")
			err := mesh.CheckDates(f, tt.now)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			all := fault.All(err)
			if len(all) != 1 || !strings.Contains(all[0].Message, tt.want) || !strings.Contains(all[0].Hint, tt.hint) || all[0].Line != 9 || all[0].Column != 24 || len(all[0].Source) == 0 {
				t.Errorf("got %v: %+v", err, all)
			}
		})
	}
}

// `parley verify` is told where plaintext is let in, and until when.
func TestTrialsOfObserved(t *testing.T) {
	t.Parallel()
	want := map[string]time.Time{
		"orders": time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), "ledger": time.Date(2027, 1, 15, 17, 0, 0, 0, time.UTC), "done": {},
	}
	trials := mesh.Trials(parse(t, string(read(t, "testdata/good/plaintext.yaml"))))
	if len(trials) != len(want) {
		t.Errorf("%d trials", len(trials))
	}
	for _, x := range trials {
		if !x.Observed.Equal(want[x.Callee]) {
			t.Errorf("%s -> %s: observed until %v", x.Caller, x.Callee, x.Observed)
		}
	}
}
