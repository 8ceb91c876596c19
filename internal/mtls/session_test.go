package mtls

import (
	"crypto/tls"
	"strconv"
	"testing"
)

func TestSessions(t *testing.T) {
	t.Parallel()
	var s sessions
	a, b := new(tls.ClientSessionState), new(tls.ClientSessionState)
	s.Put("x", a)
	s.Put("x", b)
	if got, ok := s.Get("x"); !ok || got != b {
		t.Error("not the newest")
	}
	if got, ok := s.Get("x"); !ok || got != a {
		t.Error("not the other")
	}
	if _, ok := s.Get("x"); ok {
		t.Error("a ticket came twice")
	}
	for range 3 * maxTickets {
		s.Put("x", a)
	}
	if n := len(s.tickets["x"]); n != maxTickets {
		t.Errorf("%d tickets are kept", n)
	}
	s.Put("x", nil)
	if _, ok := s.Get("x"); ok {
		t.Error("a forgotten ticket came")
	}
	for i := range 3 * maxEndpoints {
		s.Put(strconv.Itoa(i), a)
	}
	if n := len(s.tickets); n > maxEndpoints {
		t.Errorf("%d endpoints are kept", n)
	}
	s.forget()
	if _, ok := s.Get("1"); ok {
		t.Error("a forgotten ticket came")
	}
}
