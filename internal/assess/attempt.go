package assess

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// How long an attempt waits: to connect, and for what comes back. An answer that is
// a refusal comes at once; what stays open for so long was not refused.
const (
	connectTime = 3 * time.Second
	answerTime  = 3 * time.Second
	maxAnswer   = 64 << 10
)

// probeProtocol is what a probe offers in its handshake (RFC 7301), and what tells it
// from a call: the sidecar answers it in place of the application.
const probeProtocol = "parley-probe/1"

// noRequest is a request that every server of HTTP/1.1 has to answer with 400 and
// none forwards, since it names no host (RFC 9112 section 3.2). It makes whoever let
// its sender in say something.
const noRequest = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n"

// noTLS is what no TLS begins with.
const noTLS = "PARLEY VERIFY\r\n"

// An approach is how a client comes.
type approach struct {
	cert  *tls.Certificate // nil for none
	probe bool             // as a probe, and otherwise as any caller
	max   uint16           // newest version of TLS; 0 is the newest there is
	taken *bool            // where set, becomes true once the server took a version up
	kept  *tickets         // sessions to resume, and where new ones go
}

// tickets keep the sessions of one client.
type tickets struct {
	mu  sync.Mutex // guards all
	all map[string]*tls.ClientSessionState
	n   int
}

// Get implements tls.ClientSessionCache.
func (t *tickets) Get(key string) (*tls.ClientSessionState, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.all[key]
	return s, s != nil
}

// Put implements tls.ClientSessionCache.
func (t *tickets) Put(key string, s *tls.ClientSessionState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s == nil {
		return
	}
	if t.all == nil {
		t.all = map[string]*tls.ClientSessionState{}
	}
	t.all[key] = s
	t.n++
}

// count is how many came: a server issues one once the client's side of the
// handshake has been accepted (RFC 8446 section 4.6.1).
func (t *tickets) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// errUnreached says that there was nobody to try anything of.
var errUnreached = errors.New("not reached")

// handshake connects and shakes hands by a.
func (t *target) handshake(ctx context.Context, a approach) (*tls.Conn, error) {
	d := net.Dialer{Timeout: connectTime}
	raw, err := d.DialContext(ctx, "tcp", t.at)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreached, err)
	}
	cfg := &tls.Config{
		// The one who is attacked proves nothing; whom the control reaches is verified there.
		InsecureSkipVerify: true,
		MinVersion:         tls.VersionTLS10, MaxVersion: a.max,
		Time:               t.session.tools.Clock.Now,
		ClientSessionCache: a.kept,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if a.cert == nil {
				return &tls.Certificate{}, nil
			}
			return a.cert, nil // whatever the server says that it would like
		},
	}
	if a.taken != nil {
		// Called before a client of TLS 1.2 sends its certificate.
		cfg.VerifyConnection = func(tls.ConnectionState) error { *a.taken = true; return nil }
	}
	switch {
	case a.probe:
		cfg.NextProtos = []string{probeProtocol}
	case t.edge.HTTP:
		cfg.NextProtos = []string{"http/1.1"}
	}
	c := tls.Client(raw, cfg)
	_ = raw.SetDeadline(t.session.tools.Clock.Now().Add(answerTime))
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

// A verdict is what came of an attempt that should be refused.
type verdict struct {
	outcome Outcome
	detail  string
}

// try is an attempt that the handshake should end. In TLS 1.3 a client has finished
// before the server judged its certificate, so that is known after the first read.
func (t *target) try(ctx context.Context, a approach) verdict {
	if a.kept == nil {
		a.kept = &tickets{}
	}
	before := a.kept.count()
	c, err := t.handshake(ctx, a)
	if err != nil {
		return refusal(err)
	}
	defer c.Close()
	state := c.ConnectionState()
	if v := state.Version; v < tls.VersionTLS13 {
		return verdict{Failed, "it shook hands in " + tls.VersionName(v)}
	}
	if t.edge.HTTP {
		if _, err := io.WriteString(c, noRequest); err != nil && a.kept.count() == before {
			return refusal(err)
		}
	}
	first := make([]byte, 64)
	n, err := c.Read(first)
	switch v := refusal(err); {
	case n > 0:
		return verdict{Failed, fmt.Sprintf("it answered: %q", firstLine(first[:n]))}
	case state.DidResume && !alerted(err):
		// Who resumes may be sent a ticket before anything is judged.
		return verdict{Failed, "its session was resumed"}
	case !state.DidResume && a.kept.count() > before:
		return verdict{Failed, "its handshake was accepted"}
	case v.outcome == Inconclusive:
		return verdict{Failed, fmt.Sprintf("the connection was still open after %s", answerTime)}
	default:
		return v
	}
}

// alerted says that the other side ended the connection with an alert.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// refusal is how err ended an attempt.
func refusal(err error) verdict {
	var op *net.OpError
	var timeout net.Error
	switch {
	case err == nil:
		return verdict{Failed, "it was not refused"}
	case errors.Is(err, errUnreached):
		return verdict{Inconclusive, err.Error()}
	case alerted(err) && errors.As(err, &op):
		return verdict{OK, op.Err.Error()}
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return verdict{OK, "the connection was closed"}
	case errors.As(err, &timeout) && timeout.Timeout():
		return verdict{Inconclusive, fmt.Sprintf("no answer in %s", answerTime)}
	}
	return verdict{Inconclusive, err.Error()}
}

func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(b, []byte("\r\n"))
	return string(line)
}

// An answer is what a probe was told that completed its handshake.
type answer struct {
	conn     *tls.Conn
	reader   *bufio.Reader
	allowed  bool
	status   int    // of HTTP
	by       string // who answered an allowed one: answered, forwarded
	decision string
}

// ask makes the call r as a probe and waits for what is decided. last lets the
// connection end with it.
func (t *target) ask(ctx context.Context, a approach, r Request, last bool) (*answer, error) {
	c, err := t.handshake(ctx, a)
	if err != nil {
		return nil, err
	}
	ans := &answer{conn: c, reader: bufio.NewReaderSize(io.LimitReader(c, maxAnswer), 4096)}
	if c.ConnectionState().NegotiatedProtocol != probeProtocol {
		_ = c.Close()
		return nil, errNoProber
	}
	if err := t.exchange(ans, r, last); err != nil {
		_ = c.Close()
		return nil, err
	}
	if last {
		_ = c.Close()
	}
	return ans, nil
}

// errNoProber says that no sidecar which knows probes is in front of the callee.
var errNoProber = errors.New("what answers there takes no probes: a program with the SDK, another proxy, or an older Parley")

func (t *target) exchange(ans *answer, r Request, last bool) error {
	if !t.edge.HTTP {
		line, err := ans.reader.ReadString('\n')
		ans.allowed = line == "parley-probe: allowed\n"
		if err != nil && line == "" && refusal(err).outcome == OK {
			return nil // denied: a connection of TCP is told no more
		}
		return err
	}
	how := "keep-alive"
	if last {
		how = "close"
	}
	_, err := fmt.Fprintf(ans.conn, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: parley-verify\r\nConnection: %s\r\n\r\n", r.Method, r.Path, t.edge.Callee, how)
	if err != nil {
		return err
	}
	resp, err := http.ReadResponse(ans.reader, &http.Request{Method: r.Method})
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	ans.status, ans.by, ans.decision = resp.StatusCode, resp.Header.Get("Parley-Probe"), resp.Header.Get("Parley-Decision")
	ans.allowed = ans.by != ""
	return err
}

// verifyCallee says why chain is not the callee's.
func (t *target) verifyCallee(chain []*x509.Certificate) error {
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range t.session.tools.Roots {
		roots.AddCert(r)
	}
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	leaf := chain[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: t.session.tools.Clock.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return fmt.Errorf("its certificate is not good: %w", err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != t.edge.CalleeID.String() {
		return fmt.Errorf("its certificate is %v's", leaf.URIs)
	}
	return nil
}
