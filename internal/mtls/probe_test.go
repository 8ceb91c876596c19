package mtls_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/mtls/xtest"
)

// probeOf is a certificate for probes as id.
func probeOf(t *testing.T, ca *xtest.CA, id identity.ID) tls.Certificate {
	t.Helper()
	tmpl := xtest.Leaf(t, id, time.Hour)
	tmpl.ExtraExtensions = []pkix.Extension{{Id: identity.OIDProbe(), Critical: true, Value: asn1.NullBytes}}
	return certificate(ca.Sign(t, tmpl))
}

// offering is a client that takes every server.
func offering(cert tls.Certificate, alpn ...string) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, ServerName: "x", NextProtos: alpn,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
}

// last is what is known of the connection that was accepted last.
func (s *server) last() (call.Peer, call.TLS) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		return call.Peer{}, call.TLS{}
	}
	return s.seen[len(s.seen)-1], s.tls[len(s.tls)-1]
}

// The protocol that is offered says which certificates are good, and there is none
// that is good for both.
func TestInboundTellsProbesApart(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	lookalike := xtest.NewCA(t, "shop.example")
	good, _ := m.client.Credential()
	service, probe, none := *good.Certificate(), probeOf(t, m.ca, m.web), tls.Certificate{}
	web := []string{mtls.HTTP2, mtls.HTTP1}
	for name, tt := range map[string]struct {
		speaks []string // by the listener; none is TCP
		cert   tls.Certificate
		offers []string
		alpn   string
		want   error // of the recorded refusal
	}{
		"a probe":                           {web, probe, []string{call.Probe}, call.Probe, nil},
		"a probe of TCP":                    {nil, probe, []string{call.Probe}, call.Probe, nil},
		"a probe that offers more":          {web, probe, []string{mtls.HTTP2, mtls.HTTP1, call.Probe}, call.Probe, nil},
		"a probe of TCP that offers more":   {nil, probe, []string{"postgresql", call.Probe}, call.Probe, nil},
		"a probe as a program":              {web, probe, []string{mtls.HTTP1}, "", identity.ErrProbe},
		"a probe as a program of TCP":       {nil, probe, []string{"postgresql"}, "", identity.ErrProbe},
		"a probe without a protocol":        {web, probe, nil, "", identity.ErrProbe},
		"a probe without one, TCP":          {nil, probe, nil, "", identity.ErrProbe},
		"a service as a probe":              {web, service, []string{call.Probe}, "", identity.ErrNoProbe},
		"a service as a probe of TCP":       {nil, service, []string{call.Probe}, "", identity.ErrNoProbe},
		"a service that offers both":        {web, service, []string{mtls.HTTP1, call.Probe}, "", identity.ErrNoProbe},
		"nobody as a probe":                 {web, none, []string{call.Probe}, "", nil},
		"a probe of a look-alike CA":        {web, probeOf(t, lookalike, m.web), []string{call.Probe}, "", identity.ErrChain},
		"a probe of no member":              {web, probeOf(t, m.ca, m.ca.ID(t, "stranger")), []string{call.Probe}, "", identity.ErrNotMember},
		"a service":                         {web, service, web, mtls.HTTP2, nil},
		"a service of HTTP/1.1":             {web, service, []string{mtls.HTTP1}, mtls.HTTP1, nil},
		"a service without a protocol":      {web, service, nil, "-", nil},
		"a service of TCP":                  {nil, service, nil, "-", nil},
		"a service of TCP that offers more": {nil, service, []string{"postgresql"}, "-", nil},
		"a protocol that only looks alike":  {nil, service, []string{call.Probe + "0"}, "-", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, mtls.Inbound(m.server, clock.System{}, tt.speaks...), mtls.ListenerConfig{})
			c, err := tls.Dial("tcp", s.addr, offering(tt.cert, tt.offers...))
			if err != nil {
				// In TLS 1.3 no client hears in the handshake that it was refused.
				t.Fatalf("refused in the handshake: %v", err)
			}
			err = echo(c)
			if tt.alpn == "" {
				if !mtls.ByPeer(err) {
					t.Errorf("the first read says %v, want an alert", err)
				}
				if _, got := s.lastRefusal(t); tt.want != nil && !errors.Is(got, tt.want) {
					t.Errorf("recorded %v, want %v", got, tt.want)
				}
				if peer, _ := s.last(); peer.Serial != "" {
					t.Errorf("served %+v", peer)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := tt.alpn
			if want == "-" {
				want = ""
			}
			peer, facts := s.last()
			if peer.ID != m.web || facts.ALPN != want || c.ConnectionState().NegotiatedProtocol != want || facts.Version != "1.3" {
				t.Errorf("got %s by %q, want %q", peer.ID, facts.ALPN, want)
			}
		})
	}
}

// A ticket is good for what its connection was, whatever the client says the next time
// and whichever certificate it has then.
func TestTicketsOfProbesDoNotCross(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	good, _ := m.client.Credential()
	service, probe := *good.Certificate(), probeOf(t, m.ca, m.web)
	for name, speaks := range map[string][]string{"http": {mtls.HTTP2, mtls.HTTP1}, "tcp": nil} {
		for _, tt := range []struct {
			name            string
			first, then     tls.Certificate
			offers, offers2 string
			served, resumed bool
		}{
			{"probe again", probe, probe, call.Probe, call.Probe, true, true},
			{"service again", service, service, mtls.HTTP1, mtls.HTTP1, true, true},
			{"probe's ticket as a service", probe, service, call.Probe, mtls.HTTP1, true, false},
			{"service's ticket as a probe", service, probe, mtls.HTTP1, call.Probe, true, false},
			{"probe's ticket, and its certificate, as a service", probe, probe, call.Probe, mtls.HTTP1, false, false},
			{"service's ticket, and its certificate, as a probe", service, service, mtls.HTTP1, call.Probe, false, false},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				s := serve(t, mtls.Inbound(m.server, clock.System{}, speaks...), mtls.ListenerConfig{})
				cache := tls.NewLRUClientSessionCache(1)
				call := func(cert tls.Certificate, offers string) (bool, error) {
					cfg := offering(cert, offers)
					cfg.ClientSessionCache = cache
					c, err := tls.Dial("tcp", s.addr, cfg)
					if err != nil {
						return false, err
					}
					return c.ConnectionState().DidResume, echo(c)
				}
				if resumed, err := call(tt.first, tt.offers); err != nil || resumed {
					t.Fatalf("the first: %v, resumed %v", err, resumed)
				}
				if _, ok := cache.Get("x"); !ok {
					t.Fatal("there is no ticket to try")
				}
				resumed, err := call(tt.then, tt.offers2)
				if (err == nil) != tt.served || resumed != tt.resumed {
					t.Errorf("then: %v, resumed %v", err, resumed)
				}
			})
		}
	}
}

// A ticket of a probe ends with the trust that it was issued under, as every ticket.
func TestBannedProbeWithTicket(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	s := serve(t, mtls.Inbound(m.server, clock.System{}, mtls.HTTP1), mtls.ListenerConfig{})
	cfg := offering(probeOf(t, m.ca, m.web), call.Probe)
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	dial := func() (bool, error) {
		c, err := tls.Dial("tcp", s.addr, cfg)
		if err != nil {
			return false, err
		}
		return c.ConnectionState().DidResume, echo(c)
	}
	for _, want := range []bool{false, true} {
		if resumed, err := dial(); err != nil || resumed != want {
			t.Fatalf("%v, resumed %v", err, resumed)
		}
	}
	banned := m.trust(2, m.web, m.db)
	banned.Banned[m.web] = true
	m.server.SetTrust(banned)
	if resumed, err := dial(); err == nil || resumed {
		t.Errorf("after the ban: %v, resumed %v", err, resumed)
	}
	if _, err := s.lastRefusal(t); !errors.Is(err, identity.ErrBanned) {
		t.Errorf("recorded %v", err)
	}
}

// Only an inbound takes probes: neither the doors of the server and of the SDK nor a
// client, whose upstream it could be.
func TestProbesAreRefusedElsewhere(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	probe := probeOf(t, m.ca, m.web)
	for name, tt := range map[string]struct {
		speaks []string
		offers []string
	}{
		"as a program":        {[]string{mtls.HTTP1}, []string{mtls.HTTP1}},
		"as an agent":         {[]string{mtls.Fleet}, []string{mtls.Fleet}},
		"without a protocol":  {nil, nil},
		"as a probe":          {nil, []string{call.Probe}},
		"as one of several":   {[]string{mtls.HTTP2, mtls.HTTP1}, []string{call.Probe, mtls.HTTP1}},
		"as a probe of a web": {[]string{mtls.HTTP2, mtls.HTTP1}, []string{call.Probe}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, mtls.Server(m.server, clock.System{}, tt.speaks...), mtls.ListenerConfig{})
			c, err := tls.Dial("tcp", s.addr, offering(probe, tt.offers...))
			if err == nil {
				if p := c.ConnectionState().NegotiatedProtocol; p == call.Probe {
					t.Error("it speaks the protocol for probes")
				}
				err = echo(c)
			}
			if err == nil {
				t.Error("served")
			}
			if peer, _ := s.last(); peer.Serial != "" {
				t.Errorf("accepted %+v", peer)
			}
		})
	}
	t.Run("as an upstream", func(t *testing.T) {
		t.Parallel()
		cert := probeOf(t, m.ca, m.db)
		s := serve(t, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}, mtls.ListenerConfig{})
		if _, err := exchange(m.dialer, s.addr); !errors.Is(err, identity.ErrProbe) || !mtls.IsRefusal(err) {
			t.Errorf("got %v", err)
		}
	})
}

// An edge has no protocol for probes, and asks nobody for a certificate.
func TestEdgeSpeaksNoProbe(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	cred, _ := m.server.Credential()
	s := serve(t, mtls.Edge(func() (*tls.Certificate, error) { return cred.Certificate(), nil }, mtls.HTTP2, mtls.HTTP1), mtls.ListenerConfig{})
	pool := x509.NewCertPool()
	pool.AddCert(m.ca.Root)
	for name, tt := range map[string]struct {
		offers []string
		alpn   string
		ok     bool
	}{
		"alone":          {[]string{call.Probe}, "", false},
		"before another": {[]string{call.Probe, mtls.HTTP1}, mtls.HTTP1, true},
		"after another":  {[]string{mtls.HTTP2, call.Probe}, mtls.HTTP2, true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := offering(probeOf(t, m.ca, m.web), tt.offers...)
			cfg.InsecureSkipVerify, cfg.RootCAs, cfg.ServerName = false, pool, "localhost"
			asked := cfg.GetClientCertificate
			cfg.GetClientCertificate = func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				t.Error("it asked for a certificate")
				return asked(i)
			}
			c, err := tls.Dial("tcp", s.addr, cfg)
			if err == nil {
				err = echo(c)
			}
			if (err == nil) != tt.ok {
				t.Fatalf("err is %v, want success %v", err, tt.ok)
			}
			if tt.ok && c.ConnectionState().NegotiatedProtocol != tt.alpn {
				t.Errorf("it speaks %q", c.ConnectionState().NegotiatedProtocol)
			}
		})
	}
}
