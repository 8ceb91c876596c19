package identity

import (
	"errors"
	"fmt"
	"strings"
)

// Limits of the SPIFFE ID specification (SPIFFE-ID.md, sections 2.1 to 2.3).
const (
	maxTrustDomain = 255
	maxID          = 2048
	scheme         = "spiffe://"
)

// Errors of ParseID and ParseTrustDomain, one a rule (SPIFFE-ID.md section 2).
var (
	ErrScheme      = errors.New("a SPIFFE ID starts with spiffe://")
	ErrTrustDomain = errors.New("a trust domain is 1 to 255 characters of a-z, 0-9, dot, hyphen and underscore")
	ErrPath        = errors.New("a SPIFFE ID path is /segment/segment of letters, digits, dot, hyphen and underscore")
	ErrDotSegment  = errors.New("a SPIFFE ID path has no . or .. segment")
	ErrEmptySeg    = errors.New("a SPIFFE ID path has no empty segment and no trailing slash")
	ErrTooLong     = errors.New("a SPIFFE ID is at most 2048 bytes")
	ErrNoPath      = errors.New("a workload's SPIFFE ID has a path")
)

// A TrustDomain is one CA's realm, a DNS-like name (SPIFFE-ID.md section 2.1).
// It is comparable; the zero value is no trust domain.
type TrustDomain struct{ name string }

// ParseTrustDomain accepts exactly the name, never a URI. Nothing is normalised.
func ParseTrustDomain(name string) (TrustDomain, error) {
	if name == "" || len(name) > maxTrustDomain {
		return TrustDomain{}, fmt.Errorf("%q: %w", clip(name), ErrTrustDomain)
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return TrustDomain{}, fmt.Errorf("%q: %w", clip(name), ErrTrustDomain)
		}
	}
	return TrustDomain{name}, nil
}

// String is the bare name.
func (td TrustDomain) String() string { return td.name }

// IsZero says that there is none.
func (td TrustDomain) IsZero() bool { return td.name == "" }

// ID is the trust domain's own ID, which has no path. It identifies signing
// certificates and never a workload. The zero TrustDomain has the zero ID.
func (td TrustDomain) ID() ID {
	if td.IsZero() {
		return ID{}
	}
	return ID{scheme + td.name, len(td.name)}
}

// An ID is a SPIFFE ID that passed every rule of the specification. IDs are
// compared byte by byte (==); nothing is ever decoded or cleaned
// (CVE-2021-27098 and CVE-2021-27099 are what happens otherwise). The zero
// value is no ID.
type ID struct {
	uri string
	td  int // length of the trust domain's name
}

// ParseID accepts a SPIFFE ID, with or without a path.
func ParseID(uri string) (ID, error) {
	if len(uri) > maxID {
		return ID{}, ErrTooLong
	}
	rest, ok := strings.CutPrefix(uri, scheme)
	if !ok {
		return ID{}, fmt.Errorf("%q: %w", clip(uri), ErrScheme)
	}
	name, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		name, path = rest[:i], rest[i:]
	}
	td, err := ParseTrustDomain(name)
	if err != nil {
		return ID{}, err
	}
	if err := checkPath(path); err != nil {
		return ID{}, fmt.Errorf("%q: %w", clip(uri), err)
	}
	return ID{uri, len(td.name)}, nil
}

// NewID is the ID of path, which starts with a slash, in td.
func NewID(td TrustDomain, path string) (ID, error) {
	if td.IsZero() {
		return ID{}, ErrTrustDomain
	}
	return ParseID(scheme + td.name + path)
}

// ServiceID is the ID of the service called name: spiffe://td/name.
func ServiceID(td TrustDomain, name string) (ID, error) { return NewID(td, "/"+name) }

// GatewayID is the ID of the gateway called name: spiffe://td/gateway/name.
func GatewayID(td TrustDomain, name string) (ID, error) { return NewID(td, "/gateway/"+name) }

// Parley's own processes and administrators have IDs of two segments and more
// below /parley, which no service can have.
const own = "/parley/"

// ServerID is the ID of the control plane's servers, which all have one:
// spiffe://td/parley/server.
func ServerID(td TrustDomain) (ID, error) { return NewID(td, own+"server") }

// AgentID is the ID of the agent on host: spiffe://td/parley/agent/host.
func AgentID(td TrustDomain, host string) (ID, error) { return NewID(td, own+"agent/"+host) }

// AdminID is the ID of the administrator called name: spiffe://td/parley/admin/name.
func AdminID(td TrustDomain, name string) (ID, error) { return NewID(td, own+"admin/"+name) }

// IsGateway says that it is a gateway's ID: one that GatewayID makes.
func (id ID) IsGateway() bool {
	name, ok := strings.CutPrefix(id.Path(), "/gateway/")
	return ok && name != "" && !strings.Contains(name, "/")
}

// AgentHost is the host of an agent's ID; false for any other.
func (id ID) AgentHost() (host string, ok bool) { return id.below("agent/") }

// AdminName is the name of an administrator's ID; false for any other.
func (id ID) AdminName() (name string, ok bool) { return id.below("admin/") }

func (id ID) below(kind string) (name string, ok bool) {
	name, ok = strings.CutPrefix(id.Path(), own+kind)
	return name, ok && name != "" && !strings.Contains(name, "/")
}

// String is the URI, empty for the zero ID.
func (id ID) String() string { return id.uri }

// IsZero says that there is none.
func (id ID) IsZero() bool { return id.uri == "" }

// TrustDomain is the realm that the ID belongs to.
func (id ID) TrustDomain() TrustDomain {
	if id.IsZero() {
		return TrustDomain{}
	}
	return TrustDomain{id.uri[len(scheme) : len(scheme)+id.td]}
}

// Path is what follows the trust domain, empty for the domain's own ID.
func (id ID) Path() string {
	if id.IsZero() {
		return ""
	}
	return id.uri[len(scheme)+id.td:]
}

// Name is the path without its leading slash: the service, for a service's ID.
func (id ID) Name() string { return strings.TrimPrefix(id.Path(), "/") }

// MarshalText is the URI.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.uri), nil }

// UnmarshalText is ParseID; an empty text is the zero ID.
func (id *ID) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		*id = ID{}
		return nil
	}
	*id, err = ParseID(string(text))
	return err
}

func checkPath(path string) error {
	if path == "" {
		return nil
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		switch segment {
		case "":
			return ErrEmptySeg
		case ".", "..":
			return ErrDotSegment
		}
		for i := 0; i < len(segment); i++ {
			c := segment[i]
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
				return ErrPath
			}
		}
	}
	return nil
}

// clip bounds what an error message repeats of outside bytes.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
