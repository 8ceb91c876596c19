// Package audit is what was: the one record of anything that happened, its
// canonical encoding, and the RFC 6962 hashes that make a log of it
// tamper-evident. Data and pure functions.
//
// It refuses to store and to ship; audit/spool, store and audit/collect do.
package audit

import (
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// Schema is the version of Event's JSON. Fields are only added within a version.
const Schema = 1

// MaxEvent is the longest canonical encoding of an event, in bytes: the limit
// of a C2SP tlog-tiles entry.
const MaxEvent = 65535

// A Class says which loss policy an event has.
type Class string

// The classes.
const (
	Access   Class = "access"   // a call through the mesh, allowed or not
	Security Class = "security" // issuance, administration, configuration, key use
)

// An Action is what was done. The registry is the constants below, which Actions
// lists.
type Action string

// The actions.
const (
	Call             Action = "call"              // a request or connection, allowed or denied
	HandshakeRefused Action = "handshake.refused" // a TLS peer that was not admitted
	// ConnectionRefused is one closed before anything else, since its listener had as
	// many as it may.
	ConnectionRefused Action = "connection.refused"
	ProcessRefused    Action = "process.refused"  // a local process that is not the listener's service
	WorkloadRefused   Action = "workload.refused" // a Workload API caller without an identity
	WorkloadServed    Action = "workload.served"  // a Workload API caller got its SVIDs
	SVIDIssued        Action = "svid.issued"      // the CA signed an X509-SVID
	JWTIssued         Action = "jwt.issued"       // the CA signed a JWT-SVID
	IssueRefused      Action = "issue.refused"    // the registrar refused to issue
	CACreated         Action = "ca.created"       // a root or intermediate was made
	ConfigApplied     Action = "config.applied"   // a revision was accepted
	ConfigRolledBack  Action = "config.rolled_back"
	KeyCreated        Action = "key.created" // an API key
	KeyRevoked        Action = "key.revoked"
	JoinCreated       Action = "join_token.created"
	HostJoined        Action = "host.joined"     // an agent used its join token
	JoinRefused       Action = "join.refused"    // a join token was not accepted
	AgentConnected    Action = "agent.connected" // an agent's stream began
	AgentLost         Action = "agent.lost"      // and ended
	AgentRefused      Action = "agent.refused"   // a snapshot or its agent was not accepted
	IdentityBanned    Action = "identity.banned"
	IdentityUnbanned  Action = "identity.unbanned"
	MeshVerified      Action = "mesh.verified" // `parley verify` ran, with what came of it
	LogLevelChanged   Action = "log.level_changed"
	AdminRefused      Action = "admin.refused"   // the admin API refused a caller
	ServerStarted     Action = "server.started"  // start of a process, with its version
	AgentStarted      Action = "agent.started"   //
	ListenerFailed    Action = "listener.failed" // a listener of the snapshot must not be open
	PlaintextEnded    Action = "plaintext.ended" // the date came until which a listener let callers in without TLS
	Gap               Action = "audit.gap"       // events that were lost, numbered
	Forked            Action = "audit.forked"    // something was brought that contradicts a log
	Degraded          Action = "audit.degraded"  // something happened to the files of an agent's log
	Recovered         Action = "audit.recovered" // and is mended
	Erased            Action = "audit.erased"    // what events said of a person was taken away
	Pruned            Action = "audit.pruned"    // events were emptied that are older than the mesh file keeps them
	Finding           Action = "finding"         // something an operator should look at
)

// Actions is the registry.
func Actions() []Action {
	return []Action{
		Call, HandshakeRefused, ConnectionRefused, ProcessRefused, WorkloadRefused, WorkloadServed, SVIDIssued, JWTIssued,
		IssueRefused, CACreated, ConfigApplied, ConfigRolledBack, KeyCreated, KeyRevoked, JoinCreated, HostJoined,
		JoinRefused, AgentConnected, AgentLost, AgentRefused, IdentityBanned, IdentityUnbanned, MeshVerified, LogLevelChanged, AdminRefused,
		ServerStarted, AgentStarted, ListenerFailed, PlaintextEnded, Gap, Forked, Degraded, Recovered,
		Erased, Pruned, Finding,
	}
}

// Class is the class of an action's events.
func (a Action) Class() Class {
	switch a {
	case Call, HandshakeRefused, ConnectionRefused, ProcessRefused:
		return Access
	}
	return Security
}

// Kept says that events of the action are never pruned: they say what is not in a
// log any more, or was not what it should be.
func (a Action) Kept() bool {
	switch a {
	case Gap, Forked, Erased, Pruned:
		return true
	}
	return false
}

// An Outcome says how it ended.
type Outcome string

// The outcomes.
const (
	Allowed Outcome = "allowed" // a call that policy let through
	Denied  Outcome = "denied"  // a call, process or peer that was refused
	Success Outcome = "success" // an act that was done
	Failure Outcome = "failure" // an act that was tried and failed
)

// An Event is one thing that happened. The zero value of a field is left out of
// the encoding. Every string is UTF-8 of bounded length: Encode cuts what is
// longer and marks it. What stands beside or above a field is its description in
// the JSON Schema.
type Event struct {
	Schema  int       `json:"schema"`  // the version of this schema
	ID      string    `json:"id"`      // a ULID; of a call, the decision id
	Time    time.Time `json:"time"`    // UTC, when it began
	Class   Class     `json:"class"`   // which loss policy and retention it has
	Action  Action    `json:"action"`  // what was done
	Outcome Outcome   `json:"outcome"` // allowed or denied of calls and peers, success or failure of acts
	// a stable code, which parley explain knows, or of a finding its PAR code
	Reason string `json:"reason,omitempty"`
	// a sentence for people, never with outside bytes in it but quoted, and never
	// needed to understand the event
	Message  string `json:"message,omitempty"`
	Host     string `json:"host,omitempty"`     // the machine that writes this
	Reporter string `json:"reporter,omitempty"` // the part of Parley that writes this

	Call        *CallFacts `json:"call,omitempty"`         // the request or connection
	Caller      *Party     `json:"caller,omitempty"`       // who calls
	Callee      *Party     `json:"callee,omitempty"`       // who is called
	Actor       *Actor     `json:"actor,omitempty"`        // who administers
	Object      *Object    `json:"object,omitempty"`       // what was administered or issued
	Decision    *Decision  `json:"decision,omitempty"`     // what decided
	TLS         *TLS       `json:"tls,omitempty"`          // the connection that came in
	UpstreamTLS *TLS       `json:"upstream_tls,omitempty"` // the connection that goes out, of a proxied call
	Trace       *Trace     `json:"trace,omitempty"`        // the W3C trace context
	Gap         *Range     `json:"gap,omitempty"`          // the entries that are missing
	Repeated    *Repeated  `json:"repeated,omitempty"`     // that the event stands for more of the same
	Log         *LogFacts  `json:"log,omitempty"`          // what was done to a log
	// what is said of a person; it comes last, the leaf hash does not cover it, and
	// erasure takes it away
	Private *Private `json:"private,omitempty"`
}

// CallFacts describe a request or connection.
type CallFacts struct {
	End        string `json:"end"`                   // which end of the call this is
	Protocol   string `json:"protocol"`              // http or tcp
	Listener   string `json:"listener"`              // such as orders.inbound
	RequestID  string `json:"request_id,omitempty"`  // same at all hops of a request
	ID         string `json:"id,omitempty"`          // same at both ends of this call, and at no other's
	Method     string `json:"method,omitempty"`      // of HTTP
	Host       string `json:"host,omitempty"`        // the host that was asked for
	Path       string `json:"path,omitempty"`        // canonical, without the query
	Status     int    `json:"status,omitempty"`      // of the answer
	GRPCStatus *int   `json:"grpc_status,omitempty"` // of a call of gRPC, where 0 is success
	Error      string `json:"error,omitempty"`       // what went wrong behind the decision
	BytesIn    int64  `json:"bytes_in,omitempty"`    // bytes of the body that came, of TCP and WebSocket of the connection
	BytesOut   int64  `json:"bytes_out,omitempty"`   // bytes of the body that went, alike
	Duration   int64  `json:"duration_us,omitempty"` // microseconds
	Upstream   string `json:"upstream,omitempty"`    // the address forwarded to
}

// A Party is one side of a call.
type Party struct {
	Service     string      `json:"service,omitempty"`     // by certificate, or by attestation at the caller's own end
	ID          identity.ID `json:"id,omitzero"`           // the SPIFFE ID
	Serial      string      `json:"serial,omitempty"`      // of the certificate
	Fingerprint string      `json:"fingerprint,omitempty"` // of the certificate
	Address     string      `json:"address,omitempty"`     // where it connected from, but for the client of a person
	Via         string      `json:"via,omitempty"`         // the trusted proxy that told the client's address, by its own
	KeyID       string      `json:"key_id,omitempty"`      // the API key, never the key itself
	KeyName     string      `json:"key_name,omitempty"`    // of the API key
	// the commitment to private, of a caller: SHA-256 over "parley audit private v1", a
	// zero byte and that object as it stands
	Person   Commitment `json:"person,omitzero"`
	Issuer   string     `json:"issuer,omitempty"`    // of a token whose signature was verified, never of one that only claims it
	ClientID string     `json:"client_id,omitempty"` // of that token
	Audience string     `json:"audience,omitempty"`  // of that token, several joined by spaces
	Scopes   string     `json:"scopes,omitempty"`    // of that token, several joined by spaces
	PID      int        `json:"pid,omitempty"`       // of the process that connected on this host
	UID      *int       `json:"uid,omitempty"`       // of that process, where 0 is a user
	Exe      string     `json:"exe,omitempty"`       // of that process
}

// An Actor is who administers.
type Actor struct {
	UID       *int        `json:"uid,omitempty"`        // by the kernel, where 0 is a user
	User      string      `json:"user,omitempty"`       // the name of that user
	PID       int         `json:"pid,omitempty"`        // by the kernel
	ID        identity.ID `json:"id,omitzero"`          // of an administrator who came with a certificate
	RequestID string      `json:"request_id,omitempty"` // of the request to the admin API, which the server's own log has too
	System    string      `json:"system,omitempty"`     // the part of Parley that acts by itself, such as start or retention
}

// An Object is what was administered or issued.
type Object struct {
	Kind     string    `json:"kind"`               // such as revision, api_key, certificate, ca, listener or person
	Name     string    `json:"name,omitempty"`     // of the object
	Serial   string    `json:"serial,omitempty"`   // of a certificate
	Revision int64     `json:"revision,omitempty"` // of the mesh file
	NotAfter time.Time `json:"not_after,omitzero"` // the end of what was issued
	Detail   string    `json:"detail,omitempty"`   // more of the object
}

// A Decision is which rule of which revision decided.
type Decision struct {
	Rule     string `json:"rule,omitempty"`     // such as orders.allow[0]; of a denial the nearest rule
	Revision int64  `json:"revision,omitempty"` // of the mesh file
}

// TLS is how a connection was protected.
type TLS struct {
	Version    string `json:"version"`               // such as 1.3
	Cipher     string `json:"cipher,omitempty"`      // the cipher suite
	Group      string `json:"group,omitempty"`       // the key exchange
	ALPN       string `json:"alpn,omitempty"`        // the protocol that was agreed on
	Resumed    bool   `json:"resumed,omitempty"`     // whether it goes on with an earlier session
	Connection string `json:"connection,omitempty"`  // a digest that both ends of the connection compute alike
	PeerID     string `json:"peer_id,omitempty"`     // the SPIFFE ID at its far end
	PeerSerial string `json:"peer_serial,omitempty"` // of the certificate at its far end
}

// Trace is the W3C trace context.
type Trace struct {
	TraceID  string `json:"trace_id,omitempty"`  // same at all hops
	SpanID   string `json:"span_id,omitempty"`   // this event's own
	ParentID string `json:"parent_id,omitempty"` // the span that this one is part of
}

// A Range counts lost events.
type Range struct {
	From  uint64 `json:"from"`  // the first of the entries
	To    uint64 `json:"to"`    // the last of them
	Count uint64 `json:"count"` // how many they are
}

// Repeated counts what else happened just like the event, of the same listener, reason
// and address, and has no event of its own.
type Repeated struct {
	Count uint64    `json:"count"` // how many they are
	First time.Time `json:"first"` // the time of the first of them
	Last  time.Time `json:"last"`  // the time of the last of them
}

// LogFacts are some of the entries of a log.
type LogFacts struct {
	Name  string `json:"name"`           // of the log
	From  uint64 `json:"from"`           // the first of the entries
	To    uint64 `json:"to"`             // the last of them
	Count uint64 `json:"count"`          // how many they are
	Size  uint64 `json:"size,omitempty"` // how many entries the log had then
	Root  string `json:"root,omitempty"` // the RFC 6962 root hash of the log then, in hexadecimal
}
