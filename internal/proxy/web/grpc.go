package web

import (
	"cmp"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// Fields of gRPC over HTTP/2 (doc/PROTOCOL-HTTP2.md of gRPC).
const (
	grpcType    = "application/grpc"
	grpcStatus  = "Grpc-Status"
	grpcMessage = "Grpc-Message"
)

// isGRPC says that r is a call of gRPC: HTTP/2 with a content type of
// application/grpc, whatever the encoding of its messages. gRPC-Web, which has a
// content type of its own, is ordinary HTTP.
func isGRPC(r *http.Request) bool {
	if r.ProtoMajor != 2 || len(r.Header["Content-Type"]) != 1 {
		return false
	}
	rest, ok := strings.CutPrefix(r.Header["Content-Type"][0], grpcType)
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// answerGRPC is answer for a call of gRPC: a response of trailers only, which its
// client reads as the status of the call.
func (p *problem) answerGRPC(w http.ResponseWriter, id string, status int) {
	h := w.Header()
	h.Set("Content-Type", grpcType)
	h.Set("Cache-Control", "no-store")
	h[route.Decision] = []string{id}
	h.Set(grpcStatus, strconv.Itoa(status))
	h.Set(grpcMessage, encodeMessage(p.message(id)))
	w.WriteHeader(http.StatusOK)
}

// message is what a gRPC client shows.
func (p *problem) message(id string) string { return p.Detail + " Decision " + id }

// encodeMessage is the percent-encoding of Grpc-Message.
func encodeMessage(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			b.Write([]byte{'%', upperHex[c>>4], upperHex[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

const upperHex = "0123456789ABCDEF"

// parseStatus is the status in the header or trailer h, nil for none.
func parseStatus(h http.Header) *int {
	if len(h[grpcStatus]) != 1 || len(h[grpcStatus][0]) > 3 {
		return nil
	}
	n, err := strconv.ParseUint(h[grpcStatus][0], 10, 16)
	if err != nil {
		return nil
	}
	status := int(n)
	return &status
}

// sidecarStatus says that resp, which came from another proxy of the mesh, is its
// refusal or failure, and with which HTTP status it would be one of plain HTTP.
func (x *exchange) sidecarStatus(resp *http.Response) (status int, ok bool) {
	switch {
	case len(resp.Header[route.Decision]) != 1:
		return 0, false
	case !x.req.GRPC || resp.StatusCode != http.StatusOK:
		return resp.StatusCode, resp.StatusCode >= 400
	}
	s := parseStatus(resp.Header)
	if s == nil {
		return 0, false
	}
	switch *s {
	case call.GRPCPermissionDenied:
		return http.StatusForbidden, true
	case call.GRPCInternal:
		return http.StatusBadRequest, true
	}
	return http.StatusBadGateway, true
}

// breakGRPC ends a gRPC stream whose upstream failed with a status that says so,
// in place of a reset that tells the client nothing. It returns false where the
// client is gone, or is not of gRPC.
func (x *exchange) breakGRPC(failure string, err error) bool {
	if !x.req.GRPC || failure == route.ClientClosed {
		return false
	}
	_, x.grpc = x.req.Answer(http.StatusBadGateway)
	if late, s := x.ended(err); s != nil {
		failure, x.grpc = cmp.Or(late, failure), s
	}
	x.finish(failure, http.StatusOK)
	v := &x.req.Verdict
	p := newProblem(&x.req, v.ID, failure, http.StatusBadGateway)
	h := x.w.Header()
	h[http.TrailerPrefix+grpcStatus] = []string{strconv.Itoa(*x.grpc)}
	h[http.TrailerPrefix+grpcMessage] = []string{encodeMessage(p.message(v.ID))}
	h[http.TrailerPrefix+route.Decision] = []string{v.ID}
	return true
}

// A streamReset is a stream that its other side ended (RFC 9113 section 6.4). The
// error of net/http fills in a struct of this form, whatever its name.
type streamReset struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

// Error implements error.
func (streamReset) Error() string { return "the stream was reset" }

// ended is the status of gRPC for an upstream that ended a call on purpose, nil
// where it did not: gRPC servers reset a stream when its time is over, and by codes
// that mean something to their clients (doc/PROTOCOL-HTTP2.md of gRPC, Errors). late
// is the code of the failure where it was the time.
func (x *exchange) ended(err error) (late string, status *int) {
	var reset streamReset
	if !x.req.GRPC || !errors.As(err, &reset) {
		return "", nil
	}
	const refusedStream, cancel, enhanceYourCalm, inadequateSecurity = 7, 8, 11, 12
	s := call.GRPCInternal
	switch reset.Code {
	case refusedStream:
		s = call.GRPCUnavailable
	case cancel:
		s = call.GRPCCancelled
	case enhanceYourCalm:
		s = call.GRPCResourceExhausted
	case inadequateSecurity:
		s = call.GRPCPermissionDenied
	}
	if limit, ok := grpcTimeout(x.r.Header["Grpc-Timeout"]); ok && x.server.cfg.Clock.Now().Sub(x.req.Start) >= limit {
		s, late = call.GRPCDeadlineExceeded, route.UpstreamTimeout
	}
	return late, &s
}

// grpcTimeout reads Grpc-Timeout: at most eight digits and a unit.
func grpcTimeout(values []string) (time.Duration, bool) {
	if len(values) != 1 || len(values[0]) < 2 || len(values[0]) > 9 {
		return 0, false
	}
	v := values[0]
	unit, ok := map[byte]time.Duration{
		'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
	}[v[len(v)-1]]
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if !ok || err != nil {
		return 0, false
	}
	if time.Duration(n) > math.MaxInt64/unit {
		return math.MaxInt64, true
	}
	return time.Duration(n) * unit, true
}
