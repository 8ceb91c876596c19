package mtls_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/mtls/xtest"
)

// A server echoes one line on each connection and remembers what it saw.
type server struct {
	addr string
	ln   net.Listener

	mu      sync.Mutex
	seen    []call.Peer
	tls     []call.TLS
	refused []error
	claims  []call.Peer
}

func serve(t *testing.T, cfg *tls.Config, lc mtls.ListenerConfig) *server {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: inner.Addr().String()}
	lc.Clock = clock.System{}
	lc.Refused = func(_ netip.AddrPort, err error, peer call.Peer) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused, s.claims = append(s.refused, err), append(s.claims, peer)
	}
	s.ln = mtls.NewListener(inner, cfg, lc)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := s.ln.Accept()
			if err != nil {
				return
			}
			peer, facts := mtls.ConnFacts(c)
			s.mu.Lock()
			s.seen, s.tls = append(s.seen, peer), append(s.tls, facts)
			s.mu.Unlock()
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	t.Cleanup(func() { _ = s.ln.Close(); <-done })
	return s
}

func (s *server) lastRefusal(t *testing.T) (call.Peer, error) {
	t.Helper()
	for range 200 {
		s.mu.Lock()
		n := len(s.refused)
		if n > 0 {
			defer s.mu.Unlock()
			return s.claims[n-1], s.refused[n-1]
		}
		s.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("nothing was refused")
	return call.Peer{}, nil
}

// echo judges after the first application read: in TLS 1.3 a client's handshake
// succeeds before the server has judged it.
func echo(c *tls.Conn) error {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	buf := make([]byte, 5)
	_, err := io.ReadFull(c, buf)
	return err
}

func exchange(d *mtls.Dialer, addr string) (resumed bool, err error) {
	c, err := d.DialContext(context.Background(), "tcp", addr)
	if err != nil {
		return false, err
	}
	return c.ConnectionState().DidResume, echo(c)
}

// mesh is a CA with a calling and a called service.
type mesh struct {
	ca       *xtest.CA
	web, db  identity.ID
	client   *xtest.Source
	server   *xtest.Source
	dialer   *mtls.Dialer
	listener *server
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{ca: xtest.NewCA(t, "shop.example")}
	m.web, m.db = m.ca.ID(t, "web"), m.ca.ID(t, "db")
	m.client = xtest.NewSource(m.ca.Credential(t, "web", time.Hour), m.trust(1, m.web, m.db))
	m.server = xtest.NewSource(m.ca.Credential(t, "db", time.Hour), m.trust(1, m.web, m.db))
	m.dialer = mtls.NewDialer(m.client, m.db, clock.System{})
	m.listener = serve(t, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{})
	return m
}

func (m *mesh) trust(epoch uint64, members ...identity.ID) *identity.Trust {
	return xtest.Trust(epoch, []*xtest.CA{m.ca}, members...)
}

func (m *mesh) want(t *testing.T, step string, resumed bool) {
	t.Helper()
	got, err := exchange(m.dialer, m.listener.addr)
	if err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	if got != resumed {
		t.Fatalf("%s: resumed is %v, want %v", step, got, resumed)
	}
}

func TestHandshakeFacts(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	c, err := m.dialer.DialContext(context.Background(), "tcp", m.listener.addr)
	if err != nil {
		t.Fatal(err)
	}
	peer, facts := mtls.ConnFacts(c)
	ends := mtls.Ends(c)
	if err := echo(c); err != nil {
		t.Fatal(err)
	}
	if peer.ID != m.db || facts.Version != "1.3" || facts.Group != "X25519MLKEM768" || !strings.HasPrefix(facts.Cipher, "TLS_") {
		t.Errorf("client saw %+v %+v", peer, facts)
	}
	if want := peer.NotAfter; ends.After(want) {
		t.Errorf("the connection ends %v, after its peer's leaf at %v", ends, want)
	}
	m.listener.mu.Lock()
	defer m.listener.mu.Unlock()
	cred, _ := m.client.Credential()
	if got := m.listener.seen[0]; got.ID != m.web || got.Serial != cred.Serial() || got.Fingerprint == "" {
		t.Errorf("server saw %+v", got)
	}
	if got := m.listener.tls[0].Connection; len(got) != 32 || got != facts.Connection {
		t.Errorf("the ends name the connection %q and %q", got, facts.Connection)
	}
}

// A member that leaves is refused although it holds a ticket; put back, it is
// served again, both sides unchanged otherwise.
func TestRevokedClientWithTicket(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.want(t, "first", false)
	m.want(t, "second", true)

	m.server.SetTrust(m.trust(2, m.db))
	_, err := exchange(m.dialer, m.listener.addr)
	if !mtls.ByPeer(err) {
		t.Fatalf("revoked client got %v, want the server's alert", err)
	}
	claim, refused := m.listener.lastRefusal(t)
	if !errors.Is(refused, identity.ErrNotMember) || claim.ID != m.web {
		t.Errorf("recorded %v of %v", refused, claim.ID)
	}

	m.server.SetTrust(m.trust(3, m.web, m.db))
	if _, err := exchange(m.dialer, m.listener.addr); err != nil {
		t.Fatalf("put back: %v", err)
	}
	m.want(t, "put back, with a new ticket", true)
}

func TestRevokedServerWithTicket(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.want(t, "first", false)
	m.want(t, "second", true)

	m.client.SetTrust(m.trust(2, m.web))
	if _, err := exchange(m.dialer, m.listener.addr); !errors.Is(err, identity.ErrNotMember) || !mtls.IsRefusal(err) {
		t.Fatalf("revoked server: %v", err)
	}
	// The same content under an old epoch must not matter: the judgement is on
	// the trust, the epoch only saves handshakes.
	m.client.SetTrust(m.trust(1, m.web))
	if _, err := exchange(m.dialer, m.listener.addr); !errors.Is(err, identity.ErrNotMember) {
		t.Fatalf("revoked server, epoch unchanged: %v", err)
	}
	m.client.SetTrust(m.trust(3, m.web, m.db))
	m.want(t, "put back", false)
	m.want(t, "put back, again", true)
}

// A trust that changed without a new epoch is a defect elsewhere; the resumed
// connection is refused all the same, because it is verified like a full one.
func TestResumedIsVerified(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.want(t, "first", false)
	m.server.SetTrust(m.trust(1, m.db))
	if _, err := exchange(m.dialer, m.listener.addr); !mtls.ByPeer(err) {
		t.Fatalf("got %v, want the server's alert", err)
	}
	m.server.SetTrust(m.trust(1, m.web, m.db))
	if _, err := exchange(m.dialer, m.listener.addr); err != nil {
		t.Fatalf("put back: %v", err)
	}
}

// A server that goes on to resume sessions of a certificate that it no longer has,
// as servers other than Parley's do, is called again in full.
func TestResumedServerIsRetriedInFull(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	other := xtest.NewCA(t, "shop.example")
	s := serve(t, &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := m.server.Credential()
			if err != nil {
				return nil, err
			}
			return c.Certificate(), nil
		},
	}, mtls.ListenerConfig{})
	m.listener = s
	m.want(t, "first", false)
	m.want(t, "second", true)
	// The server moves to another root, and the client to trusting only that
	// one, without a new epoch: the ticket is accepted, the old certificate in the
	// session is not.
	m.server.SetCredential(other.Credential(t, "db", time.Hour))
	m.client.SetTrust(xtest.Trust(1, []*xtest.CA{other}, m.web, m.db))
	m.want(t, "retried in full", false)
	m.want(t, "and resumed again", true)
}

func TestRotation(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.want(t, "first", false)

	m.server.SetCredential(m.ca.Credential(t, "db", time.Hour))
	m.want(t, "server's leaf renewed: no session of the old one", false)
	m.want(t, "then with its own", true)

	m.client.SetCredential(m.ca.Credential(t, "web", time.Hour))
	m.want(t, "client's leaf renewed: no session of the old one", false)
	m.want(t, "then with its own", true)

	next := xtest.NewCA(t, "shop.example")
	both := xtest.Trust(2, []*xtest.CA{m.ca, next}, m.web, m.db)
	m.server.SetTrust(both)
	m.client.SetTrust(both)
	m.want(t, "both roots", false)
	m.client.SetCredential(next.Credential(t, "web", time.Hour))
	m.server.SetCredential(next.Credential(t, "db", time.Hour))
	m.want(t, "leaves of the new root", false)
	only := xtest.Trust(3, []*xtest.CA{next}, m.web, m.db)
	m.server.SetTrust(only)
	m.client.SetTrust(only)
	m.want(t, "old root gone", false)
	m.want(t, "resumed under the new one", true)
}

func TestRefusedClients(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	lookalike := xtest.NewCA(t, "shop.example")
	foreign := xtest.NewCA(t, "other.example")
	leaf := func(change func(*x509.Certificate)) tls.Certificate {
		tmpl := xtest.Leaf(t, m.web, time.Hour)
		change(tmpl)
		return certificate(m.ca.Sign(t, tmpl))
	}
	good, _ := m.client.Credential()
	forged := *good.Certificate()
	forged.PrivateKey = func() *ecdsa.PrivateKey { _, k := m.ca.Sign(t, xtest.Leaf(t, m.web, time.Hour)); return k }()
	// A leaf of a look-alike CA with the true root and a true member's leaf as filler.
	filler := certificate(lookalike.Sign(t, xtest.Leaf(t, m.web, time.Hour)))
	filler.Certificate = append(filler.Certificate, good.Chain[0].Raw, m.ca.Root.Raw)

	for name, tt := range map[string]struct {
		cert tls.Certificate
		want string
	}{
		"none":           {tls.Certificate{}, "didn't provide a certificate"},
		"look-alike":     {certificate(lookalike.Sign(t, xtest.Leaf(t, m.web, time.Hour))), identity.ErrChain.Error()},
		"filler":         {filler, identity.ErrChain.Error()},
		"foreign domain": {certificate(foreign.Sign(t, xtest.Leaf(t, foreign.ID(t, "web"), time.Hour))), identity.ErrUntrustedDomain.Error()},
		"no member":      {certificate(m.ca.Sign(t, xtest.Leaf(t, m.ca.ID(t, "stranger"), time.Hour))), identity.ErrNotMember.Error()},
		"two names": {leaf(func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "shop.example", Path: "/db"})
		}), identity.ErrURICount.Error()},
		"no name":    {leaf(func(c *x509.Certificate) { c.URIs = nil }), identity.ErrURICount.Error()},
		"usage":      {leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), identity.ErrLeafUsage.Error()},
		"signs":      {leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), identity.ErrLeafUsage.Error()},
		"server use": {leaf(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), identity.ErrLeafEKU.Error()},
		"expired":    {leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), identity.ErrExpired.Error()},
		"future":     {leaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), identity.ErrNotYetValid.Error()},
		"is a CA":    {leaf(func(c *x509.Certificate) { c.IsCA = true }), identity.ErrLeafIsCA.Error()},
		"wrong key":  {forged, "signature"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, mtls.Server(m.server, clock.System{}), mtls.ListenerConfig{})
			cfg := &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tt.cert, nil }}
			c, err := tls.Dial("tcp", s.addr, cfg)
			if err == nil {
				err = echo(c)
			}
			if err == nil {
				t.Fatal("served")
			}
			if _, got := s.lastRefusal(t); !strings.Contains(got.Error(), tt.want) {
				t.Errorf("recorded %q, want %q", got, tt.want)
			}
		})
	}
}

func certificate(leaf *x509.Certificate, key *ecdsa.PrivateKey) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
}

func TestRefusedProtocols(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	cred, _ := m.client.Credential()
	t.Run("tls 1.2", func(t *testing.T) {
		cfg := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*cred.Certificate()}}
		if c, err := tls.Dial("tcp", m.listener.addr, cfg); err == nil {
			t.Errorf("accepted %v", c.ConnectionState().Version)
		}
	})
	t.Run("plaintext", func(t *testing.T) {
		c, err := net.Dial("tcp", m.listener.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: db\r\n\r\n")
		got, _ := io.ReadAll(c)
		if len(got) > 7 { // an alert record: 5 bytes of header, 2 of alert
			t.Errorf("plaintext was answered with %q", got)
		}
	})
	t.Run("alpn", func(t *testing.T) {
		s := serve(t, mtls.Server(m.server, clock.System{}, mtls.HTTP2), mtls.ListenerConfig{})
		if _, err := exchange(mtls.NewDialer(m.client, m.db, clock.System{}, "other"), s.addr); err == nil {
			t.Error("a connection without a common protocol was accepted")
		}
	})
}

func TestRefusedServers(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	lookalike := xtest.NewCA(t, "shop.example")
	for name, tt := range map[string]struct {
		cred *identity.Credential
		want error
	}{
		"another member": {m.ca.Credential(t, "web", time.Hour), mtls.ErrUnexpectedPeer},
		"look-alike":     {lookalike.Credential(t, "db", time.Hour), identity.ErrChain},
	} {
		t.Run(name, func(t *testing.T) {
			src := xtest.NewSource(tt.cred, xtest.Trust(1, []*xtest.CA{m.ca, lookalike}, m.web, m.db))
			s := serve(t, mtls.Server(src, clock.System{}), mtls.ListenerConfig{})
			_, err := exchange(m.dialer, s.addr)
			if !errors.Is(err, tt.want) || !mtls.IsRefusal(err) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	late := clock.Shifted{Base: clock.System{}, Offset: 2 * time.Hour}
	t.Run("server's clock", func(t *testing.T) {
		src := xtest.NewSource(m.ca.Credential(t, "db", 3*time.Hour), m.trust(1, m.web, m.db))
		s := serve(t, mtls.Server(src, late), mtls.ListenerConfig{})
		if _, err := exchange(m.dialer, s.addr); !mtls.ByPeer(err) {
			t.Errorf("got %v, want an alert", err)
		}
		if _, err := s.lastRefusal(t); !errors.Is(err, identity.ErrExpired) {
			t.Errorf("recorded %v", err)
		}
	})
	t.Run("own leaf", func(t *testing.T) {
		d := mtls.NewDialer(m.client, m.db, late)
		if _, err := exchange(d, m.listener.addr); !errors.Is(err, identity.ErrExpired) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("server's leaf", func(t *testing.T) {
		src := xtest.NewSource(m.ca.Credential(t, "web", 3*time.Hour), m.trust(1, m.web, m.db))
		d := mtls.NewDialer(src, m.db, late)
		if _, err := exchange(d, m.listener.addr); !errors.Is(err, identity.ErrExpired) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nothing yet", func(t *testing.T) {
		d := mtls.NewDialer(xtest.NewSource(nil, m.trust(1)), m.db, clock.System{})
		if _, err := exchange(d, m.listener.addr); !errors.Is(err, identity.ErrNoCredential) {
			t.Errorf("got %v", err)
		}
		d = mtls.NewDialer(xtest.NewSource(m.ca.Credential(t, "web", time.Hour), nil), m.db, clock.System{})
		if _, err := exchange(d, m.listener.addr); !errors.Is(err, mtls.ErrNoTrust) {
			t.Errorf("got %v", err)
		}
	})
}

func TestEdge(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	cred, _ := m.server.Credential()
	s := serve(t, mtls.Edge(func() (*tls.Certificate, error) { return cred.Certificate(), nil }, mtls.HTTP1), mtls.ListenerConfig{})
	pool := x509.NewCertPool()
	pool.AddCert(m.ca.Root)
	for name, tt := range map[string]struct {
		cfg *tls.Config
		ok  bool
	}{
		"1.3":     {&tls.Config{}, true},
		"1.2":     {&tls.Config{MaxVersion: tls.VersionTLS12}, true},
		"1.2 CBC": {&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, false},
		"1.1":     {&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
	} {
		t.Run(name, func(t *testing.T) {
			tt.cfg.RootCAs, tt.cfg.ServerName = pool, "localhost"
			c, err := tls.Dial("tcp", s.addr, tt.cfg)
			if err == nil {
				err = echo(c)
			}
			if (err == nil) != tt.ok {
				t.Errorf("err is %v, want success %v", err, tt.ok)
			}
		})
	}
}
