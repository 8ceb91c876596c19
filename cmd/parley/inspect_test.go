package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestInspectLive shows the certificate of a server that nobody vouches for, and
// sends it no request.
func TestInspectLive(t *testing.T) {
	t.Parallel()
	asked := false
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer s.Close()
	out, errs, exit := ask(t, "none", "cert inspect "+strings.TrimPrefix(s.URL, "https://"), false, false, 0)
	if exit != 0 || asked || !strings.Contains(out, "name         127.0.0.1") {
		t.Errorf("exit code %d, asked %v\n%s%s", exit, asked, out, errs)
	}
}
