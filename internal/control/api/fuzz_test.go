package api_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/control/api"
)

// reply is a server that answers everything the same way.
type reply struct {
	status      int
	media, body string
}

func (r reply) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: r.status, Status: "reply", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {r.media}}, Body: io.NopCloser(strings.NewReader(r.body)),
	}, nil
}

func FuzzReply(f *testing.F) {
	f.Add(200, "application/json", `{"revision":1,"services":[{"name":"web"}],"now":"2026-11-23T12:00:00Z"}`)
	f.Add(200, "application/x-ndjson", "\n{\"cursor\":\"1\",\"event\":{}}\n{")
	f.Add(422, "application/problem+json", `{"code":"PAR-1002","faults":[{"code":"PAR-1002","message":"m","line":-1}]}`)
	f.Add(500, "text/html", "<h1>")
	f.Fuzz(func(t *testing.T, status int, media, body string) {
		c, err := api.New("/s")
		if err != nil {
			t.Fatal(err)
		}
		c.SetTransport(reply{status, media, body})
		st, err := c.Status(t.Context())
		if ok := status >= 200 && status < 300; (st == nil) == (err == nil) || err == nil && !ok {
			t.Fatalf("status %d: %v, %v", status, st, err)
		}
		if err := c.Tail(t.Context(), api.TailEventsParams{}, func(e *api.Entry) error { _ = e.Event; return nil }); err == nil && (status < 200 || status >= 300) {
			t.Fatalf("status %d is no error", status)
		}
	})
}
