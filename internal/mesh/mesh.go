// Package mesh is the mesh file, the one document that says what a mesh is: its
// types with their documentation, a strict parse that finds every error of a
// document in one run and says where each stands, and what follows from an
// accepted document: assigned ports, the snapshot that agents run, the
// difference to another revision, static findings and the JSON Schema for
// editors.
//
// It refuses to read files, to keep revisions and to decide a call: it takes
// and returns data.
package mesh

import (
	"time"

	"github.com/parleymesh/parley/internal/fault"
)

// A File is one mesh file that Parse accepted. It is read only.
//
// The comments of its fields are the manual: they become the descriptions of
// the JSON Schema. A schema tag says what holds for a key besides its type:
// required, nonempty (a list with at least one entry), some (a mapping with at
// least one key), numeric (text that may be a number), enum=a|b, default=x and,
// always last, pattern=x. A hint tag is what to do where the key is missing.
type File struct {
	// The name of the trust domain, part of every identity: spiffe://<trust
	// domain>/<service>. 1 to 255 characters of a-z, 0-9, dot, hyphen and
	// underscore. To change it is to change every identity.
	TrustDomain string `yaml:"trust_domain" schema:"required,pattern=^[a-z0-9._-]{1,255}$"`
	// How long a workload's certificate lives, 10s to 168h. Certificates are
	// renewed at half of it, so half of it is also the longest outage of the
	// server that no workload notices.
	LeafTTL time.Duration `yaml:"leaf_ttl" schema:"default=1h"`
	// The first port of those that are assigned to entries of calls without a
	// port of their own, 1024 to 65535. Ports that are assigned already stay.
	OutboundPorts int `yaml:"outbound_ports" schema:"default=15001"`
	// The hosts by name, which follows the rule for services: the machines that
	// run an agent. Each joins with a token of its own name, and has no part in
	// the mesh any more once it is not named here. Without it the mesh is on the
	// one machine of `parley dev`.
	Hosts map[string]*Host `yaml:"hosts"`
	// The administrators by name, which follows the rule for services: who may use
	// the admin API from other machines, with a certificate of their own. Root and
	// the server's own user need none on its machine.
	Admins map[string]*Admin `yaml:"admins"`
	// The services by name: 1 to 63 characters of a-z, 0-9 and hyphen.
	Services map[string]*Service `yaml:"services"`
	// The gateways by name: the TLS edges where callers from outside the mesh
	// come in. Their names follow the rule for services, and none is a service's.
	Gateways map[string]*Gateway `yaml:"gateway"`
	// The issuers by name whose tokens routes can accept. Their names follow the
	// rule for services.
	Issuers map[string]*Issuer `yaml:"issuers"`
	// How long what is recorded is kept.
	Audit *Record `yaml:"audit"`

	name   string
	src    *source
	places map[string]place
}

// A Record says what becomes of what was recorded.
type Record struct {
	// How long events are kept in the server's database. What is older is emptied,
	// for good: its place in its log and its hash stay, so that the log still
	// verifies. Without it everything is kept.
	Retention *Retention `yaml:"retention"`
}

// A Retention is how long events are kept, by their class.
type Retention struct {
	// Calls, allowed and refused, and what was refused before it was one: at least 1h.
	// Without it they are kept for ever.
	Access time.Duration `yaml:"access"`
	// Administration, issuance, findings and all else: at least 1h. Without it they
	// are kept for ever. That something was emptied, erased or lost is always kept.
	Security time.Duration `yaml:"security"`
}

// A Host is a machine that runs an agent.
type Host struct {
	// Where other hosts reach it: an IP address. Services on it that listen on
	// all interfaces are called there. Without it the agent's --advertise, or the
	// address from which the agent reaches its server.
	Advertise string `yaml:"advertise"`
}

// An Admin is a person or program that administers the mesh.
type Admin struct {
	// What they may do: a viewer reads everything but secrets; an operator also
	// changes the mesh file, API keys and bans; an admin also lets hosts and
	// administrators in.
	Role string `yaml:"role" schema:"required,enum=viewer|operator|admin" hint:"say what they may do: role: viewer, operator or admin"`
}

// A Service is a named thing that is called, or calls.
type Service struct {
	// The hosts that it runs on. Only their agents get certificates for it. A
	// file that names hosts says so for every service.
	RunsOn []string `yaml:"runs_on" schema:"nonempty" hint:"name the hosts that it runs on; only in a file without hosts is the key left out"`
	// Which processes are this service. Every selector that is written must
	// match; at least one is.
	RunsAs *RunsAs `yaml:"runs_as" schema:"required,some" hint:"say which processes are this service: runs_as: {user: NAME}"`
	// Where the service is called: mutual TLS in front of the application. A
	// service without it and without endpoints calls others and is not called.
	Inbound *Inbound `yaml:"inbound"`
	// More places where the service is called, beside those that agents announce for
	// its inbound: host:port, at most 64. The host is an IP address, or a DNS name that
	// each caller's agent looks up again every 10 seconds; all its addresses are used.
	// Whoever answers there must prove to be the service by mutual TLS, so a service
	// whose program does that itself needs these and no inbound, and decides itself
	// who may call it.
	Endpoints []string `yaml:"endpoints" schema:"nonempty" hint:"write them like [10.0.0.7:9443, orders.internal:9443]"`
	// What a service speaks that has endpoints and no inbound; http without it.
	Protocol string `yaml:"protocol" schema:"enum=http|tcp"`
	// How calls are spread over the endpoints: least_requests takes the one with fewer
	// requests, or connections of a tcp service, under way of two that are drawn by
	// lot; round_robin takes one after the other. Either avoids for a while what could
	// not be reached.
	Balance string `yaml:"balance" schema:"enum=least_requests|round_robin,default=least_requests"`
	// The services that this one calls. Each gets a listener on this host that
	// only this service's processes may use.
	Calls []*Call `yaml:"calls"`
	// Who may call the service. Without an entry nobody may.
	Allow []*Allow `yaml:"allow"`
	// How the calls of the service and those that it makes are recorded.
	Audit *Audit `yaml:"audit"`
}

// An Audit says how the calls at the listeners of a service or a gateway are
// recorded.
type Audit struct {
	// What becomes of a call while the agent's log takes nothing, since its disk is
	// full or fails. refuse: it is answered 503 audit_unavailable. gap: it waits for
	// at most 250 ms and then passes unrecorded; how many did stands in the log, as
	// an audit.gap event, as soon as that takes something. What a rule refuses is
	// refused either way.
	WhenFull string `yaml:"when_full" schema:"enum=refuse|gap,default=refuse"`
}

// RunsAs are the selectors of a workload.
type RunsAs struct {
	// The user that the process runs as, by name or number.
	User string `yaml:"user" schema:"numeric"`
	// The group that the process runs as, by name or number.
	Group string `yaml:"group" schema:"numeric"`
	// The systemd unit that the process belongs to, such as orders.service.
	Systemd string `yaml:"systemd"`
	// The absolute path of the executable. It tells honest programs of one user
	// apart, and does not hold against somebody who runs code as that user and may
	// run that very file: use one user for each service. The agent needs the
	// process's own user or CAP_SYS_PTRACE to read it.
	Exe string `yaml:"exe" schema:"pattern=^/"`
	// The SHA-256 of the executable, 64 lower-case hexadecimal digits. It needs
	// what exe needs.
	SHA256 string `yaml:"sha256" schema:"numeric,pattern=^[0-9a-f]{64}$"`
}

// An Inbound is where a service is called.
type Inbound struct {
	// The address for calls from the mesh, host:port. The host is an IP address,
	// localhost, or empty for all interfaces.
	Listen string `yaml:"listen" schema:"required" hint:"state the address for calls from the mesh: listen: \":9443\""`
	// The application's own address, host:port on this host or unix:/path. What
	// arrives there is plaintext, so the application should listen on loopback
	// or on the socket only.
	App string `yaml:"app" schema:"required" hint:"state the application's own address: app: 127.0.0.1:8080"`
	// What the application speaks. Methods and paths exist for http only.
	Protocol string `yaml:"protocol" schema:"enum=http|tcp,default=http"`
	// The HTTP version towards the application: http1, which is the default, or
	// http2 without TLS by prior knowledge, which gRPC needs.
	AppProtocol string `yaml:"app_protocol" schema:"enum=http1|http2"`
	// Lets a request become a WebSocket connection, which lives for as long as it
	// is used: {}. It reaches the application over HTTP/1.1, whatever app_protocol
	// says. Without it such requests are refused.
	WebSocket *WebSocket `yaml:"websocket" hint:"write websocket: {}, or leave it out to refuse"`
	// What becomes of callers without TLS. strict refuses them. observe is for moving a
	// running service into the mesh: until plaintext_until everybody who reaches the
	// port without TLS is let in, by no rule and without an identity, is recorded, and
	// is listed by parley status; callers of the mesh go on as ever.
	Plaintext string `yaml:"plaintext" schema:"enum=strict|observe,default=strict"`
	// When observe ends, and the service is strict by itself: a date, which is in it
	// as a whole and by UTC, or a time of RFC 3339. At most 180 days ahead.
	PlaintextUntil string `yaml:"plaintext_until" schema:"pattern=^[0-9]{4}-[0-9]{2}-[0-9]{2}"`
	// A request that does no harm, such as a health check: what `parley verify` may
	// send to the application itself, as each caller whose rules allow it. Without it,
	// every probe ends at the sidecar, and so does this request with a query or a body.
	Probe *Probe `yaml:"probe" hint:"name the request: probe: {path: /healthz}"`
	// How the agent asks the application whether it can take calls. Without it whether
	// its port answers.
	Health *Health `yaml:"health" hint:"write health: {http: {path: /healthz}}, or leave it out to ask the port only"`
}

// A Probe is a request that does no harm.
type Probe struct {
	// Its path, without a query.
	Path string `yaml:"path" schema:"required" hint:"name one that only looks: path: /healthz"`
	// Its HTTP method, in upper case.
	Method string `yaml:"method" schema:"default=GET"`
}

// A Health is how the service's agent asks the application on its host whether it
// can take calls. While it cannot, other hosts are not told to call it there.
type Health struct {
	// Whether its port answers: {}. So it is without a health, every 2 seconds.
	TCP *TCPHealth `yaml:"tcp" hint:"write tcp: {}"`
	// A GET, over the HTTP version that the application speaks.
	HTTP *HTTPHealth `yaml:"http" hint:"write http: {path: /healthz}"`
	// The health service of gRPC, grpc.health.v1, over HTTP/2 without TLS.
	GRPC *GRPCHealth `yaml:"grpc" hint:"write grpc: {}, or grpc: {service: NAME}"`
	// The time from one question to the next, 1s to 5m.
	Interval time.Duration `yaml:"interval" schema:"default=5s"`
	// How long an answer may take, 100ms to the interval.
	Timeout time.Duration `yaml:"timeout" schema:"default=2s"`
	// How many bad answers in a row make it unhealthy, 1 to 20. Where nothing listens
	// on the port, http and grpc do not wait for that. The first answer of all decides
	// alone.
	UnhealthyThreshold int `yaml:"unhealthy_threshold" schema:"default=3"`
	// How many good answers in a row make it healthy again, 1 to 20.
	HealthyThreshold int `yaml:"healthy_threshold" schema:"default=2"`
}

// A TCPHealth asks whether the port answers; it has no keys.
type TCPHealth struct{}

// An HTTPHealth asks by HTTP.
type HTTPHealth struct {
	// The path, with a query perhaps: /healthz.
	Path string `yaml:"path" schema:"required" hint:"state the path: path: /healthz"`
	// The one status that is good, 200 to 599. Without it any from 200 to 299.
	Status int `yaml:"status"`
}

// A GRPCHealth asks by gRPC.
type GRPCHealth struct {
	// The name of the service to ask about. Without it the server as a whole.
	Service string `yaml:"service"`
}

// A WebSocket says that WebSocket connections are let through; it has no keys yet.
type WebSocket struct{}

// A Call is one service that another calls, written as its name alone or as a
// mapping that states the listener.
type Call struct {
	// The service that is called.
	To string `yaml:"to" schema:"required"`
	// Where the application finds it: host:port on loopback, or unix:/path.
	// Without it a port on 127.0.0.1 is assigned, once, and stays.
	Listen string `yaml:"listen"`
}

// An Allow lets some callers make some calls of the service that it stands under.
type Allow struct {
	// The callers: names of services, or gateway/NAME.
	From []string `yaml:"from" schema:"required,nonempty" hint:"name the callers: from: [web]"`
	// The HTTP methods, in upper case. Without it any.
	Methods []string `yaml:"methods" schema:"nonempty"`
	// Patterns over the path: a segment is literal, or * for exactly one; a last
	// segment ** stands for any number, none included, so /orders/** holds for
	// /orders and /orders/7/items. Without it any path.
	Paths []string `yaml:"paths" schema:"nonempty"`
}

// A Gateway is a TLS edge.
type Gateway struct {
	// The hosts that it runs on, as with a service.
	RunsOn []string `yaml:"runs_on" schema:"nonempty" hint:"name the hosts that it runs on; only in a file without hosts is the key left out"`
	// The address for callers from outside, host:port. The host is an IP
	// address, localhost, or empty for all interfaces.
	Listen string `yaml:"listen" schema:"required" hint:"state the address for callers from outside: listen: \":443\""`
	// The certificate that the gateway shows.
	TLS *TLS `yaml:"tls" schema:"required" hint:"state its certificate: tls: {cert: /path/cert.pem, key: /path/key.pem}, or tls: {mesh_ca: {hosts: [NAME]}}"`
	// Where requests go. The first route that matches is taken; a request that
	// none matches is refused.
	Routes []*Route `yaml:"routes"`
	// Where plaintext HTTP is answered with the way to HTTPS. Without it nothing
	// listens for it.
	Redirect *Redirect `yaml:"redirect"`
	// Tells browsers to come by HTTPS only. Without it they are told nothing, since
	// they cannot be told otherwise for as long as was said.
	HSTS *HSTS `yaml:"hsts"`
	// The proxies in front of the gateway. Without it X-Forwarded-For is dropped, and
	// the address of the connection is the caller's.
	Proxies *TrustedProxies `yaml:"trusted_proxies"`
	// How requests at the gateway are recorded.
	Audit *Audit `yaml:"audit"`
}

// A TLS is a gateway's certificate: cert and key, or mesh_ca.
type TLS struct {
	// The absolute path of the certificate with its chain, PEM, on the
	// gateway's host.
	Cert string `yaml:"cert" schema:"pattern=^/"`
	// The absolute path of the certificate's private key, PEM.
	Key string `yaml:"key" schema:"pattern=^/"`
	// A certificate of the mesh's own CA, which callers must then trust.
	MeshCA *MeshCA `yaml:"mesh_ca"`
}

// A MeshCA asks the mesh's own CA for an edge certificate.
type MeshCA struct {
	// The names in the certificate: host names, *.name, or IP addresses.
	Hosts []string `yaml:"hosts" schema:"required,nonempty" hint:"name the hosts: hosts: [api.shop.example]"`
}

// A Route leads requests from a gateway to a service. It also lets the gateway
// make these calls of the service, and no others.
type Route struct {
	// Which requests it takes. Without it all.
	Match *Match `yaml:"match"`
	// The service that they go to.
	To string `yaml:"to" schema:"required"`
	// What a caller must prove. To leave a route open to everybody is written
	// out: require: public.
	Require *Require `yaml:"require" schema:"required" hint:"say who may pass: require: {any: [{api_key: {}}]}, or require: public for everybody"`
	// Whether the service gets the caller's token as it came. Otherwise it stays at
	// the gateway, where nobody behind it can use it.
	ForwardToken bool `yaml:"forward_token"`
	// Lets a request become a WebSocket connection to a service whose inbound
	// allows it as well: {}, or with the pages that may open one. Without it such
	// requests are refused.
	WebSocket *EdgeWebSocket `yaml:"websocket" hint:"write websocket: {}, or leave it out to refuse"`
}

// An EdgeWebSocket says which pages may open WebSocket connections.
type EdgeWebSocket struct {
	// The origins of the pages: https://shop.example, with a port where it is not
	// the scheme's own. A browser opens a WebSocket to any host for any page, and
	// sends along the cookies that it has for that host. Without it only pages of
	// the gateway itself, under the host that they call; with it only these. What is
	// no browser says no origin, and require alone decides.
	Origins []string `yaml:"origins" schema:"nonempty" hint:"leave the key out for pages of the gateway itself"`
}

// A Match says which requests a route takes; what it does not name is any.
type Match struct {
	// The host name without port, in lower case, or *.name for exactly one more
	// label.
	Host string `yaml:"host"`
	// A pattern over the path, as in allow.
	Path string `yaml:"path"`
	// The HTTP methods, in upper case.
	Methods []string `yaml:"methods" schema:"nonempty"`
}

// A Require is what a route wants of a caller: the word public, or a mapping.
type Require struct {
	// The credentials of which one is enough.
	Any []*Credential `yaml:"any" schema:"required,nonempty" hint:"name a credential: any: [{api_key: {}}]"`

	// Public says that the route is open to everybody.
	Public bool `yaml:"-"`
}

// A Credential is one way to be let in at a gateway.
type Credential struct {
	// An API key made by parley key create.
	APIKey *APIKey `yaml:"api_key"`
	// A token of an issuer, sent as Authorization: Bearer.
	JWT *JWT `yaml:"jwt"`
}

// An APIKey says which API keys are good for a route.
type APIKey struct {
	// The scopes that the key must all carry. Without it any key of the mesh.
	Scopes []string `yaml:"scopes" schema:"nonempty"`
}

// What a service speaks, as snapshot and call name it.
const (
	http = "http"
	tcp  = "tcp"
)

// Limits of the mesh file.
const (
	// MaxSize is the longest document, in bytes.
	MaxSize = 4 << 20
	// MaxFaults is how many errors of one document are reported.
	MaxFaults = 100

	maxDepth   = 32
	maxEntries = 10_000 // of one list or mapping
	minLeafTTL = 10 * time.Second
	maxLeafTTL = 168 * time.Hour
	minPort    = 1024 // below it a port needs a privilege
)

// Name is the file's name as Parse was told.
func (f *File) Name() string { return f.name }

// Line is where the value at path stands, counted from 1, or 0 if it is not
// written. A path is keys joined by dots, with list positions in brackets:
// "services.orders.allow[0]".
func (f *File) Line(path string) int {
	p := f.places[path]
	if p.key.line > 0 {
		return p.key.line
	}
	return p.value.line
}

// Mark gives x the position of the value at path, as Line has it, and the text
// around it.
func (f *File) Mark(x *fault.Fault, path string) {
	at := f.places[path].mark()
	x.File, x.Line, x.Column, x.EndColumn = f.name, at.line, at.col, at.end
	if f.src != nil {
		x.Source = f.src.excerpt(at.line)
	}
}
