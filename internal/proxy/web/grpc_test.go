package web

import (
	"math"
	"net/http"
	"testing"
	"time"
)

func TestIsGRPC(t *testing.T) {
	t.Parallel()
	for contentType, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc;charset=utf-8": true,
		"application/grpc-web": false, "application/grpc-web+proto": false, "application/grpcx": false, "text/plain": false, "": false,
	} {
		r := &http.Request{ProtoMajor: 2, Header: http.Header{"Content-Type": {contentType}}}
		if got := isGRPC(r); got != want {
			t.Errorf("%q: %v", contentType, got)
		}
		if r.ProtoMajor = 1; isGRPC(r) {
			t.Errorf("%q over HTTP/1.1 is taken for gRPC", contentType)
		}
	}
}

func TestGRPCTimeout(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]time.Duration{
		"1S": time.Second, "250m": 250 * time.Millisecond, "1H": time.Hour, "5M": 5 * time.Minute, "7u": 7 * time.Microsecond, "99999999n": 99999999,
		"99999999H": math.MaxInt64, "S": -1, "": -1, "10": -1, "-1S": -1, "123456789S": -1, "1s": -1, "1 S": -1,
	} {
		got, ok := grpcTimeout([]string{value})
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %s", value, got)
		}
	}
	if _, ok := grpcTimeout([]string{"1S", "2S"}); ok {
		t.Error("two are taken for one")
	}
}

func FuzzGRPCTimeout(f *testing.F) {
	f.Add("1S")
	f.Add("99999999H")
	f.Add("-1m")
	f.Fuzz(func(t *testing.T, value string) {
		if d, ok := grpcTimeout([]string{value}); d < 0 || !ok && d != 0 {
			t.Errorf("%q: %s", value, d)
		}
	})
}

// The words are those that a client of gRPC reads, whatever they hold.
func TestEncodeMessage(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"plain": "plain", "50% of é\n": "50%25 of %C3%A9%0A"} {
		if got := encodeMessage(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}
