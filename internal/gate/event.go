package gate

import (
	"net/netip"
	"strings"
	"sync"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
)

// A record is an event with its parts, in one piece of memory, which serves one
// event after the other.
type record struct {
	event    audit.Event
	call     audit.CallFacts
	caller   audit.Party
	callee   audit.Party
	decision audit.Decision
	tls      audit.TLS
	upstream audit.TLS
	trace    audit.Trace
	private  audit.Private
	uid      int
}

// records are those that are not in use.
var records = sync.Pool{New: func() any { return new(record) }}

// newRecord is everything that is known of a call and its verdict. Its release is
// the caller's.
func (g *Gate) newRecord(r *call.Request, o *call.Outcome) *record {
	v := &r.Verdict
	rec := records.Get().(*record)
	*rec = record{}
	rec.event = audit.Event{
		Schema: audit.Schema, ID: v.ID, Time: r.Start.UTC(),
		Class: audit.Access, Action: audit.Call, Outcome: audit.Denied,
		Reason: v.Reason, Host: g.cfg.Host, Reporter: "agent",
		Call: &rec.call, Caller: &rec.caller, Callee: &rec.callee, Decision: &rec.decision,
	}
	if r.Start.IsZero() {
		rec.event.Time = o.End.UTC()
	}
	if v.Allow {
		rec.event.Outcome = audit.Allowed
	}
	rec.decision = audit.Decision{Rule: v.Rule, Revision: v.Revision}
	if rec.decision == (audit.Decision{}) {
		rec.event.Decision = nil
	}
	rec.facts(r, o)
	rec.parties(r, o)
	rec.protection(r, o)
	if r.Trace.TraceID != "" {
		rec.trace = audit.Trace{TraceID: r.Trace.TraceID, SpanID: r.Trace.SpanID, ParentID: r.Trace.ParentID}
		rec.event.Trace = &rec.trace
	}
	return rec
}

// release gives rec back. Nobody has it or a part of it any more.
func (rec *record) release() { records.Put(rec) }

// facts are the call's own.
func (rec *record) facts(r *call.Request, o *call.Outcome) {
	rec.call = audit.CallFacts{
		End: string(r.End), Protocol: string(r.Protocol), Listener: r.Listener, RequestID: r.RequestID, ID: callID(r, o),
		Method: r.Method, Host: r.Host, Path: authn.Redact(r.Path),
		Status: o.Status, GRPCStatus: o.GRPC, Error: o.Error, BytesIn: o.BytesIn, BytesOut: o.BytesOut, Upstream: o.Upstream,
	}
	if !r.Start.IsZero() {
		rec.call.Duration = max(0, o.End.Sub(r.Start).Microseconds())
	}
}

// callID is what both ends of a call have in common: of HTTP the span that the calling
// end made and sent on (W3C Trace Context section 3.2), of TCP the connection.
func callID(r *call.Request, o *call.Outcome) string {
	inbound := r.End == call.Inbound
	switch {
	case r.Protocol == call.TCP && inbound:
		return r.TLS.Connection
	case r.Protocol == call.TCP:
		return o.UpstreamTLS.Connection
	case inbound:
		return r.Trace.ParentID
	}
	return r.Trace.SpanID
}

// parties are both sides, as this end knows them.
func (rec *record) parties(r *call.Request, o *call.Outcome) {
	if rec.caller.Address = r.RemoteText; r.RemoteText == "" {
		rec.caller.Address = address(r.Remote)
	}
	if r.Client.IsValid() {
		rec.caller.Address, rec.caller.Via = r.Client.Unmap().String(), rec.caller.Address
	}
	if r.End == call.Inbound {
		if rec.caller.ID = r.Peer.ID; r.Peer.ID.TrustDomain() == r.LocalID.TrustDomain() {
			rec.caller.Service = r.Peer.ID.Name()
		}
		rec.caller.Serial, rec.caller.Fingerprint = r.Peer.Serial, r.Peer.Fingerprint
		rec.callee.Service, rec.callee.ID = r.Local, r.LocalID
		if o := r.Caller.Origin; o != nil { // the gateway has the id, its caller the rest
			rec.caller.KeyID, rec.caller.KeyName = o.KeyID, o.KeyName
			rec.token(o.Token)
		}
		return
	}
	if r.End == call.Outbound {
		rec.caller.Service, rec.caller.ID = r.Local, r.LocalID
	}
	if r.Process != (call.Process{}) {
		rec.uid = r.Process.UID
		rec.caller.PID, rec.caller.UID, rec.caller.Exe = r.Process.PID, &rec.uid, r.Process.Exe
	}
	rec.caller.KeyID, rec.caller.KeyName = r.Caller.KeyID, r.Caller.KeyName
	rec.token(r.Caller.Token)
	rec.callee = audit.Party{
		Service: r.Target, ID: o.UpstreamPeer.ID, Address: o.Upstream,
		Serial: o.UpstreamPeer.Serial, Fingerprint: o.UpstreamPeer.Fingerprint,
	}
	if rec.callee == (audit.Party{}) {
		rec.event.Callee = nil
	}
}

// token names the bearer of a verified token. Its subject is a person's, and so is
// the address that it came from at an edge; elsewhere that is a machine's of the mesh.
func (rec *record) token(t *identity.Token) {
	if t == nil {
		return
	}
	rec.caller.Issuer, rec.caller.ClientID = t.Issuer, t.ClientID
	rec.caller.Audience, rec.caller.Scopes = strings.Join(t.Audiences, " "), strings.Join(t.Scopes, " ")
	if t.Subject == "" {
		return
	}
	address := rec.private.Address
	if rec.call.End == string(call.Edge) && rec.caller.Address != "" {
		address, rec.caller.Address = rec.caller.Address, ""
	}
	rec.private.Hold(t.Subject, address)
	rec.event.Private = &rec.private
}

// add puts in what Check had to say beside the verdict.
func (rec *record) add(said *aside) {
	if said.keyID != "" {
		rec.caller.KeyID, rec.caller.KeyName = said.keyID, said.keyName
	}
	rec.token(said.token)
	rec.event.Message = said.message
}

// protection is TLS on both sides, where there is any.
func (rec *record) protection(r *call.Request, o *call.Outcome) {
	if r.TLS != (call.TLS{}) {
		rec.tls = tlsFacts(&r.TLS, &r.Peer)
		rec.event.TLS = &rec.tls
	}
	if o.UpstreamTLS != (call.TLS{}) {
		rec.upstream = tlsFacts(&o.UpstreamTLS, &o.UpstreamPeer)
		rec.event.UpstreamTLS = &rec.upstream
	}
}

func tlsFacts(t *call.TLS, p *call.Peer) audit.TLS {
	return audit.TLS{
		Version: t.Version, Cipher: t.Cipher, Group: t.Group, ALPN: t.ALPN, Resumed: t.Resumed,
		Connection: t.Connection, PeerID: p.ID.String(), PeerSerial: p.Serial,
	}
}

// address is a as text, an IPv4 address always in its own form.
func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}
