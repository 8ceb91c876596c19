package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// load sends requests at the rate over connections of its own, each on time
// whether or not the one before was quick. Nothing is ever sent twice: a
// connection that the other side closed without having said so is a failure.
func load(ctx context.Context, o options, addr string) (sent int, failures []string) {
	var mu sync.Mutex // guards sent and failures
	var wg sync.WaitGroup
	began := time.Now()
	total := int(o.duration.Seconds() * float64(o.rate))
	for w := range o.conns {
		wg.Go(func() {
			c := &conn{addr: addr}
			defer c.close()
			for i := w; i < total && ctx.Err() == nil; i += o.conns {
				due := began.Add(time.Duration(i) * time.Second / time.Duration(o.rate))
				time.Sleep(time.Until(due))
				err := c.request(requestID(i))
				mu.Lock()
				sent++
				if err != nil {
					failures = append(failures, fmt.Sprintf("%s at %s: %v", requestID(i), time.Since(began).Round(time.Millisecond), err))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return sent, failures
}

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
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(text), id) {
		return fmt.Errorf("status %d: %.200s", resp.StatusCode, text)
	}
	if resp.Close {
		c.close()
	}
	return nil
}
