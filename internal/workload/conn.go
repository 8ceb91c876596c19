package workload

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/parleymesh/parley/internal/call"
)

// attested are transport credentials of which the handshake is an attestation:
// no byte of the process is read before it is known who it is.
type attested struct{ s *Server }

// ServerHandshake implements credentials.TransportCredentials. A process that
// cannot be attested keeps its connection, so that it is told so in the words of
// the protocol.
func (a attested) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	u, ok := raw.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("workload: not a Unix socket")
	}
	subject, proc, err := a.s.cfg.Backend.Attest(u)
	if !a.s.conns.enter(proc) {
		if subject != nil {
			subject.Close()
		}
		a.s.cfg.Logger.Debug("workload API connection refused: too many of one process or user", "pid", proc.PID, "uid", proc.UID)
		return nil, nil, errors.New("workload: too many connections")
	}
	c := &conn{Conn: raw, done: make(chan struct{})}
	sess := &session{s: a.s, proc: proc, gone: c.done}
	if err != nil {
		sess.refuse("not_attested", err.Error())
	} else {
		sess.subject = subject
	}
	c.end = func() {
		if sess.subject != nil {
			subject.Close()
		}
		a.s.conns.leave(proc)
	}
	if sess.subject != nil {
		go c.closeWith(subject.Gone())
	}
	return c, sess, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (attested) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("workload: server only")
}

// Info implements credentials.TransportCredentials.
func (attested) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: authType}
}

// Clone implements credentials.TransportCredentials.
func (a attested) Clone() credentials.TransportCredentials { return a }

// OverrideServerName implements credentials.TransportCredentials.
func (attested) OverrideServerName(string) error { return nil }

// A conn is a connection with its attested process.
type conn struct {
	net.Conn
	once sync.Once
	done chan struct{} // closed by Close
	end  func()
}

// Close implements net.Conn and releases the process.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.done)
		err = c.Conn.Close()
		c.end()
	})
	return err
}

// closeWith closes the connection when its process is gone: whoever still holds
// it then, by fork, was never attested.
func (c *conn) closeWith(gone <-chan struct{}) {
	select {
	case <-gone:
		_ = c.Close()
	case <-c.done:
	}
}

// conns counts connections by process and by user.
type conns struct {
	max int
	mu  sync.Mutex // guards what follows
	all int
	pid map[int]int
	uid map[int]int
}

func newConns(most int) *conns { return &conns{max: most, pid: map[int]int{}, uid: map[int]int{}} }

// enter counts one more, or says that there are enough.
func (c *conns) enter(p call.Process) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid[p.PID] >= maxProcessConns || c.uid[p.UID] >= max(1, c.max/4) || c.all >= c.max {
		return false
	}
	c.all++
	c.pid[p.PID]++
	c.uid[p.UID]++
	return true
}

func (c *conns) leave(p call.Process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.pid[p.PID]--; c.pid[p.PID] == 0 {
		delete(c.pid, p.PID)
	}
	if c.uid[p.UID]--; c.uid[p.UID] == 0 {
		delete(c.uid, p.UID)
	}
}
