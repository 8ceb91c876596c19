package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/mtls/xtest"
)

// A door is a control listener, split by what clients ask to speak. Each of its
// parts answers with its own name.
type door struct {
	ca     *xtest.CA
	addr   string
	server identity.ID
}

func openDoor(t *testing.T, ca *xtest.CA, self identity.ID, config func(identity.Source) *tls.Config, limits mtls.ListenerConfig) *door {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	agent, admin := named(t, identity.AgentID, ca, "a"), named(t, identity.AdminID, ca, "alice")
	src := xtest.NewSource(ca.CredentialFor(t, self, time.Hour), xtest.Trust(1, []*xtest.CA{ca}, agent, admin))
	limits.Clock = clock.System{}
	parts := mtls.Split(mtls.NewListener(l, config(src), limits), []string{mtls.Fleet}, []string{mtls.Join}, []string{mtls.HTTP1, mtls.HTTP2})
	for i, name := range []string{"fleet", "join", "admin"} {
		go func() { // ends with the listener
			for {
				c, err := parts[i].Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, name)
				go func() { // keeps it until the client goes
					_, _ = io.Copy(io.Discard, c)
					_ = c.Close()
				}()
			}
		}()
	}
	t.Cleanup(func() { _ = parts[1].Close() })
	return &door{ca, l.Addr().String(), self}
}

func named(t *testing.T, id func(identity.TrustDomain, string) (identity.ID, error), ca *xtest.CA, name string) identity.ID {
	t.Helper()
	got, err := id(ca.Domain, name)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func control(ca *xtest.CA) func(identity.Source) *tls.Config {
	return func(src identity.Source) *tls.Config { return mtls.Control(src, ca.Root, clock.System{}) }
}

func serverOf(t *testing.T, ca *xtest.CA) identity.ID {
	t.Helper()
	id, err := identity.ServerID(ca.Domain)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// ask is what answers config, and how the connection was made.
func (d *door) ask(t *testing.T, config *tls.Config) (string, tls.ConnectionState, error) {
	t.Helper()
	ctx, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return "", tls.ConnectionState{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 16)
	n, err := c.Read(buf)
	return string(buf[:n]), c.(*tls.Conn).ConnectionState(), err
}

// client is a configuration that takes every server, with the certificate of id.
func (d *door) client(t *testing.T, id identity.ID, cache tls.ClientSessionCache, alpn ...string) *tls.Config {
	c := &tls.Config{InsecureSkipVerify: true, NextProtos: alpn, ClientSessionCache: cache, ServerName: "x"}
	if !id.IsZero() {
		c.Certificates = []tls.Certificate{*d.ca.CredentialFor(t, id, time.Hour).Certificate()}
	}
	return c
}

func TestControlTellsItsClientsApart(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	d := openDoor(t, ca, serverOf(t, ca), control(ca), mtls.ListenerConfig{})
	agent, admin, nobody := named(t, identity.AgentID, ca, "a"), named(t, identity.AdminID, ca, "alice"), identity.ID{}
	for name, tt := range map[string]struct {
		id   identity.ID
		alpn []string
		want string
	}{
		"agent":                      {agent, []string{mtls.Fleet}, "fleet"},
		"administrator":              {admin, []string{mtls.HTTP1}, "admin"},
		"joins":                      {nobody, []string{mtls.Join}, "join"},
		"joins with a certificate":   {agent, []string{mtls.Join}, "join"},
		"agent without certificate":  {nobody, []string{mtls.Fleet}, ""},
		"admin without certificate":  {nobody, []string{mtls.HTTP1}, ""},
		"no protocol":                {agent, nil, ""},
		"no protocol, nobody":        {nobody, nil, ""},
		"unknown protocol":           {agent, []string{"h3"}, ""},
		"join and another":           {nobody, []string{mtls.Join, mtls.Fleet}, ""},
		"another and join":           {nobody, []string{mtls.Fleet, mtls.Join}, ""},
		"join twice":                 {nobody, []string{mtls.Join, mtls.Join}, ""},
		"agent of nobody":            {named(t, identity.AgentID, ca, "z"), []string{mtls.Fleet}, ""},
		"service":                    {ca.ID(t, "web"), []string{mtls.Fleet}, ""},
		"the server's own":           {d.server, []string{mtls.Fleet}, ""},
		"HTTP/2, which it has not":   {admin, []string{mtls.HTTP2}, ""},
		"agent asks for admin first": {agent, []string{mtls.HTTP1, mtls.Fleet}, "fleet"}, // the server's order
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, _, err := d.ask(t, d.client(t, tt.id, nil, tt.alpn...))
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// A ticket is good for what its connection was: nobody becomes an agent by a ticket
// of a connection on which nothing was proven, nor the reverse.
func TestTicketsDoNotCross(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	d := openDoor(t, ca, serverOf(t, ca), control(ca), mtls.ListenerConfig{})
	agent := named(t, identity.AgentID, ca, "a")
	cache := tls.NewLRUClientSessionCache(8)
	for _, step := range []struct {
		what    string
		id      identity.ID
		alpn    string
		want    string
		resumed bool
	}{
		{"joins", identity.ID{}, mtls.Join, "join", false},
		{"joins again", identity.ID{}, mtls.Join, "join", false}, // there are no tickets for it
		{"a join's as an agent", identity.ID{}, mtls.Fleet, "", false},
		{"agent", agent, mtls.Fleet, "fleet", false},
		{"agent again", agent, mtls.Fleet, "fleet", true},
		{"an agent's for a join", identity.ID{}, mtls.Join, "join", false},
	} {
		got, cs, err := d.ask(t, d.client(t, step.id, cache, step.alpn))
		if got != step.want || (err == nil) != (step.want != "") || cs.DidResume != step.resumed {
			t.Errorf("%s: %q, resumed %v, %v", step.what, got, cs.DidResume, err)
		}
	}
}

func TestJoiningKnowsItsServerByThePin(t *testing.T) {
	t.Parallel()
	ca, other := xtest.NewCA(t, "shop.example"), xtest.NewCA(t, "shop.example")
	good := serverOf(t, ca)
	plain := func(alpn ...string) func(identity.Source) *tls.Config { // shows no root
		return func(src identity.Source) *tls.Config {
			c, _ := src.Credential()
			return &tls.Config{Certificates: []tls.Certificate{*c.Certificate()}, NextProtos: alpn}
		}
	}
	with := func(root *x509.Certificate, first bool) func(identity.Source) *tls.Config {
		return func(src identity.Source) *tls.Config {
			c, _ := src.Credential()
			cert := *c.Certificate()
			cert.Certificate = append(cert.Certificate[:len(cert.Certificate):len(cert.Certificate)], root.Raw)
			if first { // a stranger between the leaf and the pinned root
				cert.Certificate = append(cert.Certificate, ca.Root.Raw)
			}
			return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{mtls.Join}}
		}
	}
	for name, tt := range map[string]struct {
		signer *xtest.CA
		self   identity.ID
		config func(identity.Source) *tls.Config
		want   error
	}{
		"good":              {ca, good, control(ca), nil},
		"another root":      {other, serverOf(t, other), control(other), mtls.ErrPin},
		"no root":           {ca, good, plain(mtls.Join), mtls.ErrPin},
		"root not pinned":   {ca, good, with(other.Root, false), mtls.ErrPin},
		"root not its own":  {other, serverOf(t, other), with(ca.Root, false), identity.ErrChain},
		"its own before it": {other, serverOf(t, other), with(other.Root, true), identity.ErrChain},
		"an agent":          {ca, named(t, identity.AgentID, ca, "a"), control(ca), identity.ErrNotMember},
		"a service":         {ca, ca.ID(t, "parley"), control(ca), identity.ErrNotMember},
		"no protocol":       {ca, good, plain(), mtls.ErrPin},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := openDoor(t, tt.signer, tt.self, tt.config, mtls.ListenerConfig{})
			var learned atomic.Pointer[x509.Certificate]
			_, _, err := d.ask(t, mtls.Joining(mtls.PinOf(ca.Root), good, clock.System{}, func(r *x509.Certificate) { learned.Store(r) }))
			if tt.want == nil {
				if err != nil || learned.Load() == nil || !learned.Load().Equal(ca.Root) {
					t.Errorf("%v, learned %v", err, learned.Load() != nil)
				}
				return
			}
			if learned.Load() != nil {
				t.Error("a root was learned")
			}
			if name == "no protocol" && err != nil { // crypto/tls may refuse it first
				return
			}
			if !errors.Is(err, tt.want) || !mtls.IsRefusal(err) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("TLS 1.2", func(t *testing.T) {
		t.Parallel()
		d := openDoor(t, ca, good, func(src identity.Source) *tls.Config {
			c := with(ca.Root, false)(src)
			c.MaxVersion = tls.VersionTLS12
			return c
		}, mtls.ListenerConfig{})
		if _, _, err := d.ask(t, mtls.Joining(mtls.PinOf(ca.Root), good, clock.System{}, func(*x509.Certificate) { t.Error("a root was learned") })); err == nil {
			t.Error("TLS 1.2 is spoken")
		}
	})
}

func TestSplitEndsAsOne(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	parts := mtls.Split(l, []string{"a"}, []string{"b"})
	ended := make(chan error, 1)
	go func() { _, err := parts[1].Accept(); ended <- err }()
	c, err := net.Dial("tcp", l.Addr().String()) // no TLS connection: of no group
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection of no group: %v", err)
	}
	if err := parts[0].Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the other part: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still listens")
	}
	if parts[0].Addr() == nil || parts[1].Close() != nil {
		t.Error("a second Close fails")
	}
}

// One peer does not take every descriptor.
func TestConnectionsOfOnePeerAreBounded(t *testing.T) {
	t.Parallel()
	ca := xtest.NewCA(t, "shop.example")
	agent := named(t, identity.AgentID, ca, "a")
	d := openDoor(t, ca, serverOf(t, ca), control(ca), mtls.ListenerConfig{MaxOpen: func(peer identity.ID) int {
		if peer.IsZero() {
			return 3
		}
		return 2
	}})
	open := func(id identity.ID, alpn string) net.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", d.addr, d.client(t, id, nil, alpn))
		if err != nil {
			return nil
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			return nil
		}
		return c
	}
	for kind, tt := range map[string]struct {
		id   identity.ID
		alpn string
		max  int
	}{"agent": {agent, mtls.Fleet, 2}, "joins": {identity.ID{}, mtls.Join, 3}} {
		var first net.Conn
		for i := range tt.max {
			c := open(tt.id, tt.alpn)
			if c == nil {
				t.Fatalf("%s: connection %d is refused", kind, i)
			}
			if first == nil {
				first = c
			}
		}
		if open(tt.id, tt.alpn) != nil {
			t.Errorf("%s: one more is served", kind)
		}
		_ = first.Close()
		again := false
		for range 200 {
			if again = open(tt.id, tt.alpn) != nil; again {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if !again {
			t.Errorf("%s: no room after one has ended", kind)
		}
	}
}
