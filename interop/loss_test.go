package interop

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

const lossMesh = `
trust_domain: interop.example
services:
  tester:
    runs_as: {exe: %[1]s}
    calls: [{to: open, listen: "127.0.0.1:%[2]d"}, {to: tight, listen: "127.0.0.1:%[3]d"}, {to: open-tcp, listen: "127.0.0.1:%[4]d"}, {to: tight-tcp, listen: "127.0.0.1:%[5]d"}]
    audit: {when_full: gap}
  open:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[6]d", app: %[10]q}
    allow: [{from: [tester], paths: [/public/**]}]
    audit: {when_full: gap}
  tight:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[7]d", app: %[10]q}
    allow: [{from: [tester], paths: [/public/**]}]
  open-tcp:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[8]d", app: %[10]q, protocol: tcp}
    allow: [{from: [tester]}]
    audit: {when_full: gap}
  tight-tcp:
    runs_as: {user: root}
    inbound: {listen: "127.0.0.1:%[9]d", app: %[10]q, protocol: tcp}
    allow: [{from: [tester]}]
`

// A lossy mesh has services of both policies, and its agent's log on a disk of its own.
type lossy struct {
	*running
	open, tight, openTCP, tightTCP int
	disk                           string
}

// startLossy has the log on a tmpfs of that size.
func startLossy(t *testing.T, size string) *lossy {
	t.Helper()
	need(t, "mount")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := &lossy{open: freePort(t), tight: freePort(t), openTCP: freePort(t), tightTCP: freePort(t)}
	mesh := fmt.Sprintf(lossMesh, self, l.open, l.tight, l.openTCP, l.tightTCP, freePort(t), freePort(t), freePort(t), freePort(t), startNginx(t))
	l.running = start(t, mesh)
	l.disk = filepath.Join(l.dir, "data", "agent", "log")
	l.stop()
	run(t, "mount", "-t", "tmpfs", "-o", "mode=0700,size="+size, "parley-test", l.disk)
	t.Cleanup(func() { run(t, "umount", "-l", l.disk) })
	t.Cleanup(l.stop) // before that
	l.launch()
	return l
}

// get is the status of a request, 0 without an answer, and how long it took.
func get(client *http.Client, port int, path string) (status int, took time.Duration) {
	began := time.Now()
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		return 0, time.Since(began)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, time.Since(began)
}

// passes says whether a TCP connection reaches nginx.
func passes(port int) bool {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(c, "GET /public/tcp HTTP/1.0\r\n\r\n")
	got, _ := io.ReadAll(c)
	return strings.Contains(string(got), "nginx saw")
}

// calling calls open with n clients until stop is called. Each must be answered.
func (l *lossy) calling(n int) (stop func()) {
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
				}
				if status, took := get(client, l.open, "/public/load"); status != http.StatusOK {
					l.t.Errorf("a call that may pass unrecorded got %d after %s", status, took)
					return
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		close(over)
		wg.Wait()
	})
}

// said waits for an event about the log.
func (l *lossy) said(action audit.Action, reason string) *audit.Event {
	l.t.Helper()
	var found *audit.Event
	l.until(fmt.Sprintf("%s for %s", action, reason), func() bool {
		for _, e := range l.list(api.ListEventsParams{Action: string(action)}) {
			if e.Reason == reason {
				found = e
			}
		}
		return found != nil
	})
	return found
}

// finding says whether `parley status` has one of that reason.
func (l *lossy) finding(reason string) bool {
	st, err := l.api.Status(l.t.Context())
	return err == nil && slices.ContainsFunc(st.Findings, func(f api.Finding) bool { return strings.Contains(f.Message, reason) && f.Help != "" })
}

// TestAFullDiskIsAGapOrARefusal fills the disk of an agent's log under load: a service
// says whether its calls are refused then or pass, over HTTP and TCP; who may not call
// is refused either way; that the log is full is in the log; and with room again all is
// as before, without a hand, with what is missing as a number.
func TestAFullDiskIsAGapOrARefusal(t *testing.T) {
	l := startLossy(t, "10m") // one segment and the reserve
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	stop := l.calling(8)
	defer stop()
	l.until("the log is full and calls of the one service are refused", func() bool {
		status, _ := get(client, l.tight, "/public/a")
		return status == http.StatusServiceUnavailable
	})
	for range 20 {
		if status, took := get(client, l.open, "/public/a"); status != http.StatusOK || took > 2*time.Second {
			t.Errorf("open: %d after %s", status, took)
		}
		if status, _ := get(client, l.tight, "/public/a"); status != http.StatusServiceUnavailable {
			t.Errorf("tight: %d", status)
		}
		if status, _ := get(client, l.open, "/secret"); status != http.StatusForbidden {
			t.Errorf("what is not allowed: %d", status)
		}
		if !passes(l.openTCP) || passes(l.tightTCP) {
			t.Errorf("tcp: open passes %t, tight %t", passes(l.openTCP), passes(l.tightTCP))
		}
	}
	l.said(audit.Degraded, "log_full")
	l.until("status says so", func() bool { return l.finding("log_full") })
	run(t, "mount", "-o", "remount,size=128m", l.disk)
	l.said(audit.Recovered, "log_full")
	l.until("tight answers again", func() bool {
		status, _ := get(client, l.tight, "/public/a")
		return status == http.StatusOK && passes(l.tightTCP)
	})
	stop()
	lost := uint64(0)
	for _, e := range l.list(api.ListEventsParams{Action: string(audit.Gap)}) {
		if e.Reason == "not_recorded" {
			lost += e.Gap.Count
		}
	}
	if lost < 60 {
		t.Errorf("%d events are said to be missing", lost)
	}
	t.Logf("%d events are missing, as a number", lost)
	l.until("no finding is left", func() bool { return !l.finding("log_") })
	if v, err := l.api.Verify(t.Context()); err != nil || !v.Intact {
		t.Errorf("the log does not verify: %+v, %v", v, err)
	}
}

// TestAReadOnlyDisk makes the disk read-only under load, and writable again.
func TestAReadOnlyDisk(t *testing.T) {
	l := startLossy(t, "64m")
	stop := l.calling(4)
	defer stop()
	// What is mapped for writing keeps the file system itself from it: another mount of
	// it is what the process then finds.
	run(t, "mount", "--bind", l.disk, l.disk)
	run(t, "mount", "-o", "remount,bind,ro", l.disk)
	l.said(audit.Degraded, "log_read_only") // into what is mapped
	l.until("status says so", func() bool { return l.finding("log_read_only") })
	run(t, "umount", "-l", l.disk)
	l.said(audit.Recovered, "log_read_only")
	l.until("no finding is left", func() bool { return !l.finding("log_") })
	stop()
	if v, err := l.api.Verify(t.Context()); err != nil || !v.Intact {
		t.Errorf("the log does not verify: %+v, %v", v, err)
	}
}

// TestTheLogIsMendedUnderLoad takes the agent's files away while calls pass: none is
// refused, none is missing on record, and every entry that nobody can have any more is
// a gap of its own.
func TestTheLogIsMendedUnderLoad(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out := freePort(t)
	l := &lossy{running: start(t, fmt.Sprintf(killMesh, self, out, freePort(t), startNginx(t)))}
	dir := filepath.Join(l.dir, "data", "agent", "log")
	p := &posts{url: fmt.Sprintf("http://127.0.0.1:%d/public/", out), all: map[string]bool{}}
	stop := p.start(8)
	defer stop()
	newest := func() string {
		files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		return files[len(files)-1]
	}
	do := func(what, reason string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		before := p.answered.Load()
		l.said(audit.Degraded, reason)
		l.said(audit.Recovered, reason)
		l.until("calls pass", func() bool { return p.answered.Load() > before+50 })
		kept, err := filepath.Glob(filepath.Join(dir, "*.damaged"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range kept { // whose damage is told until somebody takes it away
			if v, err := l.api.Verify(t.Context()); err != nil || v.Intact || !strings.Contains(fmt.Sprint(v), filepath.Base(f)) {
				t.Errorf("%s: %s is kept, and not told: %+v, %v", what, f, v, err)
			}
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
		if v, err := l.api.Verify(t.Context()); err != nil || !v.Intact {
			t.Errorf("%s: the log does not verify: %+v, %v", what, v, err)
		}
	}
	time.Sleep(300 * time.Millisecond)
	do("rm", "log_deleted", os.Remove(newest()))
	do("mv", "log_moved", os.Rename(dir, dir+".old"))
	do("rm lock", "log_unlocked", os.Remove(filepath.Join(dir, "lock")))
	stop()
	l.accounted(p)
	stop = p.start(8)
	defer stop()
	do("truncate", "log_truncated", os.Truncate(newest(), 0))
	stop()
	for id, answered := range p.all {
		if !answered {
			t.Errorf("%s was not answered", id)
		}
	}
}
