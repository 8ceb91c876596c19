package proxy

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
)

// maxUnixPath is sun_path of unix(7) without its end.
const maxUnixPath = 107

// A socket accepts connections on one address and hands them to whichever
// listener has it. It outlives listeners that replace each other on it, so that
// no connection is refused in between.
type socket struct {
	ln      net.Listener
	stated  string
	current atomic.Pointer[feed]
}

// openSocket listens on addr: host:port, or unix: and an absolute path.
func openSocket(ctx context.Context, addr string) (*socket, error) {
	network, at := "tcp", addr
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, at = "unix", path
		if err := clearPath(ctx, path); err != nil {
			return nil, err
		}
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, network, at)
	if err != nil {
		return nil, listenFault(err, addr)
	}
	if network == "unix" {
		// Who connects is asked by its credentials; the file's mode is not the check.
		if err := os.Chmod(at, 0o666); err != nil {
			_ = ln.Close()
			return nil, fault.Wrap(err, fault.SocketPath, "", "cannot open %s to its service", at)
		}
	}
	return &socket{ln: ln, stated: addr}, nil
}

// clearPath removes the socket that a killed process left, and nothing else.
func clearPath(ctx context.Context, path string) error {
	if len(path) > maxUnixPath {
		return fault.New(fault.SocketPath, "choose a shorter path", "the socket path %s is longer than %d bytes", path, maxUnixPath)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil // listening will say what is wrong, if anything is
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fault.New(fault.SocketPath, "choose another path, or move the file away", "%s exists and is not a socket", path)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return fault.New(fault.SocketPath, "see who it is: ss -xlp", "another process listens on %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fault.Wrap(err, fault.SocketPath, "", "cannot tell whether %s is in use", path)
	}
	if err := os.Remove(path); err != nil {
		return fault.Wrap(err, fault.SocketPath, "", "cannot remove the old socket %s", path)
	}
	return nil
}

func listenFault(err error, addr string) error {
	switch {
	case strings.HasPrefix(addr, "unix:"):
		return fault.Wrap(err, fault.SocketPath, "check that the directory exists and the agent may write to it", "cannot listen on %s", addr)
	case errors.Is(err, syscall.EADDRINUSE):
		return fault.Wrap(err, fault.PortOccupied, "see who it is: ss -tlnp", "another process listens on %s", addr)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fault.Wrap(err, fault.PortForbidden, "use a port from 1024, or give the agent CAP_NET_BIND_SERVICE", "may not listen on %s", addr)
	}
	return fault.Wrap(err, fault.PortForbidden, "check that the address is one of this host", "cannot listen on %s", addr)
}

// address is the bound address.
func (s *socket) address() string {
	if strings.HasPrefix(s.stated, "unix:") {
		return s.stated
	}
	return s.ln.Addr().String()
}

// hand gives the connections from now on to f.
func (s *socket) hand(f *feed) { s.current.Store(f) }

func (s *socket) close() { _ = s.ln.Close() }

// accept runs until the socket is closed.
func (s *socket) accept(ctx context.Context, clk clock.Clock) {
	for {
		c, err := s.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, or a connection that was gone already.
			if clk.Sleep(ctx, 20*time.Millisecond) != nil {
				return
			}
			continue
		}
		s.pass(c)
	}
}

// pass gives c to the current listener; one that was just replaced does not take
// it, and then it is its successor's.
func (s *socket) pass(c net.Conn) {
	for {
		f := s.current.Load()
		if f != nil && f.full(c) {
			_ = c.Close()
			return
		}
		if f != nil && f.offer(c) {
			return
		}
		if f == s.current.Load() {
			_ = c.Close() // draining
			return
		}
	}
}

// A feed is the net.Listener that a listener sees.
type feed struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	// full says that the listener has as many connections as it may, and records that
	// this one has no room.
	full func(net.Conn) bool
}

func newFeed() *feed { return &feed{conns: make(chan net.Conn), done: make(chan struct{})} }

func (f *feed) offer(c net.Conn) bool {
	select {
	case f.conns <- c:
		return true
	case <-f.done:
		return false
	}
}

// Accept implements net.Listener.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *feed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// Addr implements net.Listener.
func (f *feed) Addr() net.Addr { return feedAddr{} }

// feedAddr stands for the socket's address, which belongs to the socket.
type feedAddr struct{}

func (feedAddr) Network() string { return "parley" }
func (feedAddr) String() string  { return "listener" }
