package gate_test

import (
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/proxy/route"
)

// discard is a recorder that does only what every recorder does: encode.
type discard struct{ buf []byte }

func (d *discard) Record(e *audit.Event) (err error) {
	d.buf, err = audit.Encode(d.buf[:0], e)
	return err
}

func quiet(tb testing.TB) *fixture {
	tb.Helper()
	f := newFixture(tb)
	f.Gate = gate.New(gate.Config{Host: "host-1", Recorder: &discard{}, Clock: f.clock, Logger: logging.New(io.Discard, logging.JSON, slog.LevelInfo, f.clock), Metrics: f.metrics, Issuers: f.idp})
	if err := f.Apply(f.snap); err != nil {
		tb.Fatal(err)
	}
	f.SetTrust(f.trust.Load)
	return f
}

// TestAllocations holds the budget of the request path. Check pays for the id
// alone (one allocation, but under the race detector), with an API key also for
// the text that its checksum is computed over; Done pays for nothing, where the
// connection has its address as text.
func TestAllocations(t *testing.T) {
	id := testing.AllocsPerRun(500, func() { audit.NewID(start) })
	f := quiet(t)
	keyed := f.edge(t, "1", "reader")
	keyed.Header = http.Header{"Authorization": {"Bearer " + f.keys["reader"]}}
	denied := inbound(t)
	denied.Method = "DELETE"
	token := f.edge(t, "4", "")
	token.Header = route.Fields{"Authorization": {"Bearer " + f.idp.token(t, nil)}}
	for name, tt := range map[string]struct {
		req         *call.Request
		check, both float64 // beside the id
	}{
		"inbound": {inbound(t), 0, 0}, "denied": {denied, 0, 0}, "outbound": {outbound(t), 0, 0},
		"public": {f.edge(t, "0", ""), 0, 0}, "key": {keyed, 1, 1}, "token": {token, 0, 0},
	} {
		both := testing.AllocsPerRun(500, func() {
			f.Check(tt.req)
			f.Done(tt.req, call.Outcome{Status: 200, End: start})
		})
		check := testing.AllocsPerRun(500, func() {
			f.Check(tt.req)
			tt.req.Verdict.ID = "" // Done finds nothing to record
			f.Done(tt.req, call.Outcome{Status: 200, End: start})
		})
		if check > id+tt.check || both > id+tt.both {
			t.Errorf("%s: Check allocates %v times, with Done %v; the id alone %v", name, check, both, id)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	f := quiet(b)
	for name, r := range map[string]*call.Request{
		"inbound": inbound(b), "outbound": outbound(b), "key": f.edge(b, "1", "reader"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !f.Check(r).Allow {
					b.Fatal("denied")
				}
				f.Done(r, call.Outcome{Status: 200, End: start})
			}
		})
	}
}
