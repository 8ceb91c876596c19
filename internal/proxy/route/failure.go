package route

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
)

// Codes of call.Outcome.Error: how a call failed after it was allowed.
const (
	UpstreamRefused   = "upstream_refused"   // no connection, or it refused our certificate
	UpstreamUntrusted = "upstream_untrusted" // we refused its certificate, or the process that listens
	UpstreamBusy      = "upstream_busy"      // all our connections to it are taken
	UpstreamTimeout   = "upstream_timeout"   // it did not answer in time
	UpstreamClosed    = "upstream_closed"    // it ended the connection in the middle
	ClientClosed      = "client_closed"      // the caller went away
	TrustWithdrawn    = "trust_withdrawn"    // an identity at either end left the mesh
	PlaintextEnded    = "plaintext_ended"    // the caller came without TLS, which is not let in any more
	NoCredential      = "credential_missing" // we have no certificate to call with
	IdentityUnsigned  = "identity_unsigned"  // who calls could not be signed for the service
	IdleTimeout       = "idle_timeout"       // nothing was sent either way for too long
	Stopped           = "proxy_stopped"      // our listener was removed or stopped
)

// ErrBusy says that an upstream had as many connections as it may for longer than
// a request waits.
var ErrBusy = errors.New("the upstream has as many connections as it may")

// ErrUnsigned says that a gateway could not sign whom it let in.
var ErrUnsigned = errors.New("the caller's identity could not be signed")

// A Stranger is why an application's socket was left alone: somebody else listens.
type Stranger struct{ Err error }

// Error implements error.
func (s *Stranger) Error() string { return s.Err.Error() }

// Unwrap is the reason.
func (s *Stranger) Unwrap() error { return s.Err }

// Cut is why the proxy itself cut one of conns, "" where it did not.
func Cut(conns ...net.Conn) string {
	for _, c := range conns {
		switch {
		case c == nil || !mtls.Withdrawn(c):
		case mtls.Plaintext(c):
			return PlaintextEnded
		default:
			return TrustWithdrawn
		}
	}
	return ""
}

// Failure names err, which came from reaching or using an upstream, and the HTTP
// status for it.
func Failure(err error) (code string, status int) {
	var dns *net.DNSError
	var stranger *Stranger
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return ClientClosed, 0
	case errors.Is(err, ErrBusy):
		return UpstreamBusy, http.StatusServiceUnavailable
	case errors.Is(err, ErrUnsigned):
		return IdentityUnsigned, http.StatusServiceUnavailable
	case mtls.IsRefusal(err), errors.As(err, &stranger):
		return UpstreamUntrusted, http.StatusBadGateway
	case errors.Is(err, identity.ErrNoCredential), errors.Is(err, mtls.ErrNoTrust), errors.Is(err, identity.ErrExpired):
		return NoCredential, http.StatusServiceUnavailable
	case mtls.ByPeer(err), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.As(err, &dns):
		return UpstreamRefused, http.StatusBadGateway
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return UpstreamTimeout, http.StatusGatewayTimeout
	case errors.Is(err, net.ErrClosed):
		return TrustWithdrawn, http.StatusBadGateway
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return UpstreamClosed, http.StatusBadGateway
	}
	return UpstreamClosed, http.StatusBadGateway
}

// errAnswer stands for what an upstream sent that is not as it should be: an error of
// net/http repeats it.
var errAnswer = errors.New("the upstream's answer is not as it should be")

// Told is what of err may be in the log: the words of the network, of TLS and of this
// program, and nothing that either side sent.
func Told(err error) error {
	var op *net.OpError
	var dns *net.DNSError
	var number syscall.Errno
	switch code, _ := Failure(err); {
	case err == nil, code != UpstreamClosed, errors.As(err, &op), errors.As(err, &dns), errors.As(err, &number), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return err
	}
	return errAnswer
}
