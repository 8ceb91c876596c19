package node_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// Who holds connections to the metrics' port, anybody on its network, does not use
// up descriptors, and loses them before long.
func TestMetricsPortIsNotHeld(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for idle connections to end")
	}
	text := "trust_domain: node.example\nservices:\n  site:\n    runs_as: {exe: /nobody/there}\n"
	cfg := config(t, shortDir(t), text)
	cfg.Metrics = freeAddr(t)
	startWith(t, cfg)
	const held = 60
	began := time.Now()
	for range held {
		c, err := net.Dial("tcp", cfg.Metrics)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := fmt.Fprint(c, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	if n := accepted(t, cfg.Metrics); n > 32 {
		t.Errorf("%d of them have a descriptor", n)
	}
	c, err := net.Dial("tcp", cfg.Metrics)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := fmt.Fprint(c, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("after %s: %v, %v", time.Since(began), resp, err)
	}
}

// accepted is how many connections to addr this process has a descriptor of, at the
// server's end.
func accepted(t *testing.T, addr string) (n int) {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	var number int
	if _, err := fmt.Sscan(port, &number); err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	inodes := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", number)) && f[3] == "01" { // ESTABLISHED
			inodes["socket:["+f[9]+"]"] = true
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && inodes[to] {
			n++
		}
	}
	return n
}
