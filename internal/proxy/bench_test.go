package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/call"
)

// BenchmarkHop is a whole call: client, both sidecars with mTLS between them,
// application.
func BenchmarkHop(b *testing.B) {
	for _, v := range versions[:2] {
		b.Run(v.name, func(b *testing.B) {
			app := httpApp(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
			p := newPair(b, pairConfig{protocol: call.HTTP, h2: v.h2, app: app})
			p.web.gate.Keep, p.orders.gate.Keep = false, false
			c := client(b, v.client)
			get(b, c, p.url)
			b.ReportAllocs()
			for b.Loop() {
				resp, err := c.Get(p.url)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
}

func BenchmarkHopTCP(b *testing.B) {
	app := tcpApp(b, "tcp", echoApp)
	p := newPair(b, pairConfig{protocol: call.TCP, app: app})
	p.web.gate.Keep, p.orders.gate.Keep = false, false
	c := p.dial(b)
	b.ReportAllocs()
	b.SetBytes(100)
	text := strings.Repeat("x", 100)
	for b.Loop() {
		say(b, c, text)
	}
}
