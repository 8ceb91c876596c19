package node

import (
	"net"
	"sync"
	"time"
)

// Anybody may ask for metrics and health, and many may ask at once; who holds a
// connection without asking loses it.
const (
	maxMetrics  = 32
	metricsIdle = 5 * time.Second
)

// few is a listener that has at most so many connections at once; more wait in the
// kernel, which needs no descriptor for them.
type few struct {
	net.Listener
	room chan struct{}
	done chan struct{}
	once sync.Once
}

func newFew(l net.Listener, most int) *few {
	return &few{Listener: l, room: make(chan struct{}, most), done: make(chan struct{})}
}

// Accept implements net.Listener.
func (f *few) Accept() (net.Conn, error) {
	select {
	case f.room <- struct{}{}:
	case <-f.done:
		return nil, net.ErrClosed
	}
	c, err := f.Listener.Accept()
	if err != nil {
		<-f.room
		return nil, err
	}
	return &counted{Conn: c, leave: sync.OnceFunc(func() { <-f.room })}, nil
}

// Close implements net.Listener.
func (f *few) Close() error {
	f.once.Do(func() { close(f.done) })
	return f.Listener.Close()
}

type counted struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
