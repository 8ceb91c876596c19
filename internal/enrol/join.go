package enrol

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// AgentTTL is the life of an agent's certificate, renewed at half of it: what a
// host may be off, or cut off from every server, without joining anew. It is
// longer than a leaf's because the ban, not the end, is what stops a host.
const AgentTTL = 7 * 24 * time.Hour

// The bounds of a join token's life.
const (
	DefaultJoinTTL = time.Hour
	MaxJoinTTL     = 7 * 24 * time.Hour
)

// joinSecret is the length of a join token's secret, in bytes.
const joinSecret = 32

// ErrJoin says that a join token is not good: unknown, expired, or used with
// another key. Which of them is for the record, not for who asks.
var ErrJoin = errors.New("the join token is not good")

// A Join is a right to join as one host, once.
type Join struct {
	// ID names it in records; 16 bytes in lower-case hexadecimal.
	ID string
	// Secret is shown once and kept nowhere.
	Secret  []byte
	Host    string
	Expires time.Time
}

// LogValue implements slog.LogValuer: no log has the secret.
func (j Join) LogValue() slog.Value {
	return slog.GroupValue(slog.String("id", j.ID), slog.String("host", j.Host), slog.Time("expires", j.Expires))
}

// A JoinRecord is what is kept of a Join.
type JoinRecord struct {
	ID     string
	Digest [sha256.Size]byte // of the secret
	Host   string
	// Created and Expires are in UTC.
	Created, Expires time.Time
}

// A Claim is an attempt to use a Join.
type Claim struct {
	ID     string
	Digest [sha256.Size]byte
	// Key is the SHA-256 of the public key that the certificate is for, in
	// lower-case hexadecimal: an answer that was lost on its way may be asked for
	// again by whoever holds that key.
	Key string
	At  time.Time
}

// Joins keeps join tokens, durably. The store implements it. Implementations are
// safe for concurrent use.
type Joins interface {
	// CreateJoin commits r and e in one transaction.
	CreateJoin(ctx context.Context, r JoinRecord, e *audit.Event) error
	// ClaimJoin uses a token by one conditional write: it is known, not expired,
	// and unused or used with the same key. It commits e with it, to which it adds
	// the host, and returns the host; otherwise ErrJoin, and a reason for the
	// record: join_unknown, join_expired or join_used.
	ClaimJoin(ctx context.Context, c Claim, e *audit.Event) (host, reason string, err error)
}

// NewJoin makes a token for host, which the current revision names, good for ttl.
func (r *Registrar) NewJoin(ctx context.Context, host string, ttl time.Duration, actor *audit.Actor) (Join, error) {
	if ttl <= 0 || ttl > MaxJoinTTL {
		return Join{}, fault.New(fault.BadRequest, "choose 1s to 168h: --ttl 1h", "a join token cannot live %s", ttl)
	}
	if _, err := r.agent(host); err != nil {
		return Join{}, err
	}
	secret := make([]byte, joinSecret+16)
	rand.Read(secret) // never fails (crypto/rand)
	now := r.cfg.Clock.Now().UTC().Truncate(time.Microsecond)
	j := Join{ID: hex.EncodeToString(secret[joinSecret:]), Secret: secret[:joinSecret], Host: host, Expires: now.Add(ttl)}
	e := r.event("join_token", host, identity.ID{})
	e.Action, e.Outcome, e.Actor = audit.JoinCreated, audit.Success, actor
	e.Object = &audit.Object{Kind: "join_token", Name: host, Serial: j.ID, NotAfter: j.Expires}
	rec := JoinRecord{ID: j.ID, Digest: sha256.Sum256(j.Secret), Host: host, Created: now, Expires: j.Expires}
	if err := r.cfg.Joins.CreateJoin(ctx, rec, e); err != nil {
		return Join{}, fmt.Errorf("create a join token: %w", err)
	}
	return j, nil
}

// agent is the permission for the agent on host.
func (r *Registrar) agent(host string) (Permission, error) {
	id, err := identity.AgentID(r.Bundle().TrustDomain, host)
	if err == nil {
		if p, _, err := r.decide(host, id); err == nil {
			return p, nil
		}
	}
	return Permission{}, fault.New(fault.NotFound, "add it to the mesh file: hosts: {NAME: {}}", "the current revision names no host %q", host)
}

// JoinHost uses a join token and gives the host's agent its first certificate over
// the public key of csr, of which nothing else is used. remote is where the request
// came from, for the record. The same token and key may ask again while the token
// lasts: the answer may have been lost. A refusal is ErrJoin or a fault.
func (r *Registrar) JoinHost(ctx context.Context, id string, secret, csr []byte, remote string) (host string, chain []*x509.Certificate, err error) {
	pub, err := publicKey(csr)
	if err != nil {
		return "", nil, r.refuseJoin(ctx, id, remote, reasonRequest, err)
	}
	key, err := keyDigest(pub)
	if err != nil {
		return "", nil, r.refuseJoin(ctx, id, remote, reasonRequest, err)
	}
	e := r.joinEvent(id, remote)
	e.Action, e.Outcome = audit.HostJoined, audit.Success
	host, reason, err := r.cfg.Joins.ClaimJoin(ctx, Claim{ID: id, Digest: sha256.Sum256(secret), Key: key, At: r.cfg.Clock.Now()}, e)
	if errors.Is(err, ErrJoin) {
		return "", nil, r.refuseJoin(ctx, id, remote, reason, err)
	}
	if err != nil {
		return "", nil, err
	}
	p, err := r.agent(host)
	if err != nil {
		return "", nil, r.refuseJoin(ctx, id, remote, reasonUnknown, err)
	}
	chain, err = r.issueTo(ctx, host, p, pub)
	return host, chain, err
}

// ServerTTL is the life of a server's own certificate.
const ServerTTL = 24 * time.Hour

// ownHost stands for the server itself where a host is asked for: no host can be
// called that.
const ownHost = "(server)"

// IssueServer gives this server its own certificate, over the public key of csr.
func (r *Registrar) IssueServer(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	return r.Issue(ctx, ownHost, id, csr)
}

// AdminTTL is the life of an administrator's certificate. Who leaves the mesh file
// is out at once.
const AdminTTL = 30 * 24 * time.Hour

// IssueAdmin gives an administrator a certificate, over the public key of csr.
func (r *Registrar) IssueAdmin(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	if _, ok := id.AdminName(); !ok {
		return nil, fault.New(fault.NotSubject, "", "%q is no administrator", id)
	}
	return r.Issue(ctx, ownHost, id, csr)
}

// Admin is an administrator as a subject: nobody but this server asks for it.
func Admin(id identity.ID) Subject {
	return Subject{ID: id, TTL: AdminTTL, Hosts: []string{ownHost}}
}

// server is the servers' own subject, which every revision has.
func (r *Registrar) server() (Subject, error) {
	id, err := identity.ServerID(r.Bundle().TrustDomain)
	return Subject{ID: id, TTL: ServerTTL, Hosts: []string{ownHost}}, err
}

// keyDigest is the SHA-256 of a public key (its SubjectPublicKeyInfo).
func keyDigest(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fault.New(fault.CertUnusable, "", "the certificate request's key cannot be encoded")
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

func (r *Registrar) joinEvent(id, remote string) *audit.Event {
	now := r.cfg.Clock.Now().UTC()
	return &audit.Event{
		ID: audit.NewID(now), Time: now, Class: audit.Security, Host: r.cfg.Host, Reporter: "server",
		Caller: &audit.Party{Address: remote}, Object: &audit.Object{Kind: "host", Serial: clip(id)},
	}
}

// refuseJoin records a refused join and returns why.
func (r *Registrar) refuseJoin(ctx context.Context, id, remote, reason string, why error) error {
	more, due := r.joins.Count(reason, r.cfg.Clock.Now())
	if !due {
		return why
	}
	e := r.joinEvent(id, remote)
	e.Action, e.Outcome, e.Reason, e.Message = audit.JoinRefused, audit.Denied, reason, why.Error()
	if more > 0 {
		e.Message += fmt.Sprintf(" (%d more of these were refused since the last record)", more)
	}
	if err := r.cfg.Registry.Refused(ctx, e); err != nil {
		return errors.Join(why, fmt.Errorf("record a refused join: %w", err))
	}
	return why
}

// clip bounds what a record repeats of outside bytes.
func clip(s string) string { return s[:min(len(s), 64)] }
