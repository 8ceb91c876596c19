package audit

import (
	wire "encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// The packed form is an event as the request path writes it: its fields one after
// the other in the order of the canonical encoding, each a byte that names it and a
// value, strings as they came but for what no encoding could keep. To write it costs
// a copy and little more. Render makes the canonical encoding of it, off the path.
//
// What a program has packed, a later one renders alike: a field is only ever added,
// with a number of its own.

// ErrPacked says that bytes are not what Pack wrote.
var ErrPacked = errors.New("not a packed event")

// packVersion begins what Pack writes.
const packVersion = 1

// A form is how the value of a field is packed, and how it is rendered.
type form byte

const (
	asNothing form = iota
	asText         // uvarint length, bytes
	asLong         // alike, with the wider bound
	asBare         // alike, ASCII that needs no escape and has a bound of its own: a SPIFFE ID
	asBytes        // alike, of any kind: in base64url
	asNumber       // varint
	asNatural      // uvarint
	asTrue         // nothing: it is there, so it is true
	asTime         // varint of Unix seconds, uvarint of nanoseconds
	asBegin        // nothing: an object begins
	asEnd          // nothing: the object that began last ends
	asPad          // nothing: it stands where the private part was
)

// A field is the first byte of a packed one.
type field byte

// The fields. Objects of one type share theirs. A new one goes to the end of its
// group: numbers are what logs are written in.
const (
	fieldEnd field = iota + 1
	fieldID
	fieldTime
	fieldClass
	fieldAction
	fieldOutcome
	fieldReason
	fieldMessage
	fieldHost
	fieldReporter
)

const (
	fieldCall field = iota + 24
	callEnd
	callProtocol
	callListener
	callRequestID
	callMethod
	callHost
	callPath
	callStatus
	callGRPCStatus
	callError
	callBytesIn
	callBytesOut
	callDuration
	callUpstream
	callID
)

const (
	fieldCaller field = iota + 48
	fieldCallee
	partyService
	partyID
	partySerial
	partyFingerprint
	partyAddress
	partyVia
	partyKeyID
	partyKeyName
	partyPerson
	partyIssuer
	partyClientID
	partyAudience
	partyScopes
	partyPID
	partyUID
	partyExe
)

const (
	fieldActor field = iota + 80
	actorUID
	actorUser
	actorPID
	actorID
	actorSystem
	actorRequestID
)

const (
	fieldObject field = iota + 96
	objectKind
	objectName
	objectSerial
	objectRevision
	objectNotAfter
	objectDetail
)

const (
	fieldDecision field = iota + 112
	decisionRule
	decisionRevision
)

const (
	fieldTLS field = iota + 120
	fieldUpstreamTLS
	tlsVersion
	tlsCipher
	tlsGroup
	tlsALPN
	tlsResumed
	tlsConnection
	tlsPeerID
	tlsPeerSerial
)

const (
	fieldTrace field = iota + 144
	traceID
	traceSpanID
	traceParentID
)

const (
	fieldGap field = iota + 152
	gapFrom
	gapTo
	gapCount
)

const (
	fieldRepeated field = iota + 168
	repeatedCount
	repeatedFirst
	repeatedLast
)

const (
	fieldPrivate field = iota + 160
	privateSalt
	privateSubject
	privateAddress
)

const (
	fieldLog field = iota + 176
	logName
	logFrom
	logTo
	logCount
	logSize
	logRoot
)

// What AppendWiped leaves: padWide where the event is rendered as ever, padNarrow where it
// only fitted with the narrow bounds, and is rendered with these although it would fit
// with the others now.
const (
	padWide field = iota + 184
	padNarrow
)

// fields is how each is rendered: the key with its comma and colon, and an object's
// with its brace.
var fields = [...]struct {
	key  string
	form form
}{
	fieldEnd:      {"}", asEnd},
	fieldID:       {`,"id":`, asText},
	fieldTime:     {`,"time":`, asTime},
	fieldClass:    {`,"class":`, asText},
	fieldAction:   {`,"action":`, asText},
	fieldOutcome:  {`,"outcome":`, asText},
	fieldReason:   {`,"reason":`, asText},
	fieldMessage:  {`,"message":`, asText},
	fieldHost:     {`,"host":`, asText},
	fieldReporter: {`,"reporter":`, asText},

	fieldCall:      {`,"call":{`, asBegin},
	callEnd:        {`,"end":`, asText},
	callProtocol:   {`,"protocol":`, asText},
	callListener:   {`,"listener":`, asText},
	callRequestID:  {`,"request_id":`, asText},
	callMethod:     {`,"method":`, asText},
	callHost:       {`,"host":`, asLong},
	callPath:       {`,"path":`, asLong},
	callStatus:     {`,"status":`, asNumber},
	callGRPCStatus: {`,"grpc_status":`, asNumber},
	callError:      {`,"error":`, asText},
	callBytesIn:    {`,"bytes_in":`, asNumber},
	callBytesOut:   {`,"bytes_out":`, asNumber},
	callDuration:   {`,"duration_us":`, asNumber},
	callUpstream:   {`,"upstream":`, asText},
	callID:         {`,"id":`, asText},

	fieldCaller:      {`,"caller":{`, asBegin},
	fieldCallee:      {`,"callee":{`, asBegin},
	partyService:     {`,"service":`, asText},
	partyID:          {`,"id":`, asBare},
	partySerial:      {`,"serial":`, asText},
	partyFingerprint: {`,"fingerprint":`, asText},
	partyAddress:     {`,"address":`, asText},
	partyVia:         {`,"via":`, asText},
	partyKeyID:       {`,"key_id":`, asText},
	partyKeyName:     {`,"key_name":`, asText},
	partyPerson:      {`,"person":`, asBytes},
	partyIssuer:      {`,"issuer":`, asText},
	partyClientID:    {`,"client_id":`, asText},
	partyAudience:    {`,"audience":`, asText},
	partyScopes:      {`,"scopes":`, asText},
	partyPID:         {`,"pid":`, asNumber},
	partyUID:         {`,"uid":`, asNumber},
	partyExe:         {`,"exe":`, asText},

	fieldActor:     {`,"actor":{`, asBegin},
	actorUID:       {`,"uid":`, asNumber},
	actorUser:      {`,"user":`, asText},
	actorPID:       {`,"pid":`, asNumber},
	actorID:        {`,"id":`, asBare},
	actorRequestID: {`,"request_id":`, asText},
	actorSystem:    {`,"system":`, asText},

	fieldObject:    {`,"object":{`, asBegin},
	objectKind:     {`,"kind":`, asText},
	objectName:     {`,"name":`, asText},
	objectSerial:   {`,"serial":`, asText},
	objectRevision: {`,"revision":`, asNumber},
	objectNotAfter: {`,"not_after":`, asTime},
	objectDetail:   {`,"detail":`, asText},

	fieldDecision:    {`,"decision":{`, asBegin},
	decisionRule:     {`,"rule":`, asText},
	decisionRevision: {`,"revision":`, asNumber},

	fieldTLS:         {`,"tls":{`, asBegin},
	fieldUpstreamTLS: {`,"upstream_tls":{`, asBegin},
	tlsVersion:       {`,"version":`, asText},
	tlsCipher:        {`,"cipher":`, asText},
	tlsGroup:         {`,"group":`, asText},
	tlsALPN:          {`,"alpn":`, asText},
	tlsResumed:       {`,"resumed":`, asTrue},
	tlsConnection:    {`,"connection":`, asText},
	tlsPeerID:        {`,"peer_id":`, asText},
	tlsPeerSerial:    {`,"peer_serial":`, asText},

	fieldTrace:    {`,"trace":{`, asBegin},
	traceID:       {`,"trace_id":`, asText},
	traceSpanID:   {`,"span_id":`, asText},
	traceParentID: {`,"parent_id":`, asText},

	fieldGap: {`,"gap":{`, asBegin},
	gapFrom:  {`,"from":`, asNatural},
	gapTo:    {`,"to":`, asNatural},
	gapCount: {`,"count":`, asNatural},

	fieldRepeated: {`,"repeated":{`, asBegin},
	repeatedCount: {`,"count":`, asNatural},
	repeatedFirst: {`,"first":`, asTime},
	repeatedLast:  {`,"last":`, asTime},

	fieldLog: {`,"log":{`, asBegin},
	logName:  {`,"name":`, asText},
	logFrom:  {`,"from":`, asNatural},
	logTo:    {`,"to":`, asNatural},
	logCount: {`,"count":`, asNatural},
	logSize:  {`,"size":`, asNatural},
	logRoot:  {`,"root":`, asText},

	fieldPrivate:   {`,"private":{`, asBegin},
	privateSalt:    {`,"salt":`, asBytes},
	privateSubject: {`,"subject":`, asText},
	privateAddress: {`,"address":`, asText},

	padWide:   {"", asPad},
	padNarrow: {"", asPad},
}

// Pack appends the packed form of e to dst. It does not change e, and allocates
// nothing where dst is large enough. The result is at most MaxEvent longer than dst.
//
// The errors are ErrTime and ErrSalt, and dst is then returned as it was.
func Pack(dst []byte, e *Event) ([]byte, error) {
	if err := sound(e.Time); err != nil {
		return dst, err
	}
	if e.Private != nil && e.Private.Salt == (Salt{}) {
		return dst, ErrSalt
	}
	if e.Object != nil && !e.Object.NotAfter.IsZero() {
		if err := sound(e.Object.NotAfter); err != nil {
			return dst, err
		}
	}
	if e.Repeated != nil {
		if err := errors.Join(sound(e.Repeated.First), sound(e.Repeated.Last)); err != nil {
			return dst, err
		}
	}
	return packer(append(dst, packVersion)).event(e), nil
}

// The Unix seconds of the years that RFC 3339 has.
const (
	firstSecond = -62167219200 // 0000-01-01T00:00:00Z
	lastSecond  = 253402300799 // 9999-12-31T23:59:59Z
)

func sound(t time.Time) error {
	if s := t.Unix(); s < firstSecond || s > lastSecond {
		return fmt.Errorf("year %d: %w", t.UTC().Year(), ErrTime)
	}
	return nil
}

// A packer is what is packed so far. Its methods return it with more.
type packer []byte

func (p packer) event(e *Event) packer {
	p = p.str(fieldID, e.ID)
	p = p.time(fieldTime, e.Time)
	p = p.str(fieldClass, string(e.Class))
	p = p.str(fieldAction, string(e.Action))
	p = p.str(fieldOutcome, string(e.Outcome))
	p = p.opt(fieldReason, e.Reason)
	p = p.opt(fieldMessage, e.Message)
	p = p.opt(fieldHost, e.Host)
	p = p.opt(fieldReporter, e.Reporter)
	p = p.call(e.Call)
	p = p.party(fieldCaller, e.Caller, e.Private)
	p = p.party(fieldCallee, e.Callee, nil)
	p = p.actor(e.Actor)
	p = p.object(e.Object)
	if e.Decision != nil {
		p = p.mark(fieldDecision)
		p = p.opt(decisionRule, e.Decision.Rule)
		p = p.num(decisionRevision, e.Decision.Revision)
		p = p.mark(fieldEnd)
	}
	p = p.tls(fieldTLS, e.TLS)
	p = p.tls(fieldUpstreamTLS, e.UpstreamTLS)
	if e.Trace != nil {
		p = p.mark(fieldTrace)
		p = p.opt(traceID, e.Trace.TraceID)
		p = p.opt(traceSpanID, e.Trace.SpanID)
		p = p.opt(traceParentID, e.Trace.ParentID)
		p = p.mark(fieldEnd)
	}
	if e.Gap != nil {
		p = p.mark(fieldGap)
		p = p.nat(gapFrom, e.Gap.From)
		p = p.nat(gapTo, e.Gap.To)
		p = p.nat(gapCount, e.Gap.Count)
		p = p.mark(fieldEnd)
	}
	if e.Repeated != nil {
		p = p.mark(fieldRepeated)
		p = p.nat(repeatedCount, e.Repeated.Count)
		p = p.time(repeatedFirst, e.Repeated.First)
		p = p.time(repeatedLast, e.Repeated.Last)
		p = p.mark(fieldEnd)
	}
	if l := e.Log; l != nil {
		p = p.mark(fieldLog)
		p = p.str(logName, l.Name)
		p = p.nat(logFrom, l.From)
		p = p.nat(logTo, l.To)
		p = p.nat(logCount, l.Count)
		if l.Size != 0 {
			p = p.nat(logSize, l.Size)
		}
		p = p.opt(logRoot, l.Root)
		p = p.mark(fieldEnd)
	}
	if e.Private != nil {
		p = p.mark(fieldPrivate)
		p = p.bytes(privateSalt, e.Private.Salt[:])
		p = p.opt(privateSubject, e.Private.Subject)
		p = p.opt(privateAddress, e.Private.Address)
		p = p.mark(fieldEnd)
	}
	return p
}

func (p packer) call(c *CallFacts) packer {
	if c == nil {
		return p
	}
	p = p.mark(fieldCall)
	p = p.str(callEnd, c.End)
	p = p.str(callProtocol, c.Protocol)
	p = p.str(callListener, c.Listener)
	p = p.opt(callRequestID, c.RequestID)
	p = p.opt(callID, c.ID)
	p = p.opt(callMethod, c.Method)
	p = p.opt(callHost, c.Host)
	p = p.opt(callPath, c.Path)
	p = p.num(callStatus, int64(c.Status))
	p = p.ptr(callGRPCStatus, c.GRPCStatus)
	p = p.opt(callError, c.Error)
	p = p.num(callBytesIn, c.BytesIn)
	p = p.num(callBytesOut, c.BytesOut)
	p = p.num(callDuration, c.Duration)
	p = p.opt(callUpstream, c.Upstream)
	return p.mark(fieldEnd)
}

// nobody is the caller of an event that has a person and no caller.
var nobody Party

// noCommitment is what Pack writes where AppendWiped is to write one.
var noCommitment Commitment

// party is the party; of a caller of whom private is said, with room for the
// commitment to it.
func (p packer) party(at field, party *Party, private *Private) packer {
	if party == nil && private == nil {
		return p
	}
	if party == nil {
		party = &nobody
	}
	p = p.mark(at)
	p = p.opt(partyService, party.Service)
	p = p.opt(partyID, party.ID.String())
	p = p.opt(partySerial, party.Serial)
	p = p.opt(partyFingerprint, party.Fingerprint)
	p = p.opt(partyAddress, party.Address)
	p = p.opt(partyVia, party.Via)
	p = p.opt(partyKeyID, party.KeyID)
	p = p.opt(partyKeyName, party.KeyName)
	if private != nil {
		p = p.bytes(partyPerson, noCommitment[:])
	} else if party.Person != (Commitment{}) {
		p = p.bytes(partyPerson, party.Person[:])
	}
	p = p.opt(partyIssuer, party.Issuer)
	p = p.opt(partyClientID, party.ClientID)
	p = p.opt(partyAudience, party.Audience)
	p = p.opt(partyScopes, party.Scopes)
	p = p.num(partyPID, int64(party.PID))
	p = p.ptr(partyUID, party.UID)
	p = p.opt(partyExe, party.Exe)
	return p.mark(fieldEnd)
}

func (p packer) actor(a *Actor) packer {
	if a == nil {
		return p
	}
	p = p.mark(fieldActor)
	p = p.ptr(actorUID, a.UID)
	p = p.opt(actorUser, a.User)
	p = p.num(actorPID, int64(a.PID))
	p = p.opt(actorID, a.ID.String())
	p = p.opt(actorRequestID, a.RequestID)
	p = p.opt(actorSystem, a.System)
	return p.mark(fieldEnd)
}

func (p packer) object(o *Object) packer {
	if o == nil {
		return p
	}
	p = p.mark(fieldObject)
	p = p.str(objectKind, o.Kind)
	p = p.opt(objectName, o.Name)
	p = p.opt(objectSerial, o.Serial)
	p = p.num(objectRevision, o.Revision)
	if !o.NotAfter.IsZero() {
		p = p.time(objectNotAfter, o.NotAfter)
	}
	p = p.opt(objectDetail, o.Detail)
	return p.mark(fieldEnd)
}

func (p packer) tls(at field, t *TLS) packer {
	if t == nil {
		return p
	}
	p = p.mark(at)
	p = p.str(tlsVersion, t.Version)
	p = p.opt(tlsCipher, t.Cipher)
	p = p.opt(tlsGroup, t.Group)
	p = p.opt(tlsALPN, t.ALPN)
	if t.Resumed {
		p = p.mark(tlsResumed)
	}
	p = p.opt(tlsConnection, t.Connection)
	p = p.opt(tlsPeerID, t.PeerID)
	p = p.opt(tlsPeerSerial, t.PeerSerial)
	return p.mark(fieldEnd)
}

func (p packer) mark(f field) packer { return append(p, byte(f)) }

func (p packer) opt(f field, s string) packer {
	if s == "" {
		return p
	}
	return p.str(f, s)
}

func (p packer) str(f field, s string) packer {
	if len(s) < 1<<7 { // its length is one byte
		return append(append(p, byte(f), byte(len(s))), s...)
	}
	n := min(len(s), looks(f))
	return append(wire.AppendUvarint(append(p, byte(f)), uint64(n)), s[:n]...)
}

// bytes packs fewer than 128 of them.
func (p packer) bytes(f field, b []byte) packer {
	return append(append(p, byte(f), byte(len(b))), b...)
}

// looks is how much of a string cut looks at, and one byte more, by which it knows
// that there was more.
func looks(f field) int {
	switch fields[f].form {
	case asBare:
		return MaxEvent
	case asLong:
		return wide.long + utf8.UTFMax + 1
	}
	return wide.other + utf8.UTFMax + 1
}

func (p packer) num(f field, n int64) packer {
	if n == 0 {
		return p
	}
	return wire.AppendVarint(append(p, byte(f)), n)
}

func (p packer) ptr(f field, n *int) packer {
	if n == nil {
		return p
	}
	return wire.AppendVarint(append(p, byte(f)), int64(*n))
}

func (p packer) nat(f field, n uint64) packer {
	return wire.AppendUvarint(append(p, byte(f)), n)
}

func (p packer) time(f field, t time.Time) packer {
	p = wire.AppendVarint(append(p, byte(f)), t.Unix())
	return wire.AppendUvarint(p, uint64(t.Nanosecond()))
}
