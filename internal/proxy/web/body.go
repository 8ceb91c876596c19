package web

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/proxy/route"
)

var errBodyOver = errors.New("the request is over")

// A body is a request's body on its way upstream. net/http's client reads it on
// a goroutine that may outlive the round trip, and its server must not be read
// after the handler has returned; release stands between the two.
type body struct {
	src      io.ReadCloser
	from     *http.Request // whose Trailer is filled at the end of src
	trailer  http.Header   // of the forwarded request; only its keys are filled
	control  *http.ResponseController
	clk      clock.Clock
	http1    bool
	deadline bool // a body that stands still ends

	n      atomic.Int64
	gone   atomic.Bool // the client left in the middle
	broken atomic.Bool // the client sent what is no body
	over   atomic.Bool
	whole  atomic.Bool // src was read to its end
	ending sync.Mutex  // held where over is set

	mu    sync.Mutex // held while src is read; guards what follows
	armed time.Time
	begun bool // src was read from
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over.Load() {
		return 0, errBodyOver
	}
	b.arm()
	b.begun = true
	n, err := b.src.Read(p)
	b.n.Add(int64(n))
	switch {
	case err == nil:
	case b.over.Load() && !errors.Is(err, io.EOF):
		return n, errBodyOver // it was interrupted: that says nothing of the client
	case errors.Is(err, io.EOF):
		b.whole.Store(true)
		b.disarm()
		for key := range b.trailer {
			b.trailer[key] = b.from.Trailer[key]
		}
	case isNet(err):
		b.gone.Store(true)
	default:
		b.broken.Store(true)
	}
	return n, err
}

// isNet says that err is the connection's, and not about what came over it.
func isNet(err error) bool {
	var op net.Error
	return errors.As(err, &op) || errors.Is(err, io.ErrUnexpectedEOF)
}

// Close implements io.Closer for the client half; the body itself is the server
// half's to close. Over HTTP/2 it ends a read under way: when the connection to the
// upstream is cut, the client half ends the response only once it has its reader of
// the request back, which a silent client would hold for ever.
func (b *body) Close() error {
	b.ending.Lock()
	defer b.ending.Unlock()
	if b.over.Swap(true) || b.http1 {
		return nil
	}
	if b.mu.TryLock() {
		b.mu.Unlock()
		return nil
	}
	// Within ending, so that the handler has not returned: it could not be asked then.
	_ = b.control.SetReadDeadline(time.Unix(1, 0))
	return nil
}

// reopen undoes Close where nobody has read, and says whether that is so.
func (b *body) reopen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.begun {
		b.over.Store(false)
	}
	return !b.begun
}

// Over HTTP/1.1 the rest of a body that the response did not wait for is thrown
// away by net/http, which closes gently then: a close with unread bytes would
// take the response along. A read under way gets a moment for that, as long as
// net/http itself waits before it closes, for where it is interrupted net/http throws
// nothing away; the rest gets a while.
const (
	readGrace = 500 * time.Millisecond
	restTime  = 5 * time.Second
	// restBytes is at most what of a refused request's body is thrown away.
	restBytes = 64 << 20
)

// release returns once nobody reads the body any more, and nobody will.
func (b *body) release() {
	b.ending.Lock()
	b.over.Store(true)
	b.ending.Unlock()
	if !b.mu.TryLock() {
		grace := time.Unix(1, 0)
		if b.http1 {
			grace = b.clk.Now().Add(readGrace)
		}
		_ = b.control.SetReadDeadline(grace)
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	if b.http1 && !b.whole.Load() {
		_ = b.control.SetReadDeadline(b.clk.Now().Add(restTime))
	}
}

// arm moves the deadline when a good part of it has passed. Members of the mesh may
// keep each other waiting, and a stream of gRPC is silent for as long as it likes,
// so over HTTP/2 they have none and pings find dead peers; how many of them there
// are is bounded. Strangers may not.
func (b *body) arm() {
	if !b.deadline {
		return
	}
	if now := b.clk.Now(); now.Sub(b.armed) > stall/4 {
		b.armed = now
		_ = b.control.SetReadDeadline(now.Add(stall))
	}
}

// disarm: net/http goes on reading, to notice a client that leaves.
func (b *body) disarm() {
	if b.deadline {
		_ = b.control.SetReadDeadline(time.Time{})
	}
}

// early says that the response ends before a request over HTTP/1.1 did, of which
// somebody has begun to read the body.
func (x *exchange) early() bool {
	return x.r.ProtoMajor == 1 && x.body != nil && !x.body.whole.Load()
}

// sendAhead sends such a response now. Otherwise net/http sends it once the reading
// was given up, and closes behind it: the client, which is still writing, could see
// that its connection is reset and never read the answer.
func (x *exchange) sendAhead() {
	if x.early() {
		_ = x.control.Flush() // a client that left is noticed by others
	}
}

// lastUnlessRead makes the response the connection's last where part of the body
// that went upstream is still to come: net/http waits for the rest only so long,
// and takes what comes later for the next request.
func (x *exchange) lastUnlessRead() {
	if x.early() {
		x.w.Header()["Connection"] = []string{"close"}
	}
}

// unread says that the request has a body over HTTP/1.1 that nobody was given to
// read.
func (x *exchange) unread() bool {
	return x.body == nil && x.r.ProtoMajor == 1 && x.r.ContentLength != 0 && x.r.Body != nil && x.r.Body != http.NoBody
}

// skipBody throws an unread body away, so that the connection can go on, behind
// an answer of known length. A client that does not send the rest in time loses
// the connection: what came later would be taken for the next request.
func (x *exchange) skipBody() {
	_ = x.control.SetReadDeadline(x.server.cfg.Clock.Now().Add(restTime))
	if x.r.Header.Get("Expect") != "" {
		return // net/http closes the connection; reading would ask for the body
	}
	if err := x.control.Flush(); err != nil {
		return
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(x.r.Body, restBytes)); err != nil || n == restBytes {
		panic(http.ErrAbortHandler)
	}
}

// trailers are the announced trailer fields that may travel; the others make the
// request one to refuse.
func trailers(announced http.Header) (http.Header, error) {
	if len(announced) == 0 {
		return nil, nil
	}
	out := make(http.Header, len(announced))
	for name := range announced {
		if !route.TrailerAllowed(name) {
			return nil, &route.Refusal{Code: route.HeaderRefused, Status: http.StatusBadRequest, Reason: "the request announces a trailer that may not be one"}
		}
		out[name] = nil
	}
	return out, nil
}
