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
// longer and marks it.
type Event struct {
	Schema int `json:"schema"`
	// ID is a ULID; for a call it is the decision id.
	ID      string    `json:"id"`
	Time    time.Time `json:"time"` // UTC, when it began
	Class   Class     `json:"class"`
	Action  Action    `json:"action"`
	Outcome Outcome   `json:"outcome"`
	// Reason is a stable code of policy, gate, mtls or the room that acted.
	Reason string `json:"reason,omitempty"`
	// Message is a sentence for people, never with outside bytes in it but
	// quoted, and never needed to understand the event.
	Message string `json:"message,omitempty"`
	// Host and Reporter say who writes this: the agent or server.
	Host     string `json:"host,omitempty"`
	Reporter string `json:"reporter,omitempty"` // "agent", "server"

	Call     *CallFacts `json:"call,omitempty"`
	Caller   *Party     `json:"caller,omitempty"`
	Callee   *Party     `json:"callee,omitempty"`
	Actor    *Actor     `json:"actor,omitempty"`
	Object   *Object    `json:"object,omitempty"`
	Decision *Decision  `json:"decision,omitempty"`
	TLS      *TLS       `json:"tls,omitempty"`
	// UpstreamTLS protects the far side of a proxied call.
	UpstreamTLS *TLS   `json:"upstream_tls,omitempty"`
	Trace       *Trace `json:"trace,omitempty"`
	Gap         *Range `json:"gap,omitempty"`
	// Repeated says that the event stands for more of the same.
	Repeated *Repeated `json:"repeated,omitempty"`
	// Log is what was done to a log.
	Log *LogFacts `json:"log,omitempty"`
	// Private is what is said of a person, which erasure takes away; it comes last.
	Private *Private `json:"private,omitempty"`
}

// CallFacts describe a request or connection.
type CallFacts struct {
	End       string `json:"end"` // inbound, outbound, edge
	Protocol  string `json:"protocol"`
	Listener  string `json:"listener"`
	RequestID string `json:"request_id,omitempty"`
	Method    string `json:"method,omitempty"`
	Host      string `json:"host,omitempty"`
	Path      string `json:"path,omitempty"` // canonical, without the query
	Status    int    `json:"status,omitempty"`
	// GRPCStatus is that of a call of gRPC; a pointer because 0 is success.
	GRPCStatus *int   `json:"grpc_status,omitempty"`
	Error      string `json:"error,omitempty"`
	BytesIn    int64  `json:"bytes_in,omitempty"`
	BytesOut   int64  `json:"bytes_out,omitempty"`
	// Duration is in microseconds.
	Duration int64  `json:"duration_us,omitempty"`
	Upstream string `json:"upstream,omitempty"` // address forwarded to
}

// A Party is one side of a call.
type Party struct {
	Service     string      `json:"service,omitempty"`
	ID          identity.ID `json:"id,omitzero"`
	Serial      string      `json:"serial,omitempty"`
	Fingerprint string      `json:"fingerprint,omitempty"`
	Address     string      `json:"address,omitempty"`
	// Via is the trusted proxy that told Address, by its own address.
	Via     string `json:"via,omitempty"`
	KeyID   string `json:"key_id,omitempty"`
	KeyName string `json:"key_name,omitempty"`
	// Person commits to the event's Private, of a caller. Encode computes it where
	// that is there.
	Person Commitment `json:"person,omitzero"`
	// Issuer and ClientID are of a token whose signature was verified, never of one
	// that only claims them; its subject is in Private. Audience and Scopes are what
	// it is for, several joined by spaces.
	Issuer   string `json:"issuer,omitempty"`
	ClientID string `json:"client_id,omitempty"`
	Audience string `json:"audience,omitempty"`
	Scopes   string `json:"scopes,omitempty"`
	PID      int    `json:"pid,omitempty"`
	// UID is a pointer because 0 is a user.
	UID *int   `json:"uid,omitempty"`
	Exe string `json:"exe,omitempty"`
}

// An Actor is who administers.
type Actor struct {
	UID  *int   `json:"uid,omitempty"`
	User string `json:"user,omitempty"`
	PID  int    `json:"pid,omitempty"`
	// ID is the administrator's own, who came with a certificate.
	ID identity.ID `json:"id,omitzero"`
	// RequestID is that of the request to the admin API, which the server's log has too.
	RequestID string `json:"request_id,omitempty"`
	// System names a part of Parley that acts by itself: "renewal", "start".
	System string `json:"system,omitempty"`
}

// An Object is what was administered or issued.
type Object struct {
	Kind     string `json:"kind"` // revision, api_key, certificate, ca, listener, process
	Name     string `json:"name,omitempty"`
	Serial   string `json:"serial,omitempty"`
	Revision int64  `json:"revision,omitempty"`
	// NotAfter is the end of what was issued.
	NotAfter time.Time `json:"not_after,omitzero"`
	Detail   string    `json:"detail,omitempty"`
}

// A Decision is which rule of which revision decided.
type Decision struct {
	Rule     string `json:"rule,omitempty"`
	Revision int64  `json:"revision,omitempty"`
}

// TLS is how a connection was protected.
type TLS struct {
	Version    string `json:"version"`
	Cipher     string `json:"cipher,omitempty"`
	Group      string `json:"group,omitempty"`
	ALPN       string `json:"alpn,omitempty"`
	Resumed    bool   `json:"resumed,omitempty"`
	Connection string `json:"connection,omitempty"`
	PeerID     string `json:"peer_id,omitempty"`
	PeerSerial string `json:"peer_serial,omitempty"`
}

// Trace is the W3C trace context.
type Trace struct {
	TraceID  string `json:"trace_id,omitempty"`
	SpanID   string `json:"span_id,omitempty"`
	ParentID string `json:"parent_id,omitempty"`
}

// A Range counts lost events.
type Range struct {
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Count uint64 `json:"count"`
}

// Repeated counts what else happened just like the event, of the same listener, reason
// and address, and has no event of its own.
type Repeated struct {
	Count uint64 `json:"count"`
	// First and Last are the times of the first and the last of them.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// LogFacts are some of the entries of a log.
type LogFacts struct {
	Name string `json:"name"`
	// From and To are the first and the last of them, Count how many they are.
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Count uint64 `json:"count"`
	// Size is how many entries the log had then, and Root their RFC 6962 root hash in
	// hexadecimal.
	Size uint64 `json:"size,omitempty"`
	Root string `json:"root,omitempty"`
}
