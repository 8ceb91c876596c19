package call

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"strings"
)

// maxTraceState is what a proxy has to forward at least (Trace Context section 3.3.1.5).
const maxTraceState = 512

// NextTrace is the trace context of a request that arrived with these values of
// traceparent: the client's trace with a span of ours, or, where there is no
// valid one, a new trace. kept says that it is the client's, whose tracestate
// then stands. A new trace is marked as sampled, so that an application that
// samples as its parent does is not silenced by a proxy in between.
func NextTrace(values []string) (t Trace, kept bool) {
	if len(values) == 1 {
		t, kept = ParseTraceParent(values[0])
	}
	if !kept {
		t = Trace{TraceID: randomHex(16), Sampled: true}
	}
	t.SpanID = randomHex(8)
	return t, kept
}

// ParseTraceParent reads a traceparent (Trace Context section 3.2): version 00
// exactly, a later version by its first four fields, ff never.
func ParseTraceParent(s string) (Trace, bool) {
	const length = 55
	if len(s) < length || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return Trace{}, false
	}
	version, trace, parent, flags := s[:2], s[3:35], s[36:52], s[53:55]
	if !lowerHex(version) || version == "ff" || version == "00" && len(s) != length || len(s) > length && s[length] != '-' || len(s) > maxTraceState {
		return Trace{}, false
	}
	if !lowerHex(trace) || !lowerHex(parent) || !lowerHex(flags) || allZero(trace) || allZero(parent) {
		return Trace{}, false
	}
	return Trace{TraceID: trace, ParentID: parent, Sampled: odd(flags[1])}, true
}

// FormatTraceParent is the field for the next hop, version 00, with our span as
// the parent.
func FormatTraceParent(t Trace) string {
	flags := "00"
	if t.Sampled {
		flags = "01"
	}
	return "00-" + t.TraceID + "-" + t.SpanID + "-" + flags
}

// RequestID is the client's X-Request-Id where it is exactly one of 1 to 64
// characters A-Z a-z 0-9 . _ - and otherwise a new one.
func RequestID(values []string) string {
	if len(values) == 1 && validRequestID(values[0]) {
		return values[0]
	}
	return randomHex(16)
}

func validRequestID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'; !alnum && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func lowerHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// odd says that the lowest bit of a hexadecimal digit is set.
func odd(digit byte) bool { return strings.IndexByte("13579bdf", digit) >= 0 }

func allZero(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] != '0' {
			return false
		}
	}
	return true
}

// randomHex is n random bytes, never all zero. They name and do not protect, so
// they need no cryptographic source.
func randomHex(n int) string {
	var raw [16]byte
	binary.LittleEndian.PutUint64(raw[:8], rand.Uint64()|1)
	binary.LittleEndian.PutUint64(raw[8:], rand.Uint64())
	return hex.EncodeToString(raw[:n])
}
