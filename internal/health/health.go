// Package health asks an application of this host whether it can take calls: by HTTP,
// or by the health service of gRPC (grpc.health.v1).
//
// It refuses to judge from one answer: how many of them make an application healthy
// is for whoever asks.
package health

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/snapshot"
)

const (
	maxHeader = 64 << 10
	maxBody   = 1 << 10 // of an answer of gRPC; that of HTTP is not read
)

// Check asks the application at app, host:port or unix: and a path, once, within h's
// time. With h2 it speaks HTTP/2 from the first byte, as gRPC always does. nil is a
// good answer.
func Check(ctx context.Context, app string, h2 bool, h *snapshot.Health) error {
	ctx, done := context.WithTimeoutCause(ctx, h.Timeout, lateness(h.Timeout))
	defer done()
	ask := askHTTP
	if h.Kind == snapshot.HealthGRPC {
		ask, h2 = askGRPC, true
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			network, at := "tcp", app
			if path, ok := strings.CutPrefix(app, "unix:"); ok {
				network, at = "unix", path
			}
			var d net.Dialer
			return d.DialContext(ctx, network, at)
		},
		Protocols: new(http.Protocols), DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
	}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetUnencryptedHTTP2(h2)
	defer t.CloseIdleConnections()
	host := app
	if strings.HasPrefix(app, "unix:") {
		host = "localhost"
	}
	err := ask(ctx, t, host, h)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func lateness(d time.Duration) error { return fmt.Errorf("no answer in %s", d) }

func askHTTP(ctx context.Context, t *http.Transport, host string, h *snapshot.Health) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+h.Path, nil)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", "parley-health")
	resp, err := t.RoundTrip(r) // a redirect is an answer
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	switch {
	case h.Status != 0 && resp.StatusCode != h.Status:
		return fmt.Errorf("status %d, want %d", resp.StatusCode, h.Status)
	case h.Status == 0 && resp.StatusCode/100 != 2:
		return fmt.Errorf("status %d, want 2xx", resp.StatusCode)
	}
	return nil
}

// The codes of gRPC that say something of their own here, and the states of
// HealthCheckResponse.ServingStatus.
const (
	notFound      = "5"
	unimplemented = "12"
	serving       = 1
)

var states = []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

func askGRPC(ctx context.Context, t *http.Transport, host string, h *snapshot.Health) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+host+"/grpc.health.v1.Health/Check", bytes.NewReader(question(h.Service)))
	if err != nil {
		return err
	}
	r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {"parley-health"}}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return err
	}
	code, text := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if code == "" { // an answer of trailers alone comes as a header
		code, text = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	switch {
	case resp.StatusCode != http.StatusOK || code == "":
		return fmt.Errorf("status %d of HTTP, and none of gRPC", resp.StatusCode)
	case code == notFound:
		return fmt.Errorf("it does not know the service %q", h.Service)
	case code == unimplemented:
		return errors.New("it has no service grpc.health.v1.Health")
	case code != "0":
		return fmt.Errorf("status %.20q of gRPC, %.80q", code, text)
	}
	state, err := answer(body)
	if err != nil {
		return err
	}
	if state != serving {
		if state < uint64(len(states)) {
			return errors.New(states[state])
		}
		return fmt.Errorf("serving status %d", state)
	}
	return nil
}

// question is a HealthCheckRequest as a message of gRPC: field 1 is the service.
func question(service string) []byte {
	var m []byte
	if service != "" {
		m = binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(service)))
		m = append(m, service...)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

var errAnswer = errors.New("an answer that is no HealthCheckResponse")

// answer is the status of a HealthCheckResponse, which is all of body: field 1. What
// is not there has the value 0, and of several the last counts.
func answer(body []byte) (state uint64, err error) {
	if len(body) < 5 || body[0] != 0 || uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(body)-5) {
		return 0, errAnswer
	}
	for m := body[5:]; len(m) > 0; {
		tag, n := binary.Uvarint(m)
		if n <= 0 || tag>>3 == 0 {
			return 0, errAnswer
		}
		m = m[n:]
		size := uint64(0)
		switch tag & 7 {
		case 0: // varint
			v, n := binary.Uvarint(m)
			if n <= 0 {
				return 0, errAnswer
			}
			if size = uint64(n); tag>>3 == 1 {
				state = v
			}
		case 1:
			size = 8
		case 2: // length-delimited
			v, n := binary.Uvarint(m)
			if n <= 0 || v > uint64(len(m)) {
				return 0, errAnswer
			}
			size = uint64(n) + v
		case 5:
			size = 4
		default:
			return 0, errAnswer
		}
		if size > uint64(len(m)) {
			return 0, errAnswer
		}
		m = m[size:]
	}
	return state, nil
}
