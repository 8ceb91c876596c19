package proxy_test

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
)

// A stream that its server ends while its client goes on ends at once: with
// nothing but trailers, after its header, and after a message.
func TestServerEndsStreamFirst(t *testing.T) {
	t.Parallel()
	app := httpApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_, _ = io.ReadFull(r.Body, make([]byte, 3))
		status := "Grpc-Status"
		switch r.URL.Path {
		case "/message":
			_, _ = io.WriteString(w, "answer")
			fallthrough
		case "/header":
			_ = http.NewResponseController(w).Flush()
			status = http.TrailerPrefix + status
		}
		w.Header().Set(status, "5")
	}))
	p := newPair(t, pairConfig{protocol: call.HTTP, h2: true, app: app})
	for path, want := range map[string]string{"/trailers": "", "/header": "", "/message": "answer"} {
		t.Run(path, func(t *testing.T) {
			p.web.gate.Reset()
			p.orders.gate.Reset()
			pr, pw := io.Pipe()
			defer pw.Close()
			req, _ := http.NewRequest("POST", p.url+path, pr)
			req.Header.Set("Content-Type", "application/grpc")
			go func() { _, _ = io.WriteString(pw, "one") }()
			began := time.Now()
			resp, err := client(t, true).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || string(body) != want || resp.Header.Get("Grpc-Status")+resp.Trailer.Get("Grpc-Status") != "5" {
				t.Errorf("got %q, %v, %v, %v", body, err, resp.Header, resp.Trailer)
			}
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("the end came after %s", d)
			}
			p.web.gate.Finished(1)
			p.orders.gate.Finished(1)
		})
	}
}
