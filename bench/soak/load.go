package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A result is what became of the load.
type result struct {
	sent      int
	took      time.Duration
	failures  []string
	latencies []time.Duration // of each request, from its sending
	// late is how far the client itself fell behind its schedule at worst: it
	// tells a machine without time to give from a mesh that is slow.
	late time.Duration
}

// load sends requests at the rate, in bursts of one a connection: every
// connection stays in use throughout, at each hop, so that a count of descriptors
// that moves has no harmless reason. Nothing is ever sent twice: a connection that
// the other side closed without having said so is a failure.
func load(ctx context.Context, o options, addr string) (r result) {
	var mu sync.Mutex // guards r
	var wg sync.WaitGroup
	began := time.Now()
	total := int(o.duration.Seconds() * float64(o.rate))
	for w := range o.conns {
		wg.Go(func() {
			c := &conn{addr: addr}
			defer c.close()
			for i := w; i < total && ctx.Err() == nil; i += o.conns {
				due := began.Add(time.Duration(i/o.conns*o.conns) * time.Second / time.Duration(o.rate))
				time.Sleep(time.Until(due))
				sending := time.Now()
				err := c.request(requestID(i))
				mu.Lock()
				r.sent++
				r.latencies = append(r.latencies, time.Since(sending))
				r.late = max(r.late, sending.Sub(due))
				if err != nil {
					r.failures = append(r.failures, fmt.Sprintf("%s at %s, after %s: %v", requestID(i),
						sending.Sub(began).Round(time.Millisecond), time.Since(sending).Round(time.Millisecond), err))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.took = time.Since(began)
	slices.Sort(r.latencies)
	return r
}

// print says what came of it, failures first to last.
func (r *result) print() {
	fmt.Printf("requests    %d in %s, %.0f a second\n", r.sent, r.took.Round(time.Second), float64(r.sent)/r.took.Seconds())
	if n := len(r.latencies); n > 0 {
		fmt.Printf("latency     %s at the median, %s at p99, %s at most; the client was %s late at most\n",
			round(r.latencies[n/2]), round(r.latencies[n*99/100]), round(r.latencies[n-1]), round(r.late))
	}
	fmt.Printf("failed      %d\n", len(r.failures))
	for _, f := range r.failures[:min(len(r.failures), 20)] {
		fmt.Println("  ", f)
	}
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

func requestID(i int) string { return fmt.Sprintf("soak-%07d", i) }

// A conn is one HTTP/1.1 connection without any retry.
type conn struct {
	addr string
	c    net.Conn
	r    *bufio.Reader
}

func (c *conn) close() {
	if c.c != nil {
		c.c.Close()
		c.c = nil
	}
}

func (c *conn) request(id string) error {
	if c.c == nil {
		d, err := net.DialTimeout("tcp", c.addr, 5*time.Second)
		if err != nil {
			return err
		}
		c.c, c.r = d, bufio.NewReader(d)
	}
	if err := c.c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	err := c.exchange(id)
	if err != nil {
		c.close()
	}
	return err
}

func (c *conn) exchange(id string) error {
	body := "hello"
	_, err := fmt.Fprintf(c.c, "POST /soak/%s HTTP/1.1\r\nHost: server\r\nX-Request-Id: %s\r\nContent-Length: %d\r\n\r\n%s", id, id, len(body), body)
	if err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if want := "hello " + id + "\n"; resp.StatusCode != http.StatusOK || string(text) != want {
		return fmt.Errorf("status %d: %.200s", resp.StatusCode, strings.TrimSpace(string(text)))
	}
	if resp.Close {
		c.close()
	}
	return nil
}
