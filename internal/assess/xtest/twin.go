// Package xtest is a stand-in for a sidecar's inbound that answers probes, strict or
// with one deliberate fault: the bad twin on which each check of package assess has
// to fail. Its judgement is its own code and shares nothing with what is judged.
//
// It refuses to be imported by anything but tests.
package xtest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// Faults are what a twin does wrong; the zero value is strict.
type Faults struct {
	NoCertificate bool // client certificates are optional
	AnyCA         bool // signatures are not checked
	NoClock       bool // neither end nor beginning counts
	AnyUsage      bool // the extended key usage does not count
	FirstName     bool // of several names the first is taken
	AnyMember     bool // whoever has a certificate may take part
	AnyExtension  bool // unknown critical extensions are passed over
	AnyCaller     bool // rules are not asked about callers
	AnyRequest    bool // nor about requests
	Plaintext     bool // TLS is optional
	OldTLS        uint16
	OldForCallers uint16 // of those who are no probes
	AppDenies     bool   // what is forbidden gets to the application, which denies it
	IgnoresBans   bool   // new handshakes
	TrustsTickets bool   // a resumed session is not verified again
	KeepsOpen     bool   // connections of the banned stay open
	DeniesAll     bool   // the allowed call is denied
	WrongServer   bool   // it shows another service's certificate
}

// A Twin listens like an inbound.
type Twin struct {
	Faults
	// Roots are trusted, Members take part, Allow is policy (nil: callers may do
	// everything).
	Roots   []*x509.Certificate
	Members []identity.ID
	Allow   func(caller, method, path string) bool
	// TCP is for a service of that protocol.
	TCP bool
	// Cert is the callee's certificate, and Other another service's.
	Cert, Other *tls.Certificate

	tb   testing.TB
	ln   net.Listener
	http *http.Server

	mu     sync.Mutex // guards what follows
	banned map[string]bool
	conns  map[net.Conn]string
	// Reached counts what an application would have got.
	reached int
}

const probe = "parley-probe/1"

// Start listens, until the test ends, and returns the address.
func (t *Twin) Start(tb testing.TB, addr string) string {
	tb.Helper()
	t.tb, t.banned, t.conns = tb, map[string]bool{}, map[net.Conn]string{}
	var err error
	if t.ln, err = net.Listen("tcp", addr); err != nil {
		tb.Fatal(err)
	}
	feed := make(chan net.Conn)
	done := make(chan struct{})
	front := &queue{t.ln, feed, done}
	t.http = &http.Server{Handler: http.HandlerFunc(t.handle), ReadHeaderTimeout: 5 * time.Second, ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		if h, ok := c.(hidden); ok {
			return context.WithValue(ctx, stateKey{}, h.Conn.(*tls.Conn).ConnectionState())
		}
		return ctx
	}}
	go func() { _ = t.http.Serve(front) }()
	go t.accept(feed, done)
	tb.Cleanup(func() {
		close(done)
		_ = t.ln.Close()
		_ = t.http.Close()
		t.mu.Lock()
		defer t.mu.Unlock()
		for c := range t.conns {
			_ = c.Close()
		}
	})
	return t.ln.Addr().String()
}

type queue struct {
	net.Listener
	feed chan net.Conn
	done chan struct{}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.feed:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// peeked is a connection whose first byte was looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

func (t *Twin) accept(feed chan net.Conn, done chan struct{}) {
	cfg := t.config()
	for {
		raw, err := t.ln.Accept()
		if err != nil {
			return
		}
		go func() {
			c := &peeked{raw, bufio.NewReader(raw)}
			first, err := c.r.Peek(1)
			if err != nil {
				_ = raw.Close()
				return
			}
			if first[0] != 22 {
				t.plain(c, feed, done)
				return
			}
			s := tls.Server(c, cfg)
			if err := s.Handshake(); err != nil {
				_ = raw.Close()
				return
			}
			t.shaken(s, feed, done)
		}()
	}
}

func (t *Twin) plain(c net.Conn, feed chan net.Conn, done chan struct{}) {
	switch {
	case !t.Plaintext:
		_ = c.Close()
	case t.TCP:
		_, _ = c.Write([]byte("220 hello\r\n"))
		_ = c.Close()
	default:
		hand(c, feed, done)
	}
}

// hand gives c to the HTTP server, which closes what has a protocol that it does not
// know where it sees that there is TLS.
func hand(c net.Conn, feed chan net.Conn, done chan struct{}) {
	select {
	case feed <- c:
	case <-done:
		_ = c.Close()
	}
}

// hidden is a connection of TLS that does not look like one.
type hidden struct{ net.Conn }

type stateKey struct{}

func (t *Twin) shaken(c *tls.Conn, feed chan net.Conn, done chan struct{}) {
	state := c.ConnectionState()
	id := caller(state)
	t.mu.Lock()
	t.conns[c] = id
	t.mu.Unlock()
	if !t.TCP {
		hand(hidden{c}, feed, done)
		return
	}
	if t.allowed(id, "", "") {
		if state.NegotiatedProtocol == probe {
			_, _ = c.Write([]byte("parley-probe: allowed\n"))
		} else {
			t.reach()
			_, _ = c.Write([]byte("220 hello\r\n"))
		}
	}
	_ = c.Close()
}

func (t *Twin) reach() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reached++
}

// Reached is how often the application would have been called.
func (t *Twin) Reached() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reached
}

// Ban bans id, as far as the twin cares.
func (t *Twin) Ban(id identity.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.IgnoresBans {
		t.banned[id.String()] = true
	}
	for c, who := range t.conns {
		if who == id.String() && !t.KeepsOpen {
			_ = c.Close()
		}
	}
}

// Unban takes it back.
func (t *Twin) Unban(id identity.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.banned, id.String())
}

func (t *Twin) config() *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*t.Cert}, NextProtos: []string{probe, "http/1.1"},
		ClientAuth: tls.RequireAnyClientCert, VerifyConnection: t.verify,
	}
	if t.OldTLS != 0 {
		cfg.MinVersion = t.OldTLS
	}
	if t.NoCertificate {
		cfg.ClientAuth = tls.RequestClientCert
	}
	if t.OldForCallers != 0 {
		probes := cfg.Clone()
		cfg.MinVersion = t.OldForCallers
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(hello.SupportedProtos, probe) {
				return probes, nil
			}
			return nil, nil
		}
	}
	if t.WrongServer {
		cfg.Certificates = []tls.Certificate{*t.Other}
	}
	return cfg
}

func caller(cs tls.ConnectionState) string {
	if len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates[0].URIs) == 0 {
		return ""
	}
	return cs.PeerCertificates[0].URIs[0].String()
}

func (t *Twin) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil // ClientAuth has said so
	}
	if cs.DidResume && t.TrustsTickets {
		return nil
	}
	leaf := *cs.PeerCertificates[0]
	if t.AnyExtension || cs.NegotiatedProtocol == probe {
		leaf.UnhandledCriticalExtensions = nil
	}
	now := time.Now()
	if t.NoClock {
		now = leaf.NotBefore.Add(time.Second)
	}
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, r := range t.Roots {
		opts.Roots.AddCert(r)
	}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
		if t.AnyCA {
			opts.Roots.AddCert(c)
		}
	}
	if t.AnyUsage {
		opts.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	if t.NoClock {
		// Of a mesh that is younger than the certificate, the signers do not count either.
		opts.CurrentTime = time.Now()
		leaf.NotBefore, leaf.NotAfter = opts.CurrentTime.Add(-time.Minute), opts.CurrentTime.Add(time.Minute)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return err
	}
	id := caller(cs)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch member := slices.ContainsFunc(t.Members, func(m identity.ID) bool { return m.String() == id }); {
	case len(leaf.URIs) != 1 && !t.FirstName:
		return errors.New("several names")
	case !member && !t.AnyMember && !t.AnyCA:
		return errors.New("no member")
	case t.banned[id]:
		return errors.New("banned")
	}
	return nil
}

func (t *Twin) allowed(id, method, path string) bool {
	if t.DeniesAll {
		return false
	}
	return t.AnyCaller || t.Allow == nil || t.Allow(id, method, path)
}

func (t *Twin) handle(w http.ResponseWriter, r *http.Request) {
	id, probes := "", false
	if cs, ok := r.Context().Value(stateKey{}).(tls.ConnectionState); ok {
		id, probes = caller(cs), cs.NegotiatedProtocol == probe
	}
	w.Header().Set("Parley-Decision", "01JD8Z4M7QK2V9D3B6H8N5R1T0")
	if !t.allowed(id, r.Method, r.URL.Path) && !(t.AnyRequest && t.allowed(id, "GET", "/orders")) {
		if t.AppDenies {
			t.reach()
			w.Header().Del("Parley-Decision")
		}
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if !probes {
		t.reach()
		return
	}
	w.Header().Set("Parley-Probe", "answered")
}
