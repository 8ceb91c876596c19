package link_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/mtls/xtest"
)

// A double is a server that says whatever the test has it say. It speaks bare JSON:
// a change of the wire types does not change what it says.
type double struct {
	t    testing.TB
	ca   *xtest.CA
	addr string
	// got has every message of agents, said takes the lines for them.
	got chan map[string]any
}

// bare reads anything and writes it as it is.
type bare struct{}

func (bare) Name() string                       { return "parley-json" }
func (bare) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (bare) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// newDouble is a double whose streams are served by stream.
func newDouble(t testing.TB, ca *xtest.CA, self identity.ID, stream func(*double, grpc.ServerStream) error) *double {
	t.Helper()
	d := &double{t: t, ca: ca, got: make(chan map[string]any, 1000)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.addr = l.Addr().String()
	src := xtest.NewSource(ca.CredentialFor(t, self, time.Hour), xtest.Trust(1, []*xtest.CA{ca}, must(identity.AgentID(ca.Domain, "a"))))
	srv := grpc.NewServer(grpc.ForceServerCodec(bare{}))
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: link.FleetService, HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Connect", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error { return stream(d, s) }}},
	}, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(mtls.NewListener(l, mtls.Server(src, clock.System{}, mtls.Fleet), mtls.ListenerConfig{Clock: clock.System{}}))
	}()
	t.Cleanup(func() { srv.Stop(); <-done })
	return d
}

func (d *double) agent(log *slog.Logger) *link.Client {
	d.t.Helper()
	server := must(identity.ServerID(d.ca.Domain))
	c, err := link.NewClient(link.ClientConfig{
		Addresses: []string{d.addr}, Host: "a", Source: xtest.NewSource(d.ca.CredentialFor(d.t, must(identity.AgentID(d.ca.Domain, "a")), time.Hour), xtest.Trust(1, []*xtest.CA{d.ca}, server)),
		Server: server, Version: "v2", Settle: func(context.Context) {}, Clock: clock.System{}, Logger: log,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	d.t.Cleanup(func() { stop(); <-done; _ = c.Close() })
	return c
}

// next is the next message of an agent.
func (d *double) next() map[string]any {
	d.t.Helper()
	select {
	case m := <-d.got:
		return m
	case <-time.After(10 * time.Second):
		d.t.Fatal("the agent says nothing")
		return nil
	}
}

// report waits for a report that holds.
func (d *double) report(what string, holds func(map[string]any) bool) {
	d.t.Helper()
	var last any
	for range 20 {
		if r, ok := d.next()["report"].(map[string]any); ok {
			if last = r; holds(r) {
				return
			}
		}
	}
	d.t.Fatalf("never reported: %s; the last was %v", what, last)
}

// hear reads messages until the stream ends.
func (d *double) hear(s grpc.ServerStream) error {
	for {
		m := map[string]any{}
		if err := s.RecvMsg(&m); err != nil {
			return err
		}
		d.got <- m
	}
}

// scripted says each line to each agent, and then listens.
func scripted(lines ...string) func(*double, grpc.ServerStream) error {
	return func(d *double, s grpc.ServerStream) error {
		for _, l := range lines {
			if err := s.SendMsg(json.RawMessage(l)); err != nil {
				return err
			}
		}
		return d.hear(s)
	}
}

const welcome = `{"welcome":{"protocol":1,"version":"v1","capabilities":[],"now":"2026-01-01T00:00:00Z"}}`

func wire(t testing.TB, u *link.Update, change func(map[string]any)) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(must(json.Marshal(must(link.NewWireUpdate(u)))), &m); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(m)
	}
	return string(must(json.Marshal(map[string]any{"update": m})))
}

func watched(t testing.TB, c *link.Client, seen uint64) link.Update {
	t.Helper()
	ctx, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	u, err := c.Watch(ctx, seen)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// An update that an agent does not understand whole changes nothing, and is named
// until another comes, whatever else is reported meanwhile.
func TestRefusedUpdateIsNamed(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	good := updateOf(t, ca, "a", 3)
	at := func(generation int, change func(map[string]any)) func(map[string]any) {
		return func(m map[string]any) {
			m["generation"] = generation
			if change != nil {
				change(m)
			}
		}
	}
	other := xtest.NewCA(t, "other.example")
	for name, tt := range map[string]struct {
		line string
		says string
	}{
		"unknown field in the snapshot": {wire(t, good, at(8, func(m map[string]any) { m["snapshot"].(map[string]any)["only_if"] = 1 })), "only_if"},
		"a capability that it lacks":    {wire(t, good, at(8, func(m map[string]any) { m["needs"] = []string{"quantum"} })), "quantum"},
		"another version":               {wire(t, good, at(8, func(m map[string]any) { m["snapshot"].(map[string]any)["version"] = 2 })), "version"},
		"another host's":                {wire(t, updateOf(t, ca, "b", 3), at(8, nil)), `host "b"`},
		"another mesh's":                {wire(t, updateOf(t, other, "a", 3), at(8, nil)), "other.example"},
		"without a root":                {wire(t, good, at(8, func(m map[string]any) { m["bundle"].(map[string]any)["roots"] = []any{} })), "without a root"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			more := make(chan string)
			d := newDouble(t, ca, must(identity.ServerID(ca.Domain)), func(d *double, s grpc.ServerStream) error {
				go func() { // ends with the test
					for l := range more {
						_ = s.SendMsg(json.RawMessage(l))
					}
				}()
				return scripted(welcome, wire(t, good, at(7, nil)))(d, s)
			})
			t.Cleanup(func() { close(more) })
			c := d.agent(slog.New(slog.DiscardHandler))
			u := watched(t, c, 0)
			c.Report(&link.Report{Generation: u.Generation, Revision: 3})
			d.report("in force", func(r map[string]any) bool { return r["generation"] == 7.0 && r["fault"] == nil })
			more <- tt.line
			refused := func(r map[string]any) bool {
				why, _ := r["fault"].(string)
				return r["generation"] == 8.0 && r["revision"] == 3.0 && strings.Contains(why, tt.says)
			}
			d.report("refused", refused)
			c.Report(&link.Report{Generation: u.Generation, Revision: 3, Delivery: "later"})
			d.report("still refused", func(r map[string]any) bool { return refused(r) && r["delivery"] == "later" })
			ctx, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer done()
			if got, err := c.Watch(ctx, u.Generation); err == nil {
				t.Errorf("it is followed: %+v", got)
			}
			more <- wire(t, good, at(9, nil))
			u = watched(t, c, u.Generation)
			c.Report(&link.Report{Generation: u.Generation, Revision: 3})
			d.report("in force again", func(r map[string]any) bool { return r["generation"] == 9.0 && r["fault"] == nil })
		})
	}
}

// A server that breaks the protocol is left, not followed; the agent comes again.
func TestServerThatBreaksTheProtocol(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	update := wire(t, updateOf(t, ca, "a", 3), nil)
	for name, lines := range map[string][]string{
		"no welcome":          {update},
		"another protocol":    {`{"welcome":{"protocol":2}}`, update},
		"welcome with update": {strings.Replace(welcome, `{"welcome"`, `{"settle":1,"welcome"`, 1), update},
		"two welcomes":        {welcome, welcome},
		"two kinds":           {welcome, strings.Replace(update, `{"update"`, `{"withdraw":{"generation":1},"update"`, 1)},
		"nothing":             {welcome, `{}`},
		"unknown kind":        {welcome, `{"command":"rm"}`},
		"unknown field":       {welcome, strings.Replace(update, `{"update":{`, `{"update":{"only_if":1,`, 1)},
		"no JSON object":      {welcome, `[]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			streams := 0
			d := newDouble(t, ca, must(identity.ServerID(ca.Domain)), func(d *double, s grpc.ServerStream) error {
				mu.Lock()
				streams++
				mu.Unlock()
				return scripted(lines...)(d, s)
			})
			c := d.agent(slog.New(slog.DiscardHandler))
			for range 500 {
				mu.Lock()
				n := streams
				mu.Unlock()
				if n >= 2 {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			mu.Lock()
			if streams < 2 {
				t.Error("it stays with that server")
			}
			mu.Unlock()
			ctx, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer done()
			if u, err := c.Watch(ctx, 0); err == nil {
				t.Errorf("it follows %+v", u)
			}
		})
	}
}

// Who is not the server is not spoken to: not one message, and no certificate asked.
func TestOnlyTheServerIsSpokenTo(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	for name, tt := range map[string]struct {
		signer *xtest.CA
		self   identity.ID
	}{
		"agent":      {ca, must(identity.AgentID(ca.Domain, "a"))},
		"service":    {ca, ca.ID(t, "web")},
		"other root": {xtest.NewCA(t, "shop.example"), must(identity.ServerID(ca.Domain))},
	} {
		d := newDouble(t, tt.signer, tt.self, scripted(welcome))
		d.ca = ca
		c := d.agent(slog.New(slog.DiscardHandler))
		if _, err := c.Issue(t.Context(), ca.ID(t, "web"), nil); err == nil {
			t.Errorf("%s: it was asked", name)
		}
		if up, why := c.State(); up || why == nil {
			t.Errorf("%s: %v, %v", name, up, why)
		}
		if len(d.got) > 0 {
			t.Errorf("%s was told %v", name, <-d.got)
		}
	}
}

// A server one version older: it has no capabilities, and knows the fields of the
// first protocol only. What a newer agent says to it has to stay within them.
func TestOlderServer(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	d := newDouble(t, ca, must(identity.ServerID(ca.Domain)), scripted(welcome, wire(t, updateOf(t, ca, "a", 3), nil)))
	c := d.agent(slog.New(slog.DiscardHandler))
	u := watched(t, c, 0)
	c.Report(&link.Report{
		Generation: u.Generation, Revision: 3, Fault: "f", Delivery: "d",
		Services:  []link.ServiceReport{{Name: "web", ID: ca.ID(t, "web"), State: link.OK, Note: "n", Serial: "1", NotAfter: time.Now(), RenewsAt: time.Now()}},
		Listeners: []link.ListenerReport{{Name: "l", Address: "a", Protocol: "http", State: link.OK, Note: "n"}},
		Findings:  []link.FindingReport{{Code: "c", Message: "m", Help: "h"}},
		Endpoints: []link.Endpoint{{Service: "web", Address: "0.0.0.0:1"}},
		Plaintext: []link.PlaintextReport{{Service: "web", Count: 1}},
	})
	for what, ask := range map[string]func() error{
		"witness": func() error { _, err := c.Witness(t.Context(), "a-0123abcd", collect.Statement{}); return err },
		"growth":  func() error { _, err := c.Growth(t.Context(), 0); return err },
	} {
		if err := ask(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	known := map[string]string{
		"":          "hello report",
		"hello":     "protocol version capabilities host advertise now",
		"report":    "generation revision fault delivery services listeners findings endpoints",
		"services":  "name id state note serial not_after renews_at",
		"listeners": "name address protocol state note",
		"findings":  "code message help",
		"endpoints": "service address",
	}
	var check func(of string, v any)
	check = func(of string, v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				check(of, x)
			}
		case map[string]any:
			for k, x := range v {
				if !strings.Contains(" "+known[of]+" ", " "+k+" ") {
					t.Errorf("%q in %q is not known to an older server: send it only to one that has the capability", k, of)
				}
				check(k, x)
			}
		}
	}
	full := false
	for !full {
		m := d.next()
		check("", m)
		r, _ := m["report"].(map[string]any)
		full = r != nil && r["endpoints"] != nil
	}
	for !bytes.Contains([]byte(u.Snapshot.Domain), []byte("shop")) {
		t.Fatal("another update")
	}
}

// A server that takes connections and says nothing does not hold an agent for ever:
// the next server may.
func TestServerThatSaysNothing(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	var mu sync.Mutex
	streams := 0
	d := newDouble(t, ca, must(identity.ServerID(ca.Domain)), func(d *double, s grpc.ServerStream) error {
		mu.Lock()
		streams++
		mu.Unlock()
		return d.hear(s)
	})
	c := d.agent(slog.New(slog.DiscardHandler))
	for end := time.Now().Add(25 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		mu.Lock()
		n := streams
		mu.Unlock()
		if n > 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it waits for ever")
		}
	}
	if up, why := c.State(); up || why == nil {
		t.Errorf("%v, %v", up, why)
	}
}

// One that has the capability is told who came without TLS.
func TestPlaintextIsReported(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	able := strings.Replace(welcome, `"capabilities":[]`, `"capabilities":["plaintext"]`, 1)
	d := newDouble(t, ca, must(identity.ServerID(ca.Domain)), scripted(able, wire(t, updateOf(t, ca, "a", 3), nil)))
	c := d.agent(slog.New(slog.DiscardHandler))
	u := watched(t, c, 0)
	c.Report(&link.Report{Generation: u.Generation, Revision: 3, Plaintext: []link.PlaintextReport{{Service: "web", Address: "10.0.0.9", Count: 7}}})
	d.report("who came", func(r map[string]any) bool {
		list, _ := r["plaintext"].([]any)
		return len(list) == 1 && list[0].(map[string]any)["address"] == "10.0.0.9" && list[0].(map[string]any)["count"] == 7.0
	})
}
