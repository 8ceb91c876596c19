package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// A sample is the process's state at one moment.
type sample struct {
	at   time.Duration
	heap float64 // live bytes after the last garbage collection
	fds  float64
}

// watch samples the metrics every second until ctx ends.
func (m *meshRun) watch(ctx context.Context) (all []sample) {
	began := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return all
		case <-tick.C:
		}
		values, err := scrape(ctx, m.metrics)
		if err != nil {
			continue
		}
		all = append(all, sample{time.Since(began), values["parley_process_heap_live_bytes"], values["parley_process_open_fds"]})
	}
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

// judgeMemory compares the second tenth of the run's length with its last: the
// median of the samples around minute 2 and minute 10 of ten minutes.
func judgeMemory(all []sample, length time.Duration) error {
	window := length / 20
	early, late := around(all, length/5, window), around(all, length-window, window)
	if early.heap == 0 || late.heap == 0 {
		return errors.New("no samples of the process's memory")
	}
	heap, fds := 100*(late.heap/early.heap-1), 100*(late.fds/early.fds-1)
	fmt.Printf("heap        %.2f MB at a fifth, %.2f MB at the end: %+.1f %%\n", early.heap/1e6, late.heap/1e6, heap)
	fmt.Printf("descriptors %.0f at a fifth, %.0f at the end: %+.1f %%\n", early.fds, late.fds, fds)
	if heap > 5 || fds > 5 {
		return fmt.Errorf("the process grew: heap %+.1f %%, descriptors %+.1f %%; 5 %% is the limit", heap, fds)
	}
	return nil
}

// around is the median of the samples within window of at.
func around(all []sample, at, window time.Duration) sample {
	var heap, fds []float64
	for _, s := range all {
		if s.at >= at-window && s.at <= at+window {
			heap, fds = append(heap, s.heap), append(fds, s.fds)
		}
	}
	return sample{at, median(heap), median(fds)}
}

// judgeEvents reads every event of the run and wants exactly one at each end of
// each call.
func (m *meshRun) judgeEvents(ctx context.Context, sent int, since time.Time) error {
	type ends struct{ out, in int }
	calls := make(map[string]ends, sent)
	p := api.ListEventsParams{From: "client", To: "server", Since: since, Limit: 1000}
	others := 0
	for {
		page, err := m.api.Events(ctx, p)
		if err != nil {
			return err
		}
		for _, entry := range page.Items {
			e, err := audit.Decode(entry.Event)
			if err != nil {
				return err
			}
			if e.Call == nil || !strings.HasPrefix(e.Call.RequestID, "soak-") || e.Outcome != audit.Allowed {
				others++
				continue
			}
			c := calls[e.Call.RequestID]
			if e.Call.End == "inbound" {
				c.in++
			} else {
				c.out++
			}
			calls[e.Call.RequestID] = c
		}
		if page.Next == "" {
			break
		}
		p.Cursor = page.Next
	}
	wrong := 0
	for i := range sent {
		if calls[requestID(i)] != (ends{1, 1}) {
			wrong++
		}
	}
	fmt.Printf("events      %d calls with exactly one at each end, %d without, %d other events\n", sent-wrong, wrong, others)
	if wrong > 0 || others > 0 || len(calls) != sent {
		return fmt.Errorf("%d calls are not on record exactly once at each end", wrong)
	}
	return nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}
