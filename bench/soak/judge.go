package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// A sample is the process's state at one moment.
type sample struct {
	at       time.Duration
	heap     float64 // live bytes after the last garbage collection
	fds      float64
	resident float64 // bytes, with mapped files and what is not the garbage collector's
}

// watch samples the process four times a second, about as often as it collects
// garbage, until ctx ends.
func (m *meshRun) watch(ctx context.Context) (all []sample) {
	began := time.Now()
	tick := time.NewTicker(time.Second / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return all
		case <-tick.C:
		}
		values, err := scrape(ctx, m.metrics)
		if err != nil {
			continue // judged by how many there are
		}
		all = append(all, sample{
			time.Since(began), values["parley_process_heap_live_bytes"], values["parley_process_open_fds"], resident(m.cmd.Process.Pid),
		})
	}
}

// resident is a process's resident set as proc_pid_statm(5) has it, 0 where that
// cannot be read.
func resident(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseFloat(fields[1], 64)
	if err != nil {
		return 0
	}
	return pages * float64(os.Getpagesize())
}

func scrape(ctx context.Context, addr string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	values := map[string]float64{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			values[name] = v
		}
	}
	return values, nil
}

// judgeMemory compares the process after a fifth of the run with its end, minute 2
// with minute 10 of ten minutes: the least of the samples of a tenth of the run
// around the one and before the other. The heap that a collection leaves behind is
// what is in use and what was made while it ran; the latter comes and goes with the
// load and the machine's other work. What leaked stays: it is in every later sample,
// and so raises the least of them too.
func judgeMemory(all []sample, o options) error {
	if o.samples != "" {
		if err := writeSamples(o.samples, all); err != nil {
			return err
		}
	}
	window := o.duration / 20
	early, late := around(all, o.duration/5, window), around(all, o.duration-window, window)
	if early.heap == 0 || late.heap == 0 {
		return errors.New("no samples of the process's memory")
	}
	heap, fds := 100*(late.heap/early.heap-1), 100*(late.fds/early.fds-1)
	fmt.Printf("heap        %.2f MB at a fifth, %.2f MB at the end: %+.1f %%\n", early.heap/1e6, late.heap/1e6, heap)
	fmt.Printf("descriptors %.0f at a fifth, %.0f at the end: %+.1f %%\n", early.fds, late.fds, fds)
	fmt.Printf("resident    %.1f MB at a fifth, %.1f MB at the end, mapped files included; not judged\n", early.resident/1e6, late.resident/1e6)
	if heap > 5 || fds > 5 {
		return fmt.Errorf("the process grew: heap %+.1f %%, descriptors %+.1f %%; 5 %% is the limit", heap, fds)
	}
	return nil
}

func writeSamples(name string, all []sample) error {
	var b strings.Builder
	b.WriteString("seconds,heap,fds,resident\n")
	for _, s := range all {
		fmt.Fprintf(&b, "%.2f,%.0f,%.0f,%.0f\n", s.at.Seconds(), s.heap, s.fds, s.resident)
	}
	return os.WriteFile(name, []byte(b.String()), 0o644)
}

// around is the least of the samples within window of at.
func around(all []sample, at, window time.Duration) (least sample) {
	for _, s := range all {
		switch {
		case s.at < at-window || s.at > at+window:
		case least.at == 0:
			least = s
		default:
			least.heap, least.fds, least.resident = min(least.heap, s.heap), min(least.fds, s.fds), min(least.resident, s.resident)
		}
	}
	return least
}

// judgeRenewals wants each end's certificate renewed as often as the run is long:
// the whole point of it. A renewal comes at half of a life, give or take a tenth.
func (m *meshRun) judgeRenewals(ctx context.Context, o options, since time.Time) error {
	n := map[string]int{}
	err := m.events(ctx, api.ListEventsParams{Action: string(audit.SVIDIssued), Since: since}, func(e *audit.Event) {
		if e.Object != nil && e.Time.Before(since.Add(o.duration)) {
			n[e.Object.Name]++
		}
	})
	if err != nil {
		return err
	}
	least := int(o.duration / (o.leafTTL * 55 / 100))
	fmt.Printf("renewals    %v, want %d of each at least\n", n, least)
	for _, id := range []string{"spiffe://soak.example/client", "spiffe://soak.example/server"} {
		if n[id] < least {
			return fmt.Errorf("%s was renewed %d times, want %d at least", id, n[id], least)
		}
	}
	return nil
}

// ends counts the events of one call.
type ends struct{ out, in int }

// arrival is how long the last events get to arrive: an event takes up to a second,
// on a machine with time to give.
const arrival = 10 * time.Second

// judgeEvents reads every event of the run and wants exactly one at each end of
// each call, and of nothing else.
func (m *meshRun) judgeEvents(ctx context.Context, sent int, since time.Time) error {
	began := time.Now()
	for {
		missing, wrong, others, err := m.countEvents(ctx, sent, since)
		if err != nil {
			return err
		}
		if missing > 0 && time.Since(began) < arrival {
			time.Sleep(time.Second)
			continue
		}
		fmt.Printf("events      %d calls with exactly one at each end, %d with one missing, %d with one too many, %d other events\n",
			sent-missing-wrong, missing, wrong, others)
		if missing+wrong+others > 0 {
			return fmt.Errorf("%d calls are not on record exactly once at each end, and %d other events are", missing+wrong, others)
		}
		return nil
	}
}

// countEvents reads every event of the run into a tally.
func (m *meshRun) countEvents(ctx context.Context, sent int, since time.Time) (missing, wrong, others int, err error) {
	t := tally{calls: make(map[string]ends, sent)}
	// Not by caller and callee: the one of a refusal need not be known.
	err = m.events(ctx, api.ListEventsParams{Since: since}, t.add)
	missing, wrong, others = t.judge(sent)
	return missing, wrong, others, err
}

// A tally counts the events of calls by their request id, and of nothing else.
type tally struct {
	calls  map[string]ends
	others int
}

func (t *tally) add(e *audit.Event) {
	switch {
	case e.Class != audit.Access:
		return
	case e.Call == nil || e.Action != audit.Call || e.Outcome != audit.Allowed || e.Call.Status != http.StatusOK || e.Call.Error != "":
		t.others++
		return
	}
	c := t.calls[e.Call.RequestID]
	if e.Call.End == "inbound" {
		c.in++
	} else {
		c.out++
	}
	t.calls[e.Call.RequestID] = c
}

// judge says how many of the calls that were sent lack an event at either end, how
// many have one too many, and how many events are of no call of the run, or of one
// that failed.
func (t *tally) judge(sent int) (missing, wrong, others int) {
	known := 0
	for i := range sent {
		c, ok := t.calls[requestID(i)]
		if ok {
			known++
		}
		switch {
		case c.in > 1 || c.out > 1:
			wrong++
		case c != ends{1, 1}:
			missing++
		}
	}
	return missing, wrong, t.others + len(t.calls) - known
}

// events calls each for every event of a filter.
func (m *meshRun) events(ctx context.Context, p api.ListEventsParams, each func(*audit.Event)) error {
	for p.Limit = 1000; ; {
		page, err := m.api.Events(ctx, p)
		if err != nil {
			return err
		}
		for _, entry := range page.Items {
			e, err := audit.Decode(entry.Event)
			if err != nil {
				return err
			}
			each(e)
		}
		if page.Next == "" {
			return nil
		}
		p.Cursor = page.Next
	}
}
