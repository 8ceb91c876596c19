package interop

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

const killMesh = `
trust_domain: interop.example
leaf_ttl: 10s
services:
  tester:
    runs_as: {exe: %[1]s}
    calls: [{to: site, listen: "127.0.0.1:%[2]d"}]
  site:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[3]d", app: %[4]q}
    allow:
      - {from: [tester], methods: [POST], paths: [/public/**]}
`

// TestKilledUnderLoad kills the process, server and agent in one, at random moments, ten
// times, and for gates/kills two hundred. Whatever a client saw answered is on record at
// both ends afterwards, once; what it did not is there at most once; and the log verifies
// after every start.
func TestKilledUnderLoad(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out := freePort(t)
	r := start(t, fmt.Sprintf(killMesh, self, out, freePort(t), startNginx(t)))
	series, first := 1, int64(0)
	if long() {
		series = 20
	}
	began, rounds := time.Now(), 0
	for range series {
		l := &posts{url: fmt.Sprintf("http://127.0.0.1:%d/public/", out), began: time.Now(), all: map[string]bool{}}
		l.next.Store(first)
		stop := l.start(8)
		for range 10 {
			rounds++
			r.killed(l, rounds)
		}
		stop()
		r.accounted(l)
		first = l.next.Load()
	}
	t.Logf("killed %d times in %s, under %d calls", rounds, time.Since(began).Round(time.Second), first)
	if said, err := r.parley("audit", "verify"); err != nil {
		t.Errorf("parley audit verify: %v\n%s", err, said)
	}
}

// killed kills the process under the load of l, and starts it again.
func (r *running) killed(l *posts, round int) {
	r.t.Helper()
	before := l.answered.Load()
	wait := time.Duration(100+rand.IntN(1400)) * time.Millisecond
	time.Sleep(wait)
	r.kill()
	n := l.answered.Load() - before
	r.t.Logf("round %d: killed after %s and %d answers", round, wait, n)
	if n == 0 {
		r.t.Errorf("round %d: there was no load", round)
	}
	r.launch()
	r.until("calls pass again", func() bool { return l.answered.Load() > before+n })
	if v, err := r.api.Verify(r.t.Context()); err != nil || !v.Intact {
		r.t.Errorf("round %d: the log does not verify: %+v, %v", round, v, err)
	}
}

// posts are requests that are never sent twice, each with an id of its own.
type posts struct {
	url      string
	began    time.Time // zero for all of the log
	next     atomic.Int64
	answered atomic.Int64

	mu  sync.Mutex
	all map[string]bool // by id: was it answered
}

// start sends with n clients until stop is called.
func (l *posts) start(n int) (stop func()) {
	var wg sync.WaitGroup
	over := make(chan struct{})
	for range n {
		wg.Go(func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
			for {
				select {
				case <-over:
					return
				default:
					l.send(client)
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		close(over)
		wg.Wait()
	})
}

func (l *posts) send(client *http.Client) {
	id := fmt.Sprintf("kill-%d", l.next.Add(1))
	// A body that cannot be read again: net/http sends it once.
	req, err := http.NewRequest(http.MethodPost, l.url+id, io.MultiReader(strings.NewReader("hello")))
	if err != nil {
		panic(err) // the URL is constant
	}
	req.Header.Set("X-Request-Id", id)
	answered := false
	resp, err := client.Do(req)
	if err == nil {
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		answered = err == nil && resp.StatusCode == http.StatusOK && string(text) == "nginx saw POST /public/"+id+"\n"
	}
	l.mu.Lock()
	l.all[id] = answered
	l.mu.Unlock()
	if answered {
		l.answered.Add(1)
	} else {
		time.Sleep(5 * time.Millisecond) // down
	}
}

// ends counts the events of one call.
type ends struct{ out, in int }

// accounted holds the record to what the clients saw. Every event that a killed
// process left was delivered when the next one was ready, but for the last ones.
func (r *running) accounted(l *posts) {
	r.t.Helper()
	var seen map[string]ends
	missing := func() (n int) {
		seen = r.ends(l.began)
		for id, answered := range l.all {
			if s := seen[id]; answered && (s.in == 0 || s.out == 0) {
				n++
			}
		}
		return n
	}
	for began := time.Now(); missing() > 0 && time.Since(began) < 10*time.Second; {
		time.Sleep(time.Second)
	}
	cut, wrong := 0, 0
	for id, answered := range l.all {
		s := seen[id]
		if !answered && s != (ends{}) {
			cut++
		}
		if answered && s != (ends{1, 1}) || s.in > 1 || s.out > 1 {
			if wrong++; wrong <= 10 {
				r.t.Errorf("%s, answered: %t: %d events at the outbound end, %d at the inbound", id, answered, s.out, s.in)
			}
		}
	}
	if wrong > 0 {
		r.t.Errorf("%d calls are not on record as they should be", wrong)
	}
	r.t.Logf("%d calls answered, %d others; of these %d are on record", l.answered.Load(), int64(len(l.all))-l.answered.Load(), cut)
}

// ends counts the events of the clients' calls since a time by request id. None may be
// lost.
func (r *running) ends(since time.Time) map[string]ends {
	r.t.Helper()
	seen := map[string]ends{}
	for _, e := range r.list(api.ListEventsParams{Since: since}) {
		if e.Action == audit.Gap && e.Gap != nil && e.Gap.Count > 0 {
			r.t.Fatalf("%d events were lost: %s", e.Gap.Count, e.Message)
		}
		if e.Call == nil || !strings.HasPrefix(e.Call.RequestID, "kill-") {
			continue
		}
		s := seen[e.Call.RequestID]
		if e.Call.End == "inbound" {
			s.in++
		} else {
			s.out++
		}
		seen[e.Call.RequestID] = s
	}
	return seen
}
