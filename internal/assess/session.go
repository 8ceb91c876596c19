package assess

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// maxAtOnce is how many edges are tried at once.
const maxAtOnce = 8

// freshTime is how long a certificate for probes is used. It is less than half of its
// life: what is refused, or let in, must not be so because a good one has ended since or
// one of tomorrow has begun.
const freshTime = 2 * time.Minute

// Tools are what a session works with. Every field is required.
type Tools struct {
	// Issue has a certificate for probes signed: as id, with a flaw that is named as
	// the check is, or none. csr is DER, PKCS #10; the chain is leaf first.
	Issue func(ctx context.Context, id identity.ID, flaw Check, csr []byte) ([]*x509.Certificate, error)
	// Roots are what the trust domain trusts.
	Roots []*x509.Certificate
	// Own is the good credential of a service or gateway of this host.
	Own func(id identity.ID) (*identity.Credential, error)
	// Call connects as the caller's sidecar would, which is on trial here, and closes
	// the connection at once.
	Call func(ctx context.Context, caller, callee identity.ID, addr string) error
	// Stranger connects to an address of this host as a process that is no part of
	// the mesh. Where that cannot be, own says that it was the agent's own user.
	Stranger func(ctx context.Context, network, addr string) (conn net.Conn, own bool, err error)
	// Guarded says that the firewall of this host keeps everybody but the agent's own
	// user away from a port.
	Guarded func(port uint16) bool
	Clock   clock.Clock
}

// A Session is one run on one host. Its methods are called one after another.
type Session struct {
	tools   Tools
	order   Order
	key     *ecdsa.PrivateKey
	verify  identity.ID
	strange identity.ID
	forged  *forger

	mu    sync.Mutex // guards what follows
	certs map[certKey]*certResult
	held  []*held
}

type certKey struct {
	id   identity.ID
	flaw Check
}

type certResult struct {
	since time.Time
	once  sync.Once
	cert  *tls.Certificate
	err   error
}

// New is a session for order, of which nothing is tried yet.
func New(tools Tools, order Order) (*Session, error) {
	s := &Session{tools: tools, order: order, certs: map[certKey]*certResult{}}
	var err error
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	if len(tools.Roots) == 0 || len(order.Edges) == 0 {
		return nil, fmt.Errorf("verification %s: nothing to try, or nobody to trust", order.Run)
	}
	td := order.Edges[0].CallerID.TrustDomain()
	if s.verify, err = identity.VerifyID(td); err != nil {
		return nil, err
	}
	if s.strange, err = identity.StrangerID(td); err != nil {
		return nil, err
	}
	s.forged, err = newForger(tools.Roots[0], tools.Clock.Now())
	return s, err
}

// Attack tries everything that needs no ban, and leaves a connection open at every
// endpoint for AfterBan. tell is called with results as they come, concurrently.
func (s *Session) Attack(ctx context.Context, tell func([]Result)) {
	var all []*target
	for i := range s.order.Edges {
		e := &s.order.Edges[i]
		for _, at := range e.Endpoints {
			all = append(all, &target{session: s, edge: e, at: at})
		}
		if len(e.Endpoints) == 0 {
			all = append(all, &target{session: s, edge: e})
		}
	}
	atOnce(all, func(t *target) { tell(t.attack(ctx)) })
}

// atOnce runs f for all, maxAtOnce at a time.
func atOnce[T any](all []T, f func(T)) {
	places := make(chan struct{}, maxAtOnce)
	var wg sync.WaitGroup
	for _, x := range all {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			f(x)
		})
	}
	wg.Wait()
}

// AfterBan tries, once the verification's identity is banned, what was left open,
// new handshakes, and sessions of before.
func (s *Session) AfterBan(ctx context.Context, tell func([]Result)) {
	s.mu.Lock()
	all := s.held
	s.held = nil
	s.mu.Unlock()
	atOnce(all, func(h *held) { tell(h.afterBan(ctx)) })
}

// Close lets go of what the session holds.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		h.close()
	}
	s.held = nil
}

// cert is the certificate for probes as id, issued anew once it is no longer fresh.
func (s *Session) cert(ctx context.Context, id identity.ID, flaw Check) (*tls.Certificate, error) {
	now := s.tools.Clock.Now()
	s.mu.Lock()
	r := s.certs[certKey{id, flaw}]
	if r == nil || now.Sub(r.since) >= freshTime {
		r = &certResult{since: now}
		s.certs[certKey{id, flaw}] = r
	}
	s.mu.Unlock()
	r.once.Do(func() { r.cert, r.err = s.issue(ctx, id, flaw) })
	return r.cert, r.err
}

func (s *Session) issue(ctx context.Context, id identity.ID, flaw Check) (*tls.Certificate, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, s.key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	chain, err := s.tools.Issue(ctx, id, flaw, csr)
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{PrivateKey: s.key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}
