package fleet_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/parleymesh/parley/internal/audit"
	logs "github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fleet"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A house is a fleet behind its real door, with hosts a, b and c as members.
type house struct {
	t     testing.TB
	ca    *xtest.CA
	fleet *fleet.Fleet
	trust atomic.Pointer[identity.Trust]
	conns mtls.Conns
	reg   *registrar
	sink  *sink
	rec   *recorder
	addr  string
	stop  func()
	// logger is that of clients.
	logger *slog.Logger
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func serverID(ca *xtest.CA) identity.ID { return must(identity.ServerID(ca.Domain)) }

func agentID(ca *xtest.CA, host string) identity.ID { return must(identity.AgentID(ca.Domain, host)) }

func newHouse(t testing.TB) *house { return houseOf(t, xtest.NewCA(t, "shop.example"), clock.System{}) }

func houseOf(t testing.TB, ca *xtest.CA, clk clock.Clock) *house {
	t.Helper()
	h := &house{t: t, ca: ca, reg: &registrar{ca: ca}, sink: &sink{next: map[string]uint64{}}, rec: &recorder{}, logger: slog.New(slog.DiscardHandler)}
	h.fleet = fleet.New(fleet.Config{
		Registrar: h.reg, Sink: h.sink, Recorder: h.rec, Host: "srv", Version: "v1", Clock: clk, Logger: slog.New(slog.DiscardHandler),
	})
	h.trust.Store(xtest.Trust(1, []*xtest.CA{ca}, agentID(ca, "a"), agentID(ca, "b"), agentID(ca, "c")))
	server := fleet.NewServer(fleet.ServerConfig{Fleet: h.fleet, Trust: h.trust.Load})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = l.Addr().String()
	src := source{cred: ca.CredentialFor(t, serverID(ca), time.Hour), trust: h.trust.Load}
	parts := mtls.Split(mtls.NewListener(l, mtls.Control(src, ca.Root, clock.System{}), mtls.ListenerConfig{Clock: clock.System{}, Conns: &h.conns}),
		[]string{mtls.Fleet}, []string{mtls.Join})
	done := make(chan error, 1)
	go func() { done <- server.Serve(parts[0], parts[1]) }()
	h.stop = sync.OnceFunc(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(h.stop)
	return h
}

// source is an identity.Source whose trust is asked for each time.
type source struct {
	cred  *identity.Credential
	trust func() *identity.Trust
}

func (s source) Credential() (*identity.Credential, error) { return s.cred, nil }
func (s source) Trust() *identity.Trust                    { return s.trust() }

// agentSource is that of an agent.
func (h *house) agentSource(host string, ttl time.Duration) *xtest.Source {
	h.t.Helper()
	return xtest.NewSource(h.ca.CredentialFor(h.t, agentID(h.ca, host), ttl), xtest.Trust(1, []*xtest.CA{h.ca}, serverID(h.ca)))
}

// A raw is a connection of an agent that says whatever the test wants.
type raw struct {
	t    testing.TB
	conn *grpc.ClientConn
	host string
}

func (h *house) raw(host string) *raw {
	return h.rawBy(host, h.agentSource(host, time.Hour), mtls.Fleet)
}

func (h *house) rawBy(host string, src identity.Source, alpn string) *raw {
	h.t.Helper()
	d := mtls.NewDialer(src, serverID(h.ca), clock.System{}, alpn)
	return &raw{h.t, dialed(h.t, func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", h.addr) }), host}
}

func dialed(t testing.TB, dial func(context.Context) (net.Conn, error)) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///x",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(65535), // which is then not widened: what is not read holds its sender up
		grpc.WithDefaultCallOptions(grpc.ForceCodec(link.Codec{}), grpc.MaxCallRecvMsgSize(link.MaxMessage), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (r *raw) call(method string, in, out any) error {
	ctx, done := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer done()
	return r.conn.Invoke(ctx, method, in, out)
}

// open opens a stream and says nothing.
func (r *raw) open() *stream {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	s, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/"+link.FleetService+"/Connect")
	if err != nil {
		cancel()
		r.t.Fatal(err)
	}
	return &stream{s, r.t, cancel}
}

// A stream is one that the test reads and writes.
type stream struct {
	grpc.ClientStream
	t      testing.TB
	cancel context.CancelFunc
}

func hello(host string) *link.Hello {
	return &link.Hello{Protocol: link.Protocol, Version: "v1", Capabilities: link.Capabilities(), Host: host, Now: time.Now()}
}

// greeted is a stream on which both have said who they are.
func (r *raw) greeted(h *link.Hello) *stream {
	r.t.Helper()
	s := r.open()
	s.send(&link.AgentMessage{Hello: h})
	if m := s.recv(); m.Welcome == nil {
		r.t.Fatalf("got %+v", m)
	}
	return s
}

func (s *stream) send(m *link.AgentMessage) {
	s.t.Helper()
	if err := s.SendMsg(m); err != nil && !errors.Is(err, io.EOF) {
		s.t.Fatal(err)
	}
}

func (s *stream) recv() *link.ServerMessage {
	s.t.Helper()
	m := new(link.ServerMessage)
	if err := s.RecvMsg(m); err != nil {
		s.t.Fatal(err)
	}
	return m
}

// update is the next one, whose snapshot has to be readable.
func (s *stream) update() *link.Update {
	s.t.Helper()
	for {
		m := s.recv()
		if m.Settle > 0 {
			continue
		}
		u, err := m.Update.Update()
		if err != nil {
			s.t.Fatal(err)
		}
		return u
	}
}

// client is a link.Client of host by way of addr, which runs until the test ends.
func (h *house) client(host string, src identity.Source, addr ...string) *link.Client {
	h.t.Helper()
	c, err := link.NewClient(link.ClientConfig{
		Addresses: addr, Host: host, Source: src, Server: serverID(h.ca), Version: "v1", Settle: func(context.Context) {},
		Clock: clock.System{}, Logger: h.logger,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	h.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
		_ = c.Close()
	})
	return c
}

// watch is the next update above seen, within ten seconds.
func watch(t testing.TB, c interface {
	Watch(context.Context, uint64) (link.Update, error)
}, seen uint64,
) link.Update {
	t.Helper()
	ctx, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	u, err := c.Watch(ctx, seen)
	if err != nil {
		t.Fatalf("no update above %d: %v", seen, err)
	}
	return u
}

// eventually waits until what holds, for ten seconds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for range 1000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

// shop is a mesh in which web on a calls site on b.
func (h *house) shop(revision int64) *snapshot.Snapshot {
	s := &snapshot.Snapshot{
		Version: snapshot.Version, Revision: revision, TrustDomain: h.ca.Domain, Domain: h.ca.Domain.String(), LeafTTL: time.Hour,
		Gateways: []snapshot.Gateway{},
		Services: []snapshot.Service{
			{
				Name: "web", ID: h.ca.ID(h.t, "web"), RunsOn: []string{"a"}, RunsAs: snapshot.RunsAs{User: "web"},
				Outbound: []snapshot.Outbound{{To: "site", ToID: h.ca.ID(h.t, "site"), Listen: "127.0.0.1:15001", Protocol: "http"}},
			},
			{
				Name: "site", ID: h.ca.ID(h.t, "site"), RunsOn: []string{"b", "c"}, RunsAs: snapshot.RunsAs{User: "site"},
				Inbound: &snapshot.Inbound{Listen: ":9443", App: "127.0.0.1:8080", Protocol: "http"},
			},
		},
		Members: []identity.ID{h.ca.ID(h.t, "web"), h.ca.ID(h.t, "site")},
	}
	for _, name := range []string{"a", "b", "c"} {
		s.Hosts = append(s.Hosts, snapshot.Host{Name: name, ID: agentID(h.ca, name)})
	}
	return s
}

func (h *house) publish(s *snapshot.Snapshot) uint64 {
	return h.fleet.Publish(s, &identity.Bundle{TrustDomain: h.ca.Domain, Roots: []*x509.Certificate{h.ca.Root}, Sequence: 1})
}

// places are where web on the host of u is told that site is.
func places(u link.Update) []string {
	for _, s := range u.Snapshot.Services {
		if s.Name == "web" {
			return s.Outbound[0].Endpoints
		}
	}
	return nil
}

// A registrar says what it was asked.
type registrar struct {
	ca  *xtest.CA
	mu  sync.Mutex // guards asked
	got []string
	err error
}

func (r *registrar) note(format string, args ...any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, fmt.Sprintf(format, args...))
	return r.err
}

func (r *registrar) asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

func (r *registrar) Issue(_ context.Context, host string, id identity.ID, _ []byte) ([]*x509.Certificate, error) {
	return []*x509.Certificate{r.ca.Root}, r.note("certificate of %s for %s", id.Name(), host)
}

func (r *registrar) IssueJWT(_ context.Context, host string, id identity.ID, _ []string) (string, time.Time, error) {
	return "token", time.Now(), r.note("token of %s for %s", id.Name(), host)
}

func (r *registrar) IssueProbe(_ context.Context, host string, id identity.ID, flaw ca.Flaw, _ []byte) ([]*x509.Certificate, error) {
	return []*x509.Certificate{r.ca.Root}, r.note("probe %q of %s for %s", string(flaw), id.Name(), host)
}

func (r *registrar) JoinHost(_ context.Context, id string, _, _ []byte, _ string) (string, []*x509.Certificate, error) {
	return "a", []*x509.Certificate{r.ca.Root}, r.note("join %s", id)
}

func (r *registrar) Bundle() *identity.Bundle {
	return &identity.Bundle{TrustDomain: r.ca.Domain, Roots: []*x509.Certificate{r.ca.Root}}
}

type sink struct {
	mu     sync.Mutex // guards what follows
	next   map[string]uint64
	said   logs.Statement
	refuse error // what Witness says
	growth logs.Growth
}

func (s *sink) Witness(_ context.Context, _ string, said logs.Statement) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = said
	if s.refuse != nil {
		return nil, fmt.Errorf("canary: %w", s.refuse)
	}
	return []byte("receipt"), nil
}

func (s *sink) Growth(_ context.Context, have uint64) (*logs.Growth, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.growth
	g.Proof = make([]audit.Hash, have)
	return &g, nil
}

func (s *sink) Cursor(_ context.Context, log string) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next[log], nil
}

func (s *sink) Collect(_ context.Context, log string, entries []audit.Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next[log] += uint64(len(entries))
	return nil
}

type recorder struct {
	mu     sync.Mutex // guards events
	events []audit.Event
}

func (r *recorder) Log(_ context.Context, e *audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, *e)
	return nil
}

func (r *recorder) count(a audit.Action) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.events {
		if r.events[i].Action == a {
			n++
		}
	}
	return n
}

// silence is an address that takes connections and says nothing.
func silence(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards conns
	var conns []net.Conn
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return l.Addr().String()
}
