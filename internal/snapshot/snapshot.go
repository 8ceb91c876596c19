// Package snapshot is what an agent runs, as plain serialisable data: a revision
// of the mesh file compiled for one agent, without pools, clocks or YAML.
//
// It refuses to hold secrets: keys and certificates come through identity.Source,
// API keys only as digests.
package snapshot

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
)

// Version is the version of Snapshot's serialised form.
const Version = 1

// A Snapshot is one revision for one agent. It is immutable once published.
type Snapshot struct {
	Version     int                  `json:"version"`
	Revision    int64                `json:"revision"`
	TrustDomain identity.TrustDomain `json:"-"`
	Domain      string               `json:"trust_domain"`
	// LeafTTL is the life of an X509-SVID.
	LeafTTL time.Duration `json:"leaf_ttl"`
	// Hosts are the machines that the mesh file names, in order of name; none for
	// a mesh on one machine. A slice for a host has that one.
	Hosts []Host `json:"hosts,omitempty"`
	// Admins are those of the admin API over TLS; no slice for a host has them.
	Admins []Admin `json:"-"`
	// Retention is the server's affair; no slice for a host has it.
	Retention Retention `json:"-"`
	// Services are those that run on the agent's host, in order of name.
	Services []Service `json:"services"`
	Gateways []Gateway `json:"gateways"`
	// Rules are those of every target that the agent decides for.
	Rules []policy.Rule `json:"rules"`
	// APIKeys are the live ones.
	APIKeys []APIKey `json:"api_keys"`
	// Issuers are whose tokens gateways accept, in order of name.
	Issuers []Issuer `json:"issuers,omitempty"`
	// Members are all identities that the mesh file names.
	Members []identity.ID `json:"members"`
}

// A Retention is how long events are kept by their class; zero is for ever.
type Retention struct{ Access, Security time.Duration }

// A Host is a machine that runs an agent.
type Host struct {
	Name string `json:"name"`
	// ID is its agent's.
	ID identity.ID `json:"id"`
	// Advertise is the IP address where other hosts reach it, empty where its
	// agent says it.
	Advertise string `json:"advertise,omitempty"`
}

// An Admin is an administrator who comes with a certificate.
type Admin struct {
	Name string
	ID   identity.ID
	Role string // viewer, operator, admin
}

// A Service is a named thing that is called, or calls.
type Service struct {
	Name string      `json:"name"`
	ID   identity.ID `json:"id"`
	// RunsOn are the hosts whose agents may have its identity; empty only in a
	// mesh on one machine.
	RunsOn   []string   `json:"runs_on,omitempty"`
	RunsAs   RunsAs     `json:"runs_as"`
	Inbound  *Inbound   `json:"inbound,omitempty"`
	Outbound []Outbound `json:"outbound,omitempty"`
	// Audit is how its calls are recorded, nil for the defaults.
	Audit *Audit `json:"audit,omitempty"`
}

// An Audit is how the calls at the listeners of a service or gateway are recorded.
type Audit struct {
	// Gap lets calls pass unrecorded while the log takes nothing; they are refused
	// then without it.
	Gap bool `json:"gap,omitempty"`
}

// RunsAs are the selectors of a workload; every one that is set must match, and
// at least one is set.
type RunsAs struct {
	User    string `json:"user,omitempty"`  // name or number
	Group   string `json:"group,omitempty"` // name or number
	Systemd string `json:"systemd,omitempty"`
	Exe     string `json:"exe,omitempty"`    // absolute path
	SHA256  string `json:"sha256,omitempty"` // of the executable, lower-case hexadecimal
}

// Inbound is mTLS to the application.
type Inbound struct {
	Listen string `json:"listen"` // host:port
	// App is host:port, or unix: and an absolute path.
	App      string `json:"app"`
	Protocol string `json:"protocol"` // call.HTTP, call.TCP
	// AppHTTP2 forwards to the application by HTTP/2 without TLS (prior knowledge).
	AppHTTP2 bool `json:"app_http2,omitempty"`
	// WebSocket lets requests become WebSocket connections; nil refuses it. Its
	// Origins are for a route only.
	WebSocket *WebSocket `json:"websocket,omitempty"`
	// PlaintextUntil is until when callers without TLS are let in and recorded; the
	// zero time lets none in.
	PlaintextUntil time.Time `json:"plaintext_until,omitzero"`
	// Probe is the one request of `parley verify` that reaches the application; nil
	// lets none.
	Probe *Probe `json:"probe,omitempty"`
	// Health is how the application is asked whether it can take calls; nil looks
	// whether its port answers.
	Health *Health `json:"health,omitempty"`
}

// A Probe is a request that does no harm.
type Probe struct {
	Path   string `json:"path"` // canonical, without a query
	Method string `json:"method"`
}

// The kinds of Health.
const (
	HealthTCP  = "tcp"
	HealthHTTP = "http"
	HealthGRPC = "grpc"
)

// A Health is how the application of a service is asked whether it can take calls.
type Health struct {
	Kind string `json:"kind"`
	// Path, with a query perhaps, and Status are of HealthHTTP; 0 is any of 200 to 299.
	Path   string `json:"path,omitempty"`
	Status int    `json:"status,omitempty"`
	// Service is of HealthGRPC; empty is the whole server.
	Service  string        `json:"service,omitempty"`
	Interval time.Duration `json:"interval"`
	Timeout  time.Duration `json:"timeout"`
	// Unhealthy and Healthy are how many answers in a row change its state.
	Unhealthy int `json:"unhealthy"`
	Healthy   int `json:"healthy"`
}

// Outbound is the application's way to one service: plaintext on loopback or a
// Unix socket, attested, then mTLS.
type Outbound struct {
	To     string      `json:"to"`
	ToID   identity.ID `json:"to_id"`
	Listen string      `json:"listen"` // host:port, or unix: and an absolute path
	// Protocol and WebSocket are the callee's.
	Protocol  string     `json:"protocol"`
	WebSocket *WebSocket `json:"websocket,omitempty"`
	Places
}

// Places are where a service is called, and how calls are spread over them.
type Places struct {
	// Endpoints are host:port with an IP address: those that agents announce, and
	// those that the mesh file lists.
	Endpoints []string `json:"endpoints"`
	// Names are host:port with a DNS name, for the caller's agent to look up.
	Names []string `json:"names,omitempty"`
	// Balance is BalanceRoundRobin, or empty for least requests.
	Balance string `json:"balance,omitempty"`
	// Foreign says that no agent is in front of the service: what answers there is
	// the program itself.
	Foreign bool `json:"foreign,omitempty"`
}

// BalanceRoundRobin takes one endpoint after the other.
const BalanceRoundRobin = "round_robin"

// A Gateway is a TLS edge.
type Gateway struct {
	Name   string      `json:"name"`
	ID     identity.ID `json:"id"`
	RunsOn []string    `json:"runs_on,omitempty"` // as of a Service
	Listen string      `json:"listen"`
	// CertFile and KeyFile are its certificate; both empty means one of the
	// mesh's own CA, with Hosts as its names.
	CertFile string   `json:"cert_file,omitempty"`
	KeyFile  string   `json:"key_file,omitempty"`
	Hosts    []string `json:"hosts,omitempty"`
	Routes   []Route  `json:"routes"`
	// Redirect answers plaintext HTTP with the way to HTTPS, nil for none.
	Redirect *Redirect `json:"redirect,omitempty"`
	// HSTS is the Strict-Transport-Security value of every answer (RFC 6797
	// section 6.1), empty for none.
	HSTS string `json:"hsts,omitempty"`
	// Proxies are those in front of the gateway, nil where clients connect to it.
	Proxies *Proxies `json:"proxies,omitempty"`
	Audit   *Audit   `json:"audit,omitempty"` // as of a Service
}

// A Redirect is a plaintext listener beside a gateway.
type Redirect struct {
	Listen string `json:"listen"` // host:port
	// Hosts are those that are redirected: names, and *.name for one more label.
	Hosts []string `json:"hosts"`
	// Port is where clients find the gateway.
	Port int `json:"port"`
}

// Proxies say how far a gateway believes X-Forwarded-For.
type Proxies struct {
	// Hops is how many proxies a request passes at most.
	Hops int `json:"hops"`
	// From are the networks that they are in.
	From []netip.Prefix `json:"from"`
}

// A Route leads from an edge to a service. The first that matches is taken.
type Route struct {
	// PolicyTarget is the name that policy knows the route by: "edge/routes[0]".
	PolicyTarget string `json:"policy_target"`
	// Host is a name without port, *.name for exactly one more label, or empty
	// for any; Path a pattern as in policy.Rule, empty for any; Methods empty for any.
	Host    string   `json:"host,omitempty"`
	Path    string   `json:"path,omitempty"`
	Methods []string `json:"methods,omitempty"`

	To   string      `json:"to"`
	ToID identity.ID `json:"to_id"`
	Places
	// ForwardToken hands the caller's token on; otherwise it stays at the gateway.
	ForwardToken bool `json:"forward_token,omitempty"`
	// WebSocket lets requests become WebSocket connections; nil refuses it.
	WebSocket *WebSocket `json:"websocket,omitempty"`
}

// A WebSocket says which pages may open WebSocket connections.
type WebSocket struct {
	// Origins are those of pages, as browsers send them: https://shop.example. None
	// means the gateway's own, as the client called it.
	Origins []string `json:"origins,omitempty"`
}

// An Issuer is whose tokens are accepted. Of JWKSURI, JWKSFile and Keys one is
// set at most; without any the keys are found by discovery.
type Issuer struct {
	Name string `json:"name"`   // in the mesh file
	URL  string `json:"issuer"` // exactly as in iss
	// JWKSURI and JWKSFile are where the JWK set is; Keys is the set itself.
	JWKSURI  string          `json:"jwks_uri,omitempty"`
	JWKSFile string          `json:"jwks_file,omitempty"`
	Keys     json.RawMessage `json:"keys,omitempty"`
	// Algorithms and Types are as in jose.Rules, as are Skew and MaxAge.
	Algorithms []string      `json:"algorithms"`
	Types      []string      `json:"types"`
	Skew       time.Duration `json:"clock_skew"`
	MaxAge     time.Duration `json:"max_age,omitempty"`
	// MaxStale is how long keys are used that could not be fetched again.
	MaxStale time.Duration `json:"max_stale"`
	// Hosts may be asked for keys beside those of the URLs above; PrivateHosts too,
	// and they may be on private addresses.
	Hosts        []string `json:"hosts,omitempty"`
	PrivateHosts []string `json:"private_hosts,omitempty"`
	CAFile       string   `json:"ca_file,omitempty"`
}

// An APIKey is what a gateway needs to know a key: never the key.
type APIKey struct {
	ID     string   `json:"id"`
	Name   string   `json:"name"`
	Digest [32]byte `json:"digest"` // SHA-256 of the whole key
	Scopes []string `json:"scopes"`
	// NotAfter is the key's end; zero means none.
	NotAfter time.Time `json:"not_after,omitzero"`
}
