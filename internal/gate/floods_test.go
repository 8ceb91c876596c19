package gate

import (
	"sync"
	"testing"
	"time"
)

// A refusal that is counted while its kind is told of for the last time has the id of
// the event that was recorded first.
func TestARefusalKeepsTheIDThatItIsCountedWith(t *testing.T) {
	t.Parallel()
	var f floods
	now := time.Now()
	kind := flood{listener: "l", reason: "r"}
	rep, _, due := f.count(kind, now)
	rec := &record{}
	rec.event.ID = "first"
	rec.event.Call, rec.event.Caller = &rec.call, &rec.caller
	if f.keep(rep, rec); !due {
		t.Fatal("the first is not recorded")
	}
	f.count(kind, now)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 1000 {
			if id := f.id(rep); id != "first" {
				t.Errorf("id %q", id)
				return
			}
		}
	})
	for _, untold := range f.over(now.Add(time.Minute), true) {
		if e := untold.lastly(now); e.ID == "first" {
			t.Error("two events have one id")
		}
	}
	wg.Wait()
}
