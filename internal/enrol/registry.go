package enrol

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/identity"
)

// The kinds of what is issued, as Record.Kind has them. A probe is a certificate of
// `parley verify`, good for nothing else. The last two are the
// authority's own certificates, whose ID is the trust domain's.
const (
	KindX509         = "x509-svid"
	KindJWT          = "jwt-svid"
	KindProbe        = "probe"
	KindRoot         = "root"
	KindIntermediate = "intermediate"
)

// A Subject is an identity that may be issued to, as a revision names it.
type Subject struct {
	// ID has a path and belongs to the authority's trust domain.
	ID identity.ID
	// TTL is the life of its certificates; above zero.
	TTL time.Duration
	// DNSNames and IPs are further names of its certificates: a gateway's hosts.
	DNSNames []string
	IPs      []net.IP
	// Hosts are those whose agents may ask for it; none is every host, which is
	// right only where there is one.
	Hosts []string
}

// allows says whether host may ask for s.
func (s Subject) allows(host string) bool {
	return len(s.Hosts) == 0 || slices.Contains(s.Hosts, host)
}

// clone is s without shared slices.
func (s Subject) clone() Subject {
	s.DNSNames = slices.Clone(s.DNSNames)
	s.IPs, s.Hosts = slices.Clone(s.IPs), slices.Clone(s.Hosts)
	for i, ip := range s.IPs {
		s.IPs[i] = slices.Clone(ip)
	}
	return s
}

func (s Subject) equal(t Subject) bool {
	return s.ID == t.ID && s.TTL == t.TTL && slices.Equal(s.DNSNames, t.DNSNames) && slices.EqualFunc(s.IPs, t.IPs, net.IP.Equal) &&
		slices.Equal(s.Hosts, t.Hosts)
}

// A Record is one thing that was issued: never a key, never a token.
type Record struct {
	// Serial is unique: a certificate's serial number in lower-case
	// hexadecimal, or the first half of a token's Fingerprint.
	Serial string
	ID     identity.ID
	// NotBefore and NotAfter bound its validity, in UTC.
	NotBefore, NotAfter time.Time
	// Fingerprint is the SHA-256 of the certificate (DER) or of the token
	// (compact form) in lower-case hexadecimal.
	Fingerprint string
	// Host is the agent's host that asked.
	Host string
	// Kind is one of the constants above.
	Kind string
}

// A Registry keeps what was issued and what was refused, durably. The store
// implements it. Implementations are safe for concurrent use.
type Registry interface {
	// Issue commits r and e in one transaction. When it returns nil, no crash
	// loses either; the Registrar releases nothing before that. A Serial that is
	// already there is an error.
	Issue(ctx context.Context, r Record, e *audit.Event) error
	// Refused commits e.
	Refused(ctx context.Context, e *audit.Event) error
}
