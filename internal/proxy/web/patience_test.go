package web

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/parleymesh/parley/internal/clock"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
)

// A gRPC server that says nothing for hours, not even its header, is waited for;
// and it does not end the connection because it was asked too often whether it
// lives, as gRPC servers do.
func TestSilentStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ln := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
			select {
			case <-s.Context().Done():
				return s.Context().Err()
			case <-time.After(3 * time.Hour):
				return status.Error(codes.NotFound, "after all")
			}
		}))
		go func() { _ = server.Serve(ln) }()
		defer server.Stop()
		app := NewApp("pipe", true, clock.System{})
		defer app.Close()
		transport := app.transport(streaming)
		transport.dial = ln.dial
		for name, body := range map[string]io.Reader{"unary": nil, "open": blocked{make(chan struct{})}} {
			req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://app/shop.Orders/Watch", body)
			req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
			began := time.Now()
			resp, _, err := transport.roundTrip(req, func(_ net.Conn, r *http.Request) (*http.Request, error) { return r, nil })
			if b, ok := body.(blocked); ok {
				close(b.until)
			}
			if err != nil {
				t.Errorf("%s: after %s: %v", name, time.Since(began), err)
				continue
			}
			if s := resp.Header.Get("Grpc-Status"); s != "5" || time.Since(began) < 3*time.Hour {
				t.Errorf("%s: after %s: status %q", name, time.Since(began), s)
			}
			_ = resp.Body.Close()
		}
	})
}

// The way between sidecars has the same patience, and every other request its limit.
func TestPatience(t *testing.T) {
	t.Parallel()
	ca := mtlstest.NewCA(t, "shop.example")
	source := mtlstest.NewSource(ca.Credential(t, "web", time.Hour), mtlstest.Trust(1, []*mtlstest.CA{ca}, ca.ID(t, "web")))
	mesh := NewMesh(source, ca.ID(t, "orders"), clock.System{}, nil)
	mesh.Endpoints().Update("", []string{"127.0.0.1:1"})
	defer mesh.Close()
	app := NewApp("127.0.0.1:1", true, clock.System{})
	for c, want := range map[carriage]time.Duration{http1: answerTimeout, http2: answerTimeout, streaming: 0} {
		try := mesh.set.Begin()
		far, err := try.Kept.transport(c)
		try.Done()
		if err != nil {
			t.Fatal(err)
		}
		for name, transport := range map[string]*pool{"mesh": far, "app": app.transport(c)} {
			if transport.t.ResponseHeaderTimeout != want || transport.t.HTTP2.SendPingTimeout <= 5*time.Minute {
				t.Errorf("%s, %d: waits %s, asks each %s", name, c, transport.t.ResponseHeaderTimeout, transport.t.HTTP2.SendPingTimeout)
			}
		}
	}
}

// blocked is a body of which nothing comes.
type blocked struct{ until chan struct{} }

func (b blocked) Read([]byte) (int, error) {
	<-b.until
	return 0, io.EOF
}

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) dial(context.Context) (net.Conn, error) {
	in, out := newBuffer(), newBuffer()
	p.conns <- &memory{in: out, out: in}
	return &memory{in: in, out: out}, nil
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.done)
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// memory is a connection whose writes do not wait for a reader, as those of
// net.Pipe do. It has no deadlines.
type memory struct {
	net.Conn
	in, out *buffer
}

func (m *memory) Read(p []byte) (int, error)       { return m.in.read(p) }
func (m *memory) Write(p []byte) (int, error)      { return m.out.write(p) }
func (m *memory) SetDeadline(time.Time) error      { return nil }
func (m *memory) SetReadDeadline(time.Time) error  { return nil }
func (m *memory) SetWriteDeadline(time.Time) error { return nil }
func (m *memory) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (m *memory) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

func (m *memory) Close() error {
	m.in.close()
	m.out.close()
	return nil
}

type buffer struct {
	mu   sync.Mutex // guards what follows
	more *sync.Cond
	data []byte
	over bool
}

func newBuffer() *buffer {
	b := &buffer{}
	b.more = sync.NewCond(&b.mu)
	return b
}

func (b *buffer) read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.data) == 0 && !b.over {
		b.more.Wait()
	}
	if len(b.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.data)
	b.data = b.data[n:]
	return n, nil
}

func (b *buffer) write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return 0, io.ErrClosedPipe
	}
	b.data = append(b.data, p...)
	b.more.Signal()
	return len(p), nil
}

func (b *buffer) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	b.more.Broadcast()
}
